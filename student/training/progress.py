"""What a training shows while it runs: the metrics of the last step."""

from collections.abc import Mapping
from typing import Any

from ...progress import Display, Task, log_display


class TrainProgress:
    """Shows the last step of a training."""

    def __init__(self, display: Display | None = None) -> None:
        """Use a display; None: lines on stderr."""
        self._display = display or log_display()
        self._steps = Task("step", 0)
        self._is_first = True

    def say(self, message: str) -> None:
        """Print one line that stays."""
        self._display.say(message)

    def start(self, done: int, steps: int) -> None:
        """Set how many steps there are, and how many an earlier run has done."""
        self._steps, self._is_first = Task("step", steps, done), True

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Show a step, given its line of metrics.jsonl."""
        self._steps.done = metrics["step"]
        terms = ", ".join(f"{name} {metrics[name]:.4g}" for name in metrics["terms"])
        line = self._steps.line(
            f"loss {metrics['loss']:.4g} ({terms})",
            f"{metrics['images_per_s']:,.0f} images/s",
            f"waiting {metrics['wait_share']:.0%}",
            f"{metrics['skipped']} images left out" if metrics["skipped"] else "",
        )
        is_last = self._steps.done == self._steps.total
        self._display.show(self._steps, line, now=self._is_first or is_last)
        self._is_first = False

    def stop(self) -> None:
        """Close the display."""
        self._display.stop()
