"""Notes of a plan about parts of a corpus that were not used; stored in the cache, shown by ``info``."""

from dataclasses import dataclass

_MAX_SHOWN_CHARACTERS = 90
"""Most characters of the location of the first item, counted from its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Items of one kind that a source contains and were not used, or that it lacks."""

    source: str
    """Namespace of the source; empty for none."""

    what: str
    """The items, a lower-case plural: ``files ending in .heic, not read as images``."""

    count: int
    first: str = ""
    """Location of the first item; empty if it has none."""

    remedy: str
    """How to use the items, or what was expected instead."""

    def line(self) -> str:
        """Return the note as one line."""
        first = self.first
        if len(first) > _MAX_SHOWN_CHARACTERS:
            first = "..." + first[-_MAX_SHOWN_CHARACTERS:]
        source = f"{self.source}: " if self.source else ""
        return f"{source}{self.what}: {self.count:,}{f', first {first}' if first else ''}; {self.remedy}"
