"""Samples of a corpus as an eval set: images, their captions, their classes.

Shape letters in this file: N = images, M = texts, P = pairs of an image with its caption, Q = prompts.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from ..images.image import ImageRef
from ..precompute.planning.prompts import Prompt
from ..precompute.sources.samples import Problem, Sample, place_of
from ..store.io.location import Location
from ..student.evaluation.eval_set import EvalSet, class_fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Images and texts to embed, and how they belong together."""

    refs: list[ImageRef]
    """The N images."""

    texts: list[str]
    """The M captions and prompts, each once."""

    eval_set: EvalSet


def collect(
    items: Iterable[Sample | Problem], *, max_images: int | None, seed: int
) -> tuple[list[Sample], set[str], list[Problem]]:
    """Return one sample for each image, or a random choice of them, the labels of all, and the problems.

    Rows of a table about one image are one sample, with the captions of all.

    Args:
        items: from a source.
        max_images: most images; None: all.
        seed: random seed of the choice.
    """
    samples: dict[object, Sample] = {}
    problems: list[Problem] = []
    for item in items:
        if isinstance(item, Problem):
            problems.append(item)
            continue
        is_file = item.offset is None and item.row_group is None
        name = item.path if is_file else item.image_id
        same = (name, is_file) if name is not None else len(samples)
        before = samples.get(same)
        if before is not None:
            captions = dict.fromkeys((*before.captions, *item.captions))
            item = replace(before, captions=tuple(captions), label=before.label or item.label)
        samples[same] = item
    found = list(samples.values())
    labels = {sample.label for sample in found if sample.label is not None}
    if max_images is not None and len(found) > max_images:
        chosen = np.random.default_rng(seed).choice(len(found), max_images, replace=False)
        found = [found[i] for i in sorted(chosen.tolist())]
    return found, labels, problems


def make_pairs(
    samples: Sequence[Sample],
    root: Location,
    prompts: Sequence[Prompt],
    clean: Callable[[str], str],
) -> Pairs:
    """Return the images and texts of some samples.

    Args:
        samples: one for each image; their paths are relative to ``root``.
        root: folder of the images.
        prompts: of their classes.
        clean: makes texts equal that are equal to the model. Of those the first stands for all: a model
            cannot tell them apart, and none should count as another's error.
    """
    numbers: dict[str, int] = {}
    texts: list[str] = []

    def number(text: str) -> int:
        found = numbers.setdefault(clean(text), len(texts))
        if found == len(texts):
            texts.append(text)
        return found

    langs = sorted({x.lang for sample in samples for x in sample.captions}, key=_none_last)
    pairs = dict.fromkeys(
        (image, number(caption.text), langs.index(caption.lang))
        for image, sample in enumerate(samples)
        for caption in sample.captions
    )
    lines = [(number(prompt.text), prompt.label, prompt.lang) for prompt in prompts]
    schema: dict[str, Any] = {"text_row": pl.Int64, "label": pl.String, "lang": pl.String}
    table = pl.DataFrame(lines, schema, orient="row").unique(maintain_order=True)
    prompt_Q, classes = class_fields([sample.label for sample in samples], table)
    image_P, text_P, lang_P = np.array(list(pairs), np.int64).reshape(-1, 3).T
    return Pairs(
        refs=[ImageRef(row, place_of(sample, root), ()) for row, sample in enumerate(samples)],
        texts=texts,
        eval_set=EvalSet(
            picture_N=np.arange(len(samples)),
            image_P=image_P,
            text_P=text_P,
            lang_P=lang_P.astype(np.int32),
            langs=tuple(langs),
            prompt_Q=prompt_Q,
            **classes,
        ),
    )


def _none_last(lang: str | None) -> tuple[bool, str]:
    return lang is None, lang or ""
