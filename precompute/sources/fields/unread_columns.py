"""Counting columns of text that are not used as captions, for notes."""

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from ..samples import Unused
from .caption_columns import is_fact, is_fallback
from .captions import has_words
from .columns import FoundColumns, TableColumns

_LOOKED_AT = 1000
"""Rows that are searched for text; in later rows only the columns found by then count."""

_MAX_NAMED = 5
_MAX_NAME = 60


def may_hold_captions(
    names: Sequence[str], found: FoundColumns, wanted: TableColumns
) -> tuple[str, ...]:
    """Return the unused columns that may hold captions, by their names.

    Beside other captions these are titles, descriptions and the like; without any, all columns whose name
    states no fact (a URL, a score). None if the user chose the columns of captions.
    """
    if wanted.captions is not None:
        return ()
    free = [name for name in names if name not in found.names()]
    if any(column.min_words < 2 for column in found.captions):
        return tuple(name for name in free if is_fallback(name))
    return tuple(name for name in free if not is_fact(name))


def unread_columns(counts: Mapping[str, int], place: str, found: FoundColumns) -> Iterator[Unused]:
    """Yield a note for each column, with its number of rows; the most frequent ones."""
    others = "".join(f" --caption-column {shlex.quote(c.name)}" for c in found.captions)
    beside = f" (beside the others:{others})" if others and len(others) <= 80 else ""
    for name, count in sorted(counts.items(), key=lambda each: -each[1])[:_MAX_NAMED]:
        if len(name) <= _MAX_NAME:
            yield Unused(
                place=place,
                reason=f"rows with text in column {name!r}, not used as a caption",
                count=count,
                remedy=f"--caption-column {shlex.quote(name)} uses them{beside}",
            )


class UnreadColumns:
    """Counts the rows with words in a column that is not read."""

    def __init__(self, names: Sequence[str]) -> None:
        """Count columns that may_hold_captions returns."""
        self.names = tuple(names)
        self._num_rows = 0
        self.counts: Counter[str] = Counter()

    def add(self, values: Mapping[str, object]) -> None:
        """Count the columns of a row."""
        self._num_rows += 1
        names = self.names if self._num_rows <= _LOOKED_AT else tuple(self.counts)
        for name in names:
            value = values.get(name)
            if value and (self._num_rows > _LOOKED_AT or _holds_words(value)):
                self.counts[name] += 1


def _holds_words(value: object) -> bool:
    if isinstance(value, list):
        return any(map(_holds_words, cast(list[object], value)))
    return isinstance(value, str) and has_words(value, 2)
