"""Lines of a text file of any size, with bounded memory, in any encoding."""

import codecs
import io
from typing import TextIO, cast

from ....errors import SourceError
from ....store.io.location import Location
from ..listing import open_path
from ..text import is_unicode

MAX_LINE = 1 << 25
"""Longest line in characters; a longer one is damaged and would fill the memory."""


NOT_TEXT = "not UTF-8; save it as UTF-8, or name its encoding, such as --encoding latin-1"
"""Why a line, or a whole table, cannot be used."""

_LONE = "siglip2-cache.lone"
codecs.register_error(_LONE, lambda error: ("\udcff", cast(UnicodeDecodeError, error).end))
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def open_text(path: Location, *, newline: str | None, encoding: str | None = None) -> TextIO:
    """Return an open text file; bytes that cannot be decoded become surrogates.

    Args:
        path: the file.
        newline: as for open().
        encoding: of the file; None: UTF-8, or UTF-16 with a byte order mark.

    Raises:
        SourceError: it cannot be opened, or looks like UTF-16 without a byte order mark.
    """
    try:
        file = io.BufferedReader(cast(io.RawIOBase, open_path(str(path))))
        head = file.peek(2)[:2]
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror})") from error
    if encoding is None and len(head) == 2 and 0 in head:
        file.close()
        order = "le" if head[1] == 0 else "be"
        raise SourceError(
            f"{path} is not UTF-8, it looks like UTF-16 without a mark; use --encoding utf-16-{order}"
        )
    encoding = encoding or ("utf-16" if head in _UTF16 else "utf-8-sig")
    errors = "surrogateescape" if encoding == "utf-8-sig" else _LONE
    return io.TextIOWrapper(file, encoding=encoding, errors=errors, newline=newline)


def read_line(file: TextIO) -> str:
    """Return the next line, at most MAX_LINE characters of it; the rest of a longer line is skipped."""
    line = file.readline(MAX_LINE)
    rest = line
    while len(rest) == MAX_LINE and not rest.endswith("\n"):
        rest = file.readline(MAX_LINE)
    return line


def fault_of_line(line: str) -> str | None:
    """Return why a line cannot be used; None for a good one."""
    if len(line) >= MAX_LINE:
        return f"the line is longer than {MAX_LINE:,} characters"
    return None if is_unicode(line) else NOT_TEXT
