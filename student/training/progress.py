"""What a training shows while it runs: the metrics of the last step."""

from collections.abc import Mapping
from typing import Any, Protocol

from ...progress import Display, PlainDisplay, SilentDisplay, Task, make_display


class Progress(Protocol):
    """Receives what a training has done while it runs."""

    def say(self, message: str) -> None:
        """Print one line that stays."""
        ...

    def start(self, done: int, steps: int) -> None:
        """Set how many steps there are, and how many were done before."""
        ...

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Report a step by its line of metrics.jsonl."""
        ...

    def stop(self) -> None:
        """Close the display."""
        ...


class StepProgress:
    """Shows the last step: a bar on a terminal, or lines of a log."""

    def __init__(self, display: Display | None = None) -> None:
        """Use a display; None: plain lines."""
        self._display = display or PlainDisplay()
        self._steps = Task("step", 0)
        self._is_first = True

    def say(self, message: str) -> None:
        self._display.say(message)

    def start(self, done: int, steps: int) -> None:
        self._steps, self._is_first = Task("step", steps, done), True

    def step(self, metrics: Mapping[str, Any]) -> None:
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
        self._display.stop()


class SilentProgress(StepProgress):
    """Shows nothing: for processes other than the first."""

    def __init__(self) -> None:
        super().__init__(SilentDisplay())


def make_progress() -> Progress:
    """Return the display that fits where stderr goes."""
    return StepProgress(make_display())
