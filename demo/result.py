"""The result of a tour: a table of four models, and the conclusion."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..formatting import aligned, format_count

TEACHER, START, CONTRASTIVE, DISTILLED = "teacher", "start", "contrastive only", "distilled"
"""Columns of the table, in order."""

_WAYS = {"image_to_text": "image to text", "text_to_image": "text to image"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Evaluations of one tour."""

    columns: Mapping[str, Mapping[str, Any]]
    """Evaluation of each model, from ``siglip2-cache eval --json``."""

    num_parameters: Mapping[str, int]
    """Number of parameters, by column."""

    num_images: int
    """Number of held-out scenes with captions."""


def read_result(evaluations: Mapping[str, Path], models: Mapping[str, Path]) -> Result:
    """Return the evaluations by column; each file also has the teacher's column.

    Args:
        evaluations: outputs of ``siglip2-cache eval --json`` on one cache, by column.
        models: folder of each model, by column.
    """
    found = {name: json.loads(path.read_text("utf-8")) for name, path in evaluations.items()}
    columns = {name: each["columns"]["model"] for name, each in found.items()}
    any_one = next(iter(found.values()))
    return Result(
        columns={TEACHER: any_one["columns"]["teacher"], **columns},
        num_parameters={name: _count_parameters(folder) for name, folder in models.items()},
        num_images=any_one["gallery"]["captioned_images"],
    )


def table_lines(result: Result) -> list[str]:
    """Return the lines of a table: one row a metric, one column a model."""
    names = list(result.columns)
    rows = [["", *names]]
    for way, words in _WAYS.items():
        for k in ("1", "5"):
            values = [column["retrieval"]["all"][way][k] for column in result.columns.values()]
            rows.append([f"{words}, R@{k}", *(f"{value:.3f}" for value in values)])
    overlaps = [column["neighbour_overlap"] for column in result.columns.values()]
    rows.append(["10 nearest images, overlap", *(f"{value:.3f}" for value in overlaps)])
    rows.append(["parameters", *(f"{result.num_parameters[name]:,}" for name in names)])
    return aligned(rows)


def verdict(result: Result) -> str:
    """Return a sentence: which student has the higher recall, and whether that may be chance."""
    recalls = {name: mean_recall(column) for name, column in result.columns.items()}
    ours, theirs = recalls[DISTILLED], recalls[CONTRASTIVE]
    chance = 2 * _standard_error(ours, theirs, result.num_images)
    if ours - theirs > chance:
        outcome = "the distilled student beats the contrastive one"
    elif theirs - ours > chance:
        outcome = "the distilled student is worse than the contrastive one"
    else:
        outcome = (
            "the distilled student does not differ from the contrastive one by more than chance"
        )
    fell = ", below its start" if ours < recalls[START] else ""
    return (
        f"{outcome}: R@1 is {ours:.3f} against {theirs:.3f}{fell}; the start's is {recalls[START]:.3f}, the "
        f"teacher's {recalls[TEACHER]:.3f} (mean of both ways, {format_count(result.num_images, 'scene')}; "
        f"chance makes differences up to {chance:.3f})"
    )


def mean_recall(column: Mapping[str, Any]) -> float:
    """Return R@1, the mean of image to text and text to image."""
    ways = column["retrieval"]["all"]
    return sum(ways[way]["1"] for way in _WAYS) / len(_WAYS)


def _standard_error(ours: float, theirs: float, num_images: int) -> float:
    """Return the standard error of the difference of two recalls, taken as independent (a large estimate).

    The captions of one scene count once, because they are mostly right or wrong together.
    """
    return math.sqrt((ours * (1 - ours) + theirs * (1 - theirs)) / num_images)


def _count_parameters(folder: Path) -> int:
    from safetensors.numpy import load_file

    return sum(tensor.size for tensor in load_file(folder / "model.safetensors").values())
