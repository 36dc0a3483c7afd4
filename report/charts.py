"""Charts as SVG images inside a page, drawn by matplotlib for light pages and recoloured for dark ones.

They hold words of this package only, none of a corpus, which matplotlib would take for formulas.
"""

import base64
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.floating[Any]] | NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Colors:
    """Colours of a chart; those of page.css."""

    ink: str
    line: str
    faint: str
    series: tuple[str, str, str]


_LIGHT = Colors("#5d6166", "#e3e3df", "#a9cbc6", ("#0b6b62", "#c4622d", "#5a5fc0"))
_DARK = Colors("#a3a8ac", "#2c3033", "#2f5f58", ("#6fcfc0", "#f0a773", "#a3a7f2"))
_TO_DARK = {
    _LIGHT.ink: _DARK.ink,
    _LIGHT.line: _DARK.line,
    _LIGHT.faint: _DARK.faint,
    **dict(zip(_LIGHT.series, _DARK.series, strict=True)),
}

Plot = Callable[[Any, Colors], None]
"""Draws into axes of matplotlib."""


@dataclass(frozen=True)
class Chart:
    """One chart, drawn when it is asked for."""

    title: str
    alt: str
    """What it shows, for those who cannot see it."""

    plot: Plot

    def light(self) -> str:
        """Return the data URI of the SVG for light pages."""
        return _data_uri(self._svg)

    def dark(self) -> str:
        """Return the data URI of the SVG for dark pages."""
        return _data_uri(re.sub("|".join(_TO_DARK), lambda found: _TO_DARK[found[0]], self._svg))

    @cached_property
    def _svg(self) -> str:
        """The SVG for light pages."""
        return _svg(self.plot, _LIGHT)


def _data_uri(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def _svg(plot: Plot, colors: Colors) -> str:
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: Any = {
        "axes.edgecolor": colors.line,
        "axes.facecolor": "none",
        "axes.labelcolor": colors.ink,
        "axes.prop_cycle": f"cycler(color={list(colors.series)})",
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.facecolor": "none",
        "font.size": 8,
        "grid.color": colors.line,
        "legend.fontsize": 7.5,
        "legend.frameon": False,
        "legend.labelcolor": colors.ink,
        "svg.hashsalt": "siglip2-cache",  # equal numbers give equal bytes
        "xtick.color": colors.ink,
        "ytick.color": colors.ink,
        "xtick.minor.size": 0,
        "xtick.minor.width": 0,
    }
    with rc_context(settings):
        figure = Figure(figsize=(4.6, 2.9), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        axes.set_axisbelow(True)
        axes.grid(axis="y")
        plot(axes, colors)
        sink = io.BytesIO()
        figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None})
    return sink.getvalue().decode()


def histogram(
    values: Numbers,
    edges: Numbers,
    *,
    label: str,
    is_log: bool = False,
    ticks: Sequence[float] = (),
) -> Plot:
    """Return a plot of how many values are between the edges, on a logarithmic axis if ``is_log``."""
    counts = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]

    def plot(axes: Any, colors: Colors) -> None:
        axes.stairs(counts, edges, fill=True, color=colors.series[0])
        if is_log:
            axes.set_xscale("log")
        if ticks:
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
        axes.set_xlabel(label)
        axes.set_ylabel("count")

    return plot
