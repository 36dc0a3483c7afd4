"""Telling a person how the tasks of a long command go: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Any

from ..formatting import format_seconds, short_line
from ..store.search.index_build import Progress
from ..streams import say_on_stderr

_PLAIN_INTERVAL_S = 10.0


class _Line:
    """The words for a task, and how long the rest of it will take."""

    def __init__(self, task: str, total: int, done: int) -> None:
        self._task, self.total, self.done, self._first = task, total, done, done
        self._started = time.monotonic()

    def __str__(self) -> str:
        if not self.total:
            return self._task
        elapsed = time.monotonic() - self._started
        left = elapsed / max(1, self.done - self._first) * (self.total - self.done)
        rest = f", {format_seconds(left)} left" if self._first < self.done < self.total else ""
        return f"{self._task} {self.done:,}/{self.total:,}{rest}"


class PlainProgress:
    """A line every ten seconds: for logs."""

    def __init__(self) -> None:
        self._line = _Line("", 0, 0)
        self._last = time.monotonic()

    def say(self, message: str) -> None:
        say_on_stderr(message)

    def start(self, task: str, total: int, done: int = 0) -> None:
        self._line = _Line(task, total, done)

    def advance(self, num_rows: int) -> None:
        self._line.done += num_rows
        if time.monotonic() - self._last > _PLAIN_INTERVAL_S:
            self._last = time.monotonic()
            self.say(str(self._line))

    def stop(self) -> None:
        return


class RichProgress:
    """A bar on a terminal, one task at a time."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars

        self._line = _Line("", 0, 0)
        self._bars = Bars(
            BarColumn(bar_width=20),
            TextColumn("{task.description}", markup=False),
            console=Console(stderr=True),
            transient=True,
        )
        self._task: Any = None

    def say(self, message: str) -> None:
        self._bars.console.print(short_line(message), markup=False, highlight=False)

    def start(self, task: str, total: int, done: int = 0) -> None:
        self._line = _Line(task, total, done)
        if self._task is None:
            self._bars.start()
        else:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(str(self._line), total=total or None, completed=done)

    def advance(self, num_rows: int) -> None:
        self._line.done += num_rows
        self._bars.update(self._task, completed=self._line.done, description=str(self._line))

    def stop(self) -> None:
        self._bars.stop()


def make_progress() -> Progress:
    """Return the display that fits where stderr goes."""
    return RichProgress() if sys.stderr.isatty() else PlainProgress()
