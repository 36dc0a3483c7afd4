"""Standard streams that are closed, or whose reader is gone: work goes on without them."""

import contextlib
import os
import sys

from .formatting import short_line


def open_missing_streams() -> None:
    """Open what a caller closed (``2>&-``), onto nothing.

    Else the next file that is opened, such as one of a cache, would be the standard error of this
    process and of those it starts, and whatever they print would be written into it.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    # Python has None for a stream that was closed when it started.
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def say_on_stderr(message: str) -> None:
    """Print one line on stderr; nothing more goes there once its reader is gone."""
    try:
        print(short_line(message), file=sys.stderr, flush=True)
    except OSError:
        # What is left in the stream's buffer would fail again at exit, and change the exit status.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
