"""What libtiff says of a picture: it writes to the process's standard error, past Python."""

import contextlib
import os
import re
import sys
import tempfile
import threading
from collections.abc import Generator
from typing import BinaryIO

# One line a message, its function before it: "JPEGLib: Unsupported marker type 0x27."
_MESSAGE = re.compile(rb"^[\w.]*: .*\.$")
_IS_WARNING = re.compile(rb"^[\w.]*: Warning, ")

_PILLOWS_NAME = "tempfile.tif: "
"""What libtiff calls the file where it names no function."""

_LOCK = threading.Lock()  # there is one standard error


@contextlib.contextmanager
def capture_errors() -> Generator[list[str]]:
    """Give a list that holds libtiff's errors once the block has ended; its warnings are dropped.

    Meanwhile standard error leads to a file. Lines that other threads wrote are passed on after it.
    """
    found: list[str] = []
    with _LOCK, tempfile.TemporaryFile() as file:
        try:
            before = os.dup(2)
        except OSError:  # there is no standard error, so libtiff's messages go nowhere
            yield found
            return
        _flush()
        os.dup2(file.fileno(), 2)
        try:
            yield found
        finally:
            _flush()
            os.dup2(before, 2)
            os.close(before)
            _sort_lines(file, found)


def _flush() -> None:
    if sys.stderr is not None:  # pyright: ignore[reportUnnecessaryComparison]
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()


def _sort_lines(file: BinaryIO, found: list[str]) -> None:
    file.seek(0)
    for line in file.read().splitlines(keepends=True):
        if not _MESSAGE.match(line.rstrip(b"\r\n")):
            with contextlib.suppress(OSError):
                os.write(2, line)
        elif not _IS_WARNING.match(line):
            said = line.decode("utf-8", "replace").strip().rstrip(".")
            found.append(said.removeprefix(_PILLOWS_NAME).removeprefix(": "))
