"""Standard streams that are closed, or whose reader has gone, without ending the work."""

import contextlib
import os
import sys

from .formatting import short_line


def open_missing_streams() -> None:
    """Open the standard streams that the caller closed (``2>&-``) on the null device.

    Otherwise the next file that is opened, such as a shard, becomes the standard error of this process and
    of its children, and their messages are written into it.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    # Python sets a stream to None if it was closed at the start.
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def say_on_stderr(message: str) -> None:
    """Print one line on stderr; after its reader has gone, print nothing."""
    try:
        print(short_line(message), file=sys.stderr, flush=True)
    except OSError:
        # What is left in the buffer would fail again at exit and change the exit status.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
