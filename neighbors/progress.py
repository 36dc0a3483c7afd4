"""What a long command over rows shows: one task at a time."""

from ..progress import Display, PlainDisplay, Task, make_display
from ..store.search.index_build import Progress


class TaskProgress:
    """Shows one task after another: a bar on a terminal, or lines of a log."""

    def __init__(self, display: Display | None = None) -> None:
        """Use a display; None: plain lines."""
        self._display = display or PlainDisplay()
        self._task = Task("", 0)

    def say(self, message: str) -> None:
        self._display.say(message)

    def start(self, task: str, total: int, done: int = 0) -> None:
        self._display.hide(self._task)
        self._task = Task(task, total, done)
        self.advance(0)

    def advance(self, num_rows: int) -> None:
        self._task.done += num_rows
        self._display.show(self._task, self._task.line())

    def stop(self) -> None:
        self._display.hide(self._task)
        self._display.stop()


def make_progress() -> Progress:
    """Return the display that fits where stderr goes."""
    return TaskProgress(make_display())
