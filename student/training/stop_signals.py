"""SIGINT and SIGTERM during a training: noted, so that the step ends and a checkpoint is written."""

import signal
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any


class StopFlag:
    """Whether a signal came."""

    is_set = False


@contextmanager
def stop_signals_noted() -> Generator[StopFlag]:
    """Return a flag that SIGINT and SIGTERM set instead of ending the process.

    A second SIGINT ends it. A second SIGTERM does not: one may come from a batch system and one from the
    process that started this one.
    """
    stop = StopFlag()

    def note(number: int, frame: Any) -> None:
        stop.is_set = True
        signal.signal(signal.SIGINT, old[signal.SIGINT])

    old: dict[int, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            old[number] = signal.signal(number, note)
    except ValueError:  # not the main thread: the caller's main thread handles signals
        old.clear()
    try:
        yield stop
    finally:
        for number, before in old.items():
            signal.signal(number, before)
