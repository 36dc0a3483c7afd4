"""The lines that are printed at the end of a training."""

import json

from ...formatting import format_count, format_seconds
from ..config import TrainConfig
from .evaluate_run import evaluation_lines
from .trainer import TrainSummary


def summary_lines(config: TrainConfig, summary: TrainSummary) -> list[str]:
    """Return the lines for people; none in processes other than rank 0."""
    if not summary.is_first:
        return []
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
    found = out / "evaluation.json"
    columns = json.loads(found.read_text(encoding="utf-8")) if found.is_file() else {}
    return [
        *lines,
        *evaluation_lines(columns),
        f"model      {out / 'model'}",
        f"plot       {out / 'loss.png'}",
    ]
