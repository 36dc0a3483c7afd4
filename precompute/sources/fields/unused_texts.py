"""Counting texts beside images that are not read, by ending, for notes."""

import codecs
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ..samples import Unused
from .captions import has_words

_MAX_ENDINGS = 64
HEAD_BYTES = 1024
"""Bytes that are read to recognise a text."""


@dataclass(slots=True)
class _Ending:
    count: int
    first: str
    read_head: Callable[[], bytes]


class UnreadTexts:
    """Counts files or members by ending, and reads the head of the first one of each."""

    def __init__(self, noun: str) -> None:
        """Count what ``noun`` names: ``files`` or ``members``."""
        self._noun = noun
        self._endings: dict[str, _Ending] = {}

    def add(self, ending: str, place: str, read_head: Callable[[], bytes]) -> None:
        """Count one; ``read_head`` returns its first HEAD_BYTES bytes, or raises OSError."""
        found = self._endings.get(ending)
        if found is not None:
            found.count += 1
        elif len(self._endings) < _MAX_ENDINGS:
            self._endings[ending] = _Ending(1, place, read_head)

    def notes(self, otherwise: Callable[[str], tuple[str, str]] | None = None) -> Iterator[Unused]:
        """Yield a note for each ending.

        Args:
            otherwise: returns reason and remedy for a place that is not text; None: no note is made of it.
        """
        for ending, found in self._endings.items():
            if not _holds_words(found.read_head):
                if otherwise is not None:
                    what, remedy = otherwise(found.first)
                    yield Unused(place=found.first, reason=what, count=found.count, remedy=remedy)
            else:
                yield Unused(
                    place=found.first,
                    reason=f"{self._noun} ending in .{ending} that hold text, beside images",
                    count=found.count,
                    remedy=f"--caption-ending .{ending} uses them as captions",
                )


class LetterlessTexts:
    """Counts texts, or lines of them, that are not captions because they have no letter, by ending."""

    def __init__(self, noun: str) -> None:
        """Count what ``noun`` names: ``files``, ``members`` or ``lines of files``."""
        self._noun = noun
        self._endings: dict[str, tuple[int, str]] = {}

    def add(self, counts: Mapping[str, int], place_of: Callable[[str], str]) -> None:
        """Add the counts by ending of one image; ``place_of`` returns the place of a text for its ending."""
        for ending, count in counts.items():
            before, first = self._endings.get(ending) or (0, place_of(ending))
            self._endings[ending] = before + count, first

    def notes(self) -> Iterator[Unused]:
        """Yield a note for each ending."""
        for ending, (count, first) in self._endings.items():
            yield Unused(
                place=first,
                reason=f"{self._noun} ending in .{ending} without a letter, such as labels of YOLO",
                count=count,
                remedy=f"--caption-ending .{ending} uses them as captions",
            )


def _holds_words(read_head: Callable[[], bytes]) -> bool:
    try:
        head = read_head()[:HEAD_BYTES]
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # its last character may be cut
    except (OSError, ValueError):
        return False
    return "\0" not in text and (has_words(text, 2) or text.lstrip().startswith(("{", "[")))
