"""What a plan says of a corpus that holds more than was taken: kept in the cache, shown by ``info``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_MAX_SHOWN_CHARACTERS = 90
"""Of the place of a note's first thing, from its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Things of one kind that were seen in a source and not used, or that it lacks."""

    source: str
    """Name of the source; empty for none."""

    what: str
    """What they are, a lower-case plural: ``files ending in .heic, not read as images``."""

    count: int
    first: str = ""
    """Where the first of them is; empty where they have no place."""

    remedy: str
    """What takes them, or what was looked for instead."""

    def line(self) -> str:
        """Return the note for people, one line."""
        first = self.first
        if len(first) > _MAX_SHOWN_CHARACTERS:
            first = "..." + first[-_MAX_SHOWN_CHARACTERS:]
        source = f"{self.source}: " if self.source else ""
        return f"{source}{self.what}: {self.count:,}{f', first {first}' if first else ''}; {self.remedy}"


def read_notes(written: Sequence[Mapping[str, Any]]) -> tuple[Note, ...]:
    """Return the notes of a generation's record; a record of an older program has none."""
    return tuple(
        Note(
            source=str(each["source"]),
            what=str(each["what"]),
            count=int(each["count"]),
            first=str(each["first"]),
            remedy=str(each["remedy"]),
        )
        for each in written
    )
