"""The lines that are printed at the end of a training."""

import json
from typing import Any

from ...formatting import format_count, format_seconds
from ..config import TrainConfig
from .evaluate_run import evaluation_lines
from .trainer import TrainSummary


def summary_values(config: TrainConfig, summary: TrainSummary) -> dict[str, Any]:
    """Return the same as JSON values, with the whole evaluation."""
    return {
        "run": str(config.out),
        "model": str(config.out / "model"),
        "steps": summary.steps,
        "steps_now": summary.steps - summary.first_step + 1,
        "seconds": round(summary.seconds, 3),
        "images_per_s": summary.images_per_s,
        "wait_share": summary.wait_share,
        "skipped_images": summary.num_skipped,
        "nonfinite_steps": summary.num_nonfinite,
        "evaluation": _evaluation(config),
    }


def summary_lines(config: TrainConfig, summary: TrainSummary) -> list[str]:
    """Return the lines for people."""
    out = config.out
    made = summary.steps - summary.first_step + 1
    lines = [f"trained    nothing left to do: all {summary.steps:,} steps are done"]
    if made:
        lines = [
            f"trained    {made:,} of {summary.steps:,} steps in {format_seconds(summary.seconds)}; "
            f"{summary.images_per_s:,.1f} images/s, {summary.wait_share:.1%} of it waiting for pixels"
        ]
    if summary.num_skipped:
        lines.append(f"skipped    {summary.num_skipped:,} images that could not be used")
    if summary.num_nonfinite:
        lines.append(
            f"skipped    {format_count(summary.num_nonfinite, 'step')} with a loss or gradient that is "
            f"not finite; keys are in {out / 'metrics.jsonl'}"
        )
    return [
        *lines,
        *evaluation_lines(_evaluation(config)),
        f"model      {out / 'model'}",
        f"plot       {out / 'loss.png'}",
    ]


def _evaluation(config: TrainConfig) -> dict[str, Any]:
    """Return what the run's evaluation found; empty without one."""
    found = config.out / "evaluation.json"
    return json.loads(found.read_text(encoding="utf-8")) if found.is_file() else {}
