"""The result of a tour as a picture: losses of both trainings, and held-out recall."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..student.training.plot import smoothed
from .result import CONTRASTIVE, DISTILLED, START, TEACHER, Result, mean_recall

_COLOURS = {TEACHER: "#7a7a7a", START: "#c9c9c9", CONTRASTIVE: "#c4622d", DISTILLED: "#1f5a91"}
_POINTS = 40
"""Least number of points of a smoothed line."""

Metrics = Sequence[Mapping[str, Any]]
"""One object a step, the lines of a run's metrics.jsonl."""


def draw_picture(metrics: Mapping[str, Metrics], result: Result) -> bytes:
    """Return a PNG of three panels: contrastive loss, soft loss, held-out recall.

    Args:
        metrics: metrics of both trainings, by column of the result.
        result: result of the same tour.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    captions, teacher, recall = figure.subplots(1, 3)
    for name, lines in metrics.items():
        _line(captions, lines, "contrastive", label=name, color=_COLOURS[name])
    captions.set_title("contrastive loss (many captions are wrong)", fontsize=10)
    distilled = metrics[DISTILLED]
    _line(teacher, distilled, "soft", label=DISTILLED, color=_COLOURS[DISTILLED])
    floor = {"label": "teacher's entropy", "color": _COLOURS[TEACHER], "linestyle": "--"}
    _line(teacher, distilled, "soft_floor", **floor)
    teacher.set_title("soft loss (teacher's probabilities)", fontsize=10)
    for axes in (captions, teacher):
        axes.set_xlabel("step", fontsize=9)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, frameon=False)
    _bars(recall, result)
    for axes in (captions, teacher, recall):
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()


def _line(axes: Any, lines: Metrics, term: str, **style: Any) -> None:
    steps = np.array([line["step"] for line in lines])
    values = np.array([line[term] for line in lines], float)
    axes.plot(*smoothed(steps, values, max(1, len(steps) // _POINTS)), linewidth=1.8, **style)


def _bars(axes: Any, result: Result) -> None:
    names = list(result.columns)
    heights = [mean_recall(result.columns[name]) for name in names]
    bars = axes.bar(names, heights, color=[_COLOURS[name] for name in names], width=0.65)
    axes.bar_label(bars, labels=[f"{height:.2f}" for height in heights], fontsize=9, padding=2)
    axes.set_ylim(0, 1)
    axes.set_title(f"R@1 on {result.num_images:,} clean held-out scenes", fontsize=10)
