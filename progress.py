"""How far a long command is: a bar for each task on a terminal, a line every ten seconds elsewhere."""

import sys
import time
from typing import Any

from .formatting import format_seconds, short_line
from .streams import say_on_stderr

_INTERVAL_S = 10.0


class Task:
    """A count that rises to a total, and how fast."""

    def __init__(self, name: str, total: int, done: int = 0) -> None:
        """Start the clock; ``done`` was counted by an earlier run."""
        self.name, self.total, self.done = name, total, done
        self._first = done
        self.started = time.monotonic()

    @property
    def rate(self) -> float:
        """Count per second since the start."""
        elapsed = time.monotonic() - self.started
        return (self.done - self._first) / elapsed if elapsed > 0 else 0.0

    def line(self, *details: str) -> str:
        """Return one line: name, count, details, and the time left at this rate."""
        if not self.total:
            return self.name
        left = self.total - self.done
        rest = [f"{format_seconds(left / self.rate)} left"] if left > 0 and self.rate > 0 else []
        return ", ".join(
            [f"{self.name} {self.done:,}/{self.total:,}", *filter(None, details), *rest]
        )


class Display:
    """Where progress is shown; this one shows nothing."""

    def say(self, message: str) -> None:
        """Print one line that stays."""

    def show(self, task: Task, line: str, *, now: bool = False) -> None:
        """Show where a task is; ``now`` prints its line even if another was printed just before."""

    def hide(self, task: Task) -> None:
        """Remove the bar of a task."""

    def stop(self) -> None:
        """Leave the terminal as it was."""


class _Log(Display):
    """Prints a line every ten seconds."""

    def __init__(self) -> None:
        self._printed_at = time.monotonic()

    def say(self, message: str) -> None:
        say_on_stderr(message)

    def show(self, task: Task, line: str, *, now: bool = False) -> None:
        if now or time.monotonic() - self._printed_at > _INTERVAL_S:
            self._printed_at = time.monotonic()
            self.say(line)


class _Quiet(Display):
    """Prints warnings and nothing else."""

    def say(self, message: str) -> None:
        if message.startswith("warning: "):
            say_on_stderr(message)


class _Bars(Display):
    """Draws a bar for each task."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._bars = Progress(
            BarColumn(bar_width=20),
            TextColumn("{task.description}", markup=False),
            console=Console(stderr=True),
        )
        self._ids: dict[Task, Any] = {}

    def say(self, message: str) -> None:
        self._bars.console.print(short_line(message), markup=False, highlight=False)

    def show(self, task: Task, line: str, *, now: bool = False) -> None:
        total = task.total or None  # None: unknown, the bar only moves
        if task not in self._ids:
            self._bars.start()
            self._ids[task] = self._bars.add_task(line, total=total)
        self._bars.update(self._ids[task], description=line, completed=task.done, total=total)

    def hide(self, task: Task) -> None:
        if task in self._ids:
            self._bars.remove_task(self._ids.pop(task))

    def stop(self) -> None:
        self._bars.stop()


def log_display() -> Display:
    """Return a display that prints lines to stderr."""
    return _Log()


def make_display(*, is_quiet: bool = False) -> Display:
    """Return the display that suits stderr: bars on a terminal, else lines; if quiet, only warnings."""
    if is_quiet:
        return _Quiet()
    return _Bars() if sys.stderr.isatty() else _Log()


class TaskProgress:
    """Shows one task after another."""

    def __init__(self, display: Display) -> None:
        """Use a display."""
        self._display = display
        self._task = Task("", 0)

    def say(self, message: str) -> None:
        """Print one line that stays."""
        self._display.say(message)

    def start(self, task: str, total: int, done: int = 0) -> None:
        """Start a task over so many rows; a total of 0 is unknown."""
        self._display.hide(self._task)
        self._task = Task(task, total, done)
        self.advance(0)

    def advance(self, num_rows: int) -> None:
        """Count rows of the task."""
        self._task.done += num_rows
        self._display.show(self._task, self._task.line())

    def stop(self) -> None:
        """Close the display."""
        self._display.hide(self._task)
        self._display.stop()
