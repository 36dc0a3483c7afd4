"""Where a student stands: its figures beside the teacher's, and its calibration.

Shape letters in this file: P = pairs of an image with its caption.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..student.data.corpus import find_ascending
from ..student.evaluation.calibration import reliability
from ..student.evaluation.compare import Embedded
from ..student.evaluation.embeddings import Embeddings, has_texts
from ..student.evaluation.eval_set import CacheEvalSet
from ..student.evaluation.intervals import LEVEL, NUM_RESAMPLES
from ..student.evaluation.report import table_rows
from ..student.evaluation.retrieval import with_equal_pictures
from .charts import Chart, Colors
from .section import Section, Table

_LEAST = 1e-7
"""Smallest probability that the chart shows."""

_MOST_IMAGES = 2000
"""Images whose pairs with all captions are counted."""


def standing_section(
    evaluation: Mapping[str, Any], gallery: Mapping[str, Any], embedded: Embedded | None
) -> Section:
    """Return the part about the figures of a student.

    Args:
        evaluation: result of evaluate by heading.
        gallery: counts of the images and captions.
        embedded: embeddings for the calibration; None: it is left out.
    """
    rows = table_rows(evaluation, has_intervals=True)
    bins = {} if embedded is None else _bins(embedded)
    return Section(
        name="evaluation",
        title="Where it stands",
        facts=[
            ("images", f"{gallery['images']:,}, of split {gallery.get('split', 'val')}"),
            ("captions", f"{gallery['captions']:,}"),
        ],
        notes=[f"[ ]: {100 * LEVEL:g} % of {NUM_RESAMPLES:,} resamples of the images"],
        charts=[_chart(bins)] if bins else [],
        tables=list(_tables(rows)),
        values={"gallery": gallery, "columns": evaluation, "calibration_bins": bins},
    )


def _tables(rows: list[list[str]]) -> Iterator[Table]:
    """Yield the table of all images, and that of each language, whose labels are indented."""
    for heading, is_of_language in (("Figures", False), ("By language", True)):
        chosen = [row for row in rows[1:] if row[0].startswith(" ") == is_of_language]
        if chosen:
            cells = [[row[0].strip(), *row[1:]] for row in chosen]
            yield Table(heading=heading, rows=[rows[0], *cells])


def _bins(embedded: Embedded) -> dict[str, dict[str, list[float]]]:
    """Return bins of the probability of teacher and student over all pairs; empty without any."""
    found: dict[str, dict[str, list[float]]] = {}
    for name, subject in (("teacher", embedded.teacher), ("student", embedded.model)):
        each = _bins_of(subject, embedded.eval_set)
        if each is not None:
            found[name] = each
    return found


def _bins_of(subject: Embeddings, eval_set: CacheEvalSet) -> dict[str, list[float]] | None:
    used_M = eval_set.captions()
    if subject.logit is None or not len(used_M) or not has_texts(subject.texts_MD[used_M]):
        return None
    image_P, text_P = with_equal_pictures(
        eval_set.image_P, np.searchsorted(used_M, eval_set.text_P), eval_set.picture_N
    )
    num_images = len(subject.images_ND)
    random = np.random.default_rng(0)
    chosen = np.sort(random.choice(num_images, min(num_images, _MOST_IMAGES), replace=False))
    at_P, is_some_P = find_ascending(chosen, image_P)
    predicted, matching, pairs = reliability(
        subject.images_ND[chosen],
        subject.texts_MD[used_M],
        subject.logit,
        at_P[is_some_P],
        text_P[is_some_P],
    )
    return {
        "predicted": predicted.tolist(),
        "matching": matching.tolist(),
        "pairs": pairs.tolist(),
    }


def _chart(bins: Mapping[str, Mapping[str, list[float]]]) -> Chart:
    points = [
        np.array([each["predicted"], each["matching"]])[:, np.array(each["matching"]) > 0]
        for each in bins.values()
    ]
    least = max(_LEAST, 0.5 * min((float(xy.min()) for xy in points if xy.size), default=1.0))

    def plot(axes: Any, colors: Colors) -> None:
        axes.plot([least, 1], [least, 1], "--", color=colors.ink, linewidth=0.8, label="calibrated")
        for name, (x, y), color in zip(bins, points, colors.series[1::-1], strict=False):
            axes.plot(x, y, marker="o", markersize=3, color=color, label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(least, 1.2)
        axes.set_ylim(least, 1.2)
        axes.set_xlabel("probability of the model")
        axes.set_ylabel("share that match")
        axes.legend()

    return Chart(
        "Calibration",
        "the share of pairs of an image and a caption that match, by the probability of the model, for "
        "teacher and student",
        plot,
    )
