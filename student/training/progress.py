"""Telling a person how a training goes: a live line on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

from ...formatting import format_seconds, short_line
from ...streams import say_on_stderr

_PLAIN_INTERVAL_S = 10.0


class Progress(Protocol):
    """What a training reports while it runs."""

    def say(self, message: str) -> None:
        """Print one line that stays."""
        ...

    def start(self, done: int, steps: int) -> None:
        """Say how many steps there are, and how many were done before."""
        ...

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Report a step, its line of metrics.jsonl."""
        ...

    def stop(self) -> None:
        """Leave the display."""
        ...


class SilentProgress:
    """Says nothing: for processes other than the first."""

    def say(self, message: str) -> None:
        return

    def start(self, done: int, steps: int) -> None:
        return

    def step(self, metrics: Mapping[str, Any]) -> None:
        return

    def stop(self) -> None:
        return


class _Line:
    """The words for the last step, and how long the rest will take."""

    def __init__(self, done: int, steps: int) -> None:
        self._first, self.steps = done, steps
        self._started = time.monotonic()

    def of(self, metrics: Mapping[str, Any]) -> str:
        done = metrics["step"]
        terms = ", ".join(f"{name} {metrics[name]:.4g}" for name in metrics["terms"])
        elapsed = time.monotonic() - self._started
        left = elapsed / max(1, done - self._first) * (self.steps - done)
        skipped = f", {metrics['skipped']} images left out" if metrics["skipped"] else ""
        return (
            f"step {done:,}/{self.steps:,}, loss {metrics['loss']:.4g} ({terms}), "
            f"{metrics['images_per_s']:,.0f} images/s, waiting {metrics['wait_share']:.0%}, "
            f"{format_seconds(left)} left{skipped}"
        )


class PlainProgress:
    """A line every ten seconds, and for the last step: for logs."""

    def __init__(self) -> None:
        self._line = _Line(0, 0)
        self._last = float("-inf")

    def say(self, message: str) -> None:
        say_on_stderr(message)

    def start(self, done: int, steps: int) -> None:
        self._line = _Line(done, steps)

    def step(self, metrics: Mapping[str, Any]) -> None:
        is_due = time.monotonic() - self._last > _PLAIN_INTERVAL_S
        if is_due or metrics["step"] == self._line.steps:
            self._last = time.monotonic()
            self.say(self._line.of(metrics))

    def stop(self) -> None:
        return


class RichProgress:
    """A bar on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars

        self._line = _Line(0, 0)
        self._bars = Bars(
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
        )
        self._task: Any = None

    def say(self, message: str) -> None:
        self._bars.console.print(short_line(message), markup=False, highlight=False)

    def start(self, done: int, steps: int) -> None:
        self._line = _Line(done, steps)
        self._bars.start()
        self._task = self._bars.add_task("", total=steps, completed=done)

    def step(self, metrics: Mapping[str, Any]) -> None:
        line = self._line.of(metrics).replace("[", "\\[")
        self._bars.update(self._task, completed=metrics["step"], description=line)

    def stop(self) -> None:
        self._bars.stop()


def make_progress() -> Progress:
    """Return the display that fits where stderr goes."""
    return RichProgress() if sys.stderr.isatty() else PlainProgress()
