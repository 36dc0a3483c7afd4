"""The plot of a training: the loss terms, their shares of the gradient, the evaluations, over the steps."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..terms import loss_terms, quantity_name

_SMOOTHED = 100
"""Least number of points of the smoothed line."""

EVALUATED = {
    "mean_r1": "R@1, mean of both ways",
    "zero_shot_top1": "zero-shot, top 1",
    "image_cosine": "cosine to the teacher, images",
    "soft_loss_excess": "soft loss - entropy",
}
"""Title of each metric of the evaluations that has a panel."""

Metrics = Sequence[dict[str, Any]]

_COLORS = ("#9bbbd8", "#1f5a91", "#c4622d")
"""Of the values of each step, of their moving mean, and of the lowest possible value."""


def loss_plot(metrics: Metrics, *, title: str) -> bytes:
    """Return a PNG of a run.

    The first row has a panel for each term: its value, a moving mean, the lowest possible value. The second
    has the share of each term in the gradient by the images' embeddings, and the evaluations of the model
    and of its moving average, where there are any.

    Args:
        metrics: lines of metrics.jsonl.
        title: of the figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    evaluated = [name for name in EVALUATED if any(f"eval_{name}" in line for line in metrics)]
    finite = [line for line in metrics if "nonfinite_keys" not in line]
    terms = terms_of(finite)
    num_panels = max(1, len(terms), 1 + len(evaluated))
    width, height = 4.2 * num_panels, 6.4
    figure = Figure(figsize=(width, height), dpi=120)
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    # Inches for what stands around and between panels. A layout that measures it takes as long as the rest.
    places = {"left": 0.7 / width, "right": 1 - 0.15 / width, "bottom": 0.5 / height}
    places |= {"top": 1 - 0.65 / height, "wspace": 0.7 / 3.4, "hspace": 0.8 / 2.2}
    grid = figure.add_gridspec(2, num_panels, **places)
    for column, term in enumerate(terms):
        plot_term(figure.add_subplot(grid[0, column]), finite, term)
    plot_shares(figure.add_subplot(grid[1, 0]), finite, terms)
    for column, name in enumerate(evaluated, 1):
        plot_evaluations(figure.add_subplot(grid[1, column]), metrics, name)
    for axes in figure.axes:
        axes.set_visible(axes.has_data())
        axes.set_xlabel("step", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.locator_params(axis="x", nbins=5, integer=True)
        axes.locator_params(axis="y", nbins=5)
        axes.grid(alpha=0.25)
        if axes.has_data():
            axes.legend(fontsize=7, frameon=False)
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()


def terms_of(metrics: Metrics) -> list[str]:
    """Return the names of the loss terms in some lines, in the order of the registry."""
    found = {name: None for line in metrics for name in line}  # in order, each once
    return [name for term in loss_terms() for name in found if name.partition("/")[0] == term]


def plot_term(
    axes: Any, metrics: Metrics, term: str, colors: tuple[str, str, str] = _COLORS
) -> None:
    """Plot a term: its value at each step, a moving mean, and the lowest possible value if it has one."""
    each, mean, lowest = colors
    steps, values = _column(metrics, "step"), _column(metrics, term)
    axes.plot(steps, values, color=each, linewidth=0.8, label="each step")
    width = max(1, len(steps) // _SMOOTHED)
    axes.plot(*smoothed(steps, values, width), color=mean, linewidth=1.8, label="mean")
    floors = _column(metrics, quantity_name(term, "floor"))
    if np.isfinite(floors).any():
        floor = smoothed(steps, floors, width)
        axes.plot(*floor, color=lowest, linewidth=1.2, label="teacher's entropy")
    axes.set_title(term, fontsize=10, y=1)


def plot_shares(axes: Any, metrics: Metrics, terms: Sequence[str]) -> None:
    """Plot the norm of each weighted term's gradient as a share of the sum of these norms."""
    steps = _column(metrics, "step")
    norms = {term: _column(metrics, quantity_name(term, "gradient_norm")) for term in terms}
    total = np.sum(list(norms.values()), axis=0) if norms else np.array([])
    width = max(1, len(steps) // _SMOOTHED)
    with np.errstate(divide="ignore", invalid="ignore"):
        for term, norm in norms.items():
            if np.nansum(norm) > 0:  # dense targets reach the tower by its patches alone
                axes.plot(*smoothed(steps, norm / total, width), linewidth=1.4, label=term)
    axes.set_ylim(0, 1)
    axes.set_title("share of the gradient", fontsize=10, y=1)


def plot_evaluations(axes: Any, metrics: Metrics, name: str) -> None:
    """Plot a metric of the evaluations during the training, of the model and of its moving average."""
    for prefix, label in (("eval_", "model"), ("ema_eval_", "moving average")):
        found = [line for line in metrics if line.get(f"{prefix}{name}") is not None]
        if found:
            values = _column(found, f"{prefix}{name}")
            axes.plot(_column(found, "step"), values, marker="o", markersize=3, label=label)
    axes.set_title(EVALUATED[name], fontsize=10, y=1)


def _column(metrics: Metrics, name: str) -> Any:
    """Return one metric of each line, float64; NaN where a line has none."""
    found = [line.get(name) for line in metrics]
    return np.array([np.nan if value is None else value for value in found], float)


def smoothed(steps: Any, values: Any, width: int) -> tuple[Any, Any]:
    """Return (steps, values) averaged over consecutive groups of ``width`` steps."""
    count = len(values) // width * width
    return (
        steps[:count].reshape(-1, width).mean(axis=1),
        values[:count].reshape(-1, width).mean(axis=1),
    )
