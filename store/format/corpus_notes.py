"""What a plan says of a corpus that holds more than was taken: kept in the cache, shown by ``info``."""

from dataclasses import dataclass

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
