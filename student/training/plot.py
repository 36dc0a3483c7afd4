"""The plot of the loss terms over the steps."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..config import TERMS

_SMOOTHED = 100
"""Least number of points of the smoothed line."""


def loss_plot(metrics: Sequence[dict[str, Any]], *, title: str) -> bytes:
    """Return a PNG with a panel for each term: its value, a moving mean, the lowest possible value."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics = [line for line in metrics if "nonfinite_keys" not in line]
    terms = [term for term in TERMS if any(term in line for line in metrics)]
    steps = np.array([line["step"] for line in metrics])
    figure = Figure(figsize=(4.2 * max(1, len(terms)), 3.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    for axes, term in zip(
        figure.subplots(1, max(1, len(terms)), squeeze=False)[0], terms, strict=True
    ):
        values = np.array([line[term] for line in metrics], float)
        axes.plot(steps, values, color="#9bbbd8", linewidth=0.8, label="each step")
        width = max(1, len(steps) // _SMOOTHED)
        axes.plot(*smoothed(steps, values, width), color="#1f5a91", linewidth=1.8, label="mean")
        floors = np.array([line.get(f"{term}_floor", np.nan) for line in metrics], float)
        if np.isfinite(floors).any():
            floor = smoothed(steps, floors, width)
            axes.plot(*floor, color="#c4622d", linewidth=1.2, label="teacher's entropy")
        axes.set_title(term, fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7, frameon=False)
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()


def smoothed(steps: Any, values: Any, width: int) -> tuple[Any, Any]:
    """Return (steps, values) averaged over consecutive groups of ``width`` steps."""
    count = len(values) // width * width
    return (
        steps[:count].reshape(-1, width).mean(axis=1),
        values[:count].reshape(-1, width).mean(axis=1),
    )
