"""Lines of a text file of any size: none too long for the memory, none that stops the others."""

import io
from typing import TextIO, cast

from ...errors import SourceError
from ...store.locations import Location
from .captions import is_unicode
from .paths import open_path

MAX_LINE = 1 << 25
"""Characters; a longer line is a damaged file, and must not fill the memory."""


def open_text(path: Location, *, newline: str | None) -> TextIO:
    """A UTF-8 file, with or without BOM; bytes that are not UTF-8 come as surrogates.

    Args:
        path: the file.
        newline: as for open(): what ends a line.

    Raises:
        SourceError: it cannot be opened.
    """
    try:
        file = io.BufferedReader(cast(io.RawIOBase, open_path(str(path))))
        return io.TextIOWrapper(
            file, encoding="utf-8-sig", errors="surrogateescape", newline=newline
        )
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror})") from error


def read_line(file: TextIO) -> str:
    """The next line, at most MAX_LINE characters of it; the rest of a longer one is passed by."""
    line = file.readline(MAX_LINE)
    rest = line
    while len(rest) == MAX_LINE and not rest.endswith("\n"):
        rest = file.readline(MAX_LINE)
    return line


def fault_of_line(line: str) -> str | None:
    """Why a line is no use; None for a good one."""
    if len(line) >= MAX_LINE:
        return f"the line is longer than {MAX_LINE:,} characters"
    return None if is_unicode(line) else "not UTF-8"
