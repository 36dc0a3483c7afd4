"""Texts for people: numbers, plurals, and lines that are safe to print."""

import difflib
import re
from collections.abc import Iterable, Sequence

_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # control characters: line ends, escapes that move the cursor
    "\u2028\u2029\u202a-\u202e\u2066-\u2069"  # line ends; marks that reverse the text after them
    "\ud800-\udfff]"  # bytes of a name that are not UTF-8
)

_MAX_CHARACTERS, _HEAD_CHARACTERS, _ELLIPSIS = 300, 150, " ... "


def one_line(text: str) -> str:
    r"""Return a text as one line that cannot change the state of a terminal.

    Control characters, line ends, marks that change the direction of text, and lone surrogates become
    escapes such as ``\n``, ``\x1b`` and ``\u202e``.
    """
    return _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)


def short_line(text: str) -> str:
    """Return a text as one safe line of at most 300 characters; a longer one loses its middle.

    A message begins with the problem and ends with the remedy.
    """
    line = one_line(text)
    if len(line) <= _MAX_CHARACTERS:
        return line
    tail = line[_HEAD_CHARACTERS + len(_ELLIPSIS) - _MAX_CHARACTERS :]
    return f"{line[:_HEAD_CHARACTERS]}{_ELLIPSIS}{tail}"


def first_line(error: BaseException) -> str:
    """Return the first line of the message of an error, or the name of its class if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def plain_json(text: str) -> str:
    r"""Return a JSON text with unsafe characters, except line ends, escaped as ``\uXXXX``."""
    return _UNSAFE.sub(
        lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text
    )


def format_seconds(seconds: float) -> str:
    """Return a duration: 42 s, 3 min 5 s, 2 h 10 min, 3 d 4 h."""
    seconds = round(seconds)
    for unit, size, smaller, small in (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // small} {smaller}"
    if seconds >= 60:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds} s"


def format_bytes(num_bytes: float) -> str:
    """Return a size in powers of 1000: 38.2 MB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if num_bytes < 1000 or unit == "TB":
            return f"{num_bytes:,.0f} {unit}" if unit == "B" else f"{num_bytes:,.1f} {unit}"
        num_bytes /= 1000
    raise AssertionError


def parse_bytes(text: str) -> int | None:
    """Return the bytes of a size such as 500GB, 1.5 TB or 4096, in powers of 1000; None if invalid."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kKMGTP]?)B?\s*", text, re.ASCII)
    if found is None:
        return None
    power = " KMGTP".index(found[2].upper() or " ")
    return int(float(found[1]) * 1000**power)


def format_count(count: int, noun: str) -> str:
    """Return a number with its noun: 1 query, 1,440 queries."""
    if count == 1:
        return f"1 {noun}"
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count:,} {plural}"


def nearest_name(name: object, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the nearest known one, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(names)}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of equally many cells as lines: the first column to the left, the others to the right."""
    label_width, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [
        "  ".join([label.ljust(label_width), *map(str.rjust, cells, widths)]).rstrip()
        for label, *cells in rows
    ]
