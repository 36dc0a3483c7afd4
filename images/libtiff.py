"""Errors of libtiff, which it writes to standard error of the process, bypassing Python."""

import contextlib
import os
import re
import sys
import tempfile
import threading
from collections.abc import Generator
from typing import BinaryIO

# One message a line, after the name of a function: "JPEGLib: Unsupported marker type 0x27."
_MESSAGE = re.compile(rb"^[\w.]*: .*\.$")
_IS_WARNING = re.compile(rb"^[\w.]*: Warning, ")

_FILE_NAME = "tempfile.tif: "
"""Pillow's name for the file, which replaces the name of a function in some messages."""

_LOCK = threading.Lock()  # there is one standard error


@contextlib.contextmanager
def capture_errors() -> Generator[list[str]]:
    """Yield a list that contains the errors of libtiff after the block; warnings are dropped.

    During the block standard error is redirected to a file. Lines of other threads are printed after it.
    """
    found: list[str] = []
    with _LOCK, tempfile.TemporaryFile() as file:
        try:
            before = os.dup(2)
        except OSError:  # there is no standard error, so messages are lost
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
            message = line.decode("utf-8", "replace").strip().rstrip(".")
            found.append(message.removeprefix(_FILE_NAME).removeprefix(": "))
