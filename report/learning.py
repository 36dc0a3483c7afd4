"""How a student learned: the loss terms, their shares of the gradient, the evaluations over the steps."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from ..student.terms import quantity_name
from ..student.training.plot import (
    EVALUATED,
    Metrics,
    plot_evaluations,
    plot_shares,
    plot_term,
    terms_of,
)
from ..student.training.run_files import RunFiles
from .charts import Chart, Colors, Plot
from .section import Section

_MOST_POINTS = 2000


def learning_section(run: RunFiles, settings: dict[str, Any]) -> Section:
    """Return the part about the steps of a training, finished or not."""
    metrics = run.metrics()
    last = metrics[-1] if metrics else {}
    nonfinite = [line["step"] for line in metrics if "nonfinite_keys" in line]
    terms = terms_of(metrics)
    floors = [quantity_name(term, "floor") for term in terms]
    values = {
        "run": str(run.root),
        "steps": last.get("step", 0),
        "wanted_steps": settings.get("steps"),
        "is_finished": run.model.is_dir(),
        "nonfinite_steps": len(nonfinite),
        "skipped_images": sum(line.get("skipped") or 0 for line in metrics),
        "last": {name: last[name] for name in ("loss", *terms, *floors) if name in last},
    }
    return Section(
        name="training",
        title="How the student learned",
        facts=list(_facts(settings, values)),
        notes=[] if metrics else ["no step is done yet"],
        charts=list(_charts(metrics, terms)),
        values=values,
    )


def _facts(settings: dict[str, Any], values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "run", values["run"]
    yield "student", str(settings["student"])
    of = f" of {values['wanted_steps']:,}" if values["wanted_steps"] else ""
    unfinished = "" if values["is_finished"] else "; no finished model yet"
    yield "steps", f"{values['steps']:,}{of}{unfinished}"
    yield "global batch size", f"{settings['global_batch_size']:,}"
    weights = {term: weight for term, weight in (settings.get("weights") or {}).items() if weight}
    if weights:
        yield "weights", ", ".join(f"{term} {weight:g}" for term, weight in weights.items())
    if values["nonfinite_steps"]:
        yield "steps without effect", f"{values['nonfinite_steps']:,} (not finite)"
    if values["skipped_images"]:
        yield "images skipped", f"{values['skipped_images']:,}"


def _charts(metrics: Metrics, terms: list[str]) -> Iterator[Chart]:
    """Yield a chart of each term, of the shares of the gradient, and of each evaluated metric."""
    finite = [line for line in metrics if "nonfinite_keys" not in line]
    finite = finite[:: max(1, len(finite) // _MOST_POINTS)]
    for term in terms:

        def draw_term(axes: Any, colors: Colors, term: str = term) -> None:
            plot_term(axes, finite, term, (colors.faint, colors.series[0], colors.series[1]))

        yield _chart(term, f"the loss term {term} over the steps", draw_term)
    if any(quantity_name(term, "gradient_norm") in line for term in terms for line in finite):
        draw_shares = partial(_of_axes, plot_shares, finite, terms)
        alt = "the share of each term in the gradient over the steps"
        yield _chart("Share of the gradient", alt, draw_shares)
    for name, title in EVALUATED.items():
        if any(line.get(f"eval_{name}") is not None for line in metrics):
            draw_evaluations = partial(_of_axes, plot_evaluations, metrics, name)
            yield _chart(title, f"{title}, on held-out images over the steps", draw_evaluations)


def _of_axes(plot: Any, metrics: Metrics, what: Any, axes: Any, colors: Colors) -> None:
    plot(axes, metrics, what)


def _chart(title: str, alt: str, plot: Plot) -> Chart:
    def draw(axes: Any, colors: Colors) -> None:
        plot(axes, colors)
        axes.set_title("")
        axes.set_xlabel("step")
        axes.legend()

    return Chart(title, alt, draw)
