"""SIGINT, SIGTERM and SIGUSR1 during a training: noted, so that the step ends and a checkpoint is written."""

import signal
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any


class StopFlag:
    """Which signals came."""

    is_set = False
    """Whether to stop."""

    is_save_wanted = False
    """Whether to write a checkpoint and go on: SIGUSR1 came since the last one."""


@contextmanager
def stop_signals_noted() -> Generator[StopFlag]:
    """Return a flag that SIGINT, SIGTERM and SIGUSR1 set instead of ending the process.

    A second SIGINT ends it. A second SIGTERM does not: one may come from a batch system and one from the
    process that started this one.
    """
    stop = StopFlag()

    def note(number: int, frame: Any) -> None:
        stop.is_set = True
        signal.signal(signal.SIGINT, old[signal.SIGINT])

    def note_save(number: int, frame: Any) -> None:
        stop.is_save_wanted = True

    old: dict[int, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            old[number] = signal.signal(number, note)
        old[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, note_save)
    except ValueError:  # not the main thread: the caller's main thread handles signals
        old.clear()
    try:
        yield stop
    finally:
        for number, before in old.items():
            signal.signal(number, before)


@contextmanager
def save_signal_ignored() -> Generator[None]:
    """Ignore SIGUSR1 in a ``with`` block: outside of the steps there is nothing new to save."""
    try:
        before: Any = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    except ValueError:  # not the main thread: the caller's main thread handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)
