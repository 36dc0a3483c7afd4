"""What a look at a cache found: one form for the terminal, for JSON and for the page."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..store.io.location import Location


@dataclass(frozen=True, slots=True)
class Caption:
    """A text and the language that the corpus says it is in."""

    text: str
    lang: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """An image or a text: one of the cache, or one that the user brought."""

    kind: Literal["image", "text"]

    row: int | None = None
    """Row of an image, text_row of a text; None: it is not of the cache."""

    key: str | None = None
    """Key of an image of the cache."""

    view: int = 0
    """View of an image that was looked at."""

    captions: tuple[Caption, ...] = ()
    """Captions of an image, in the order of the corpus; of a text, itself alone."""

    file: Path | None = None
    """A picture that the user brought."""

    cosine: float | None = None
    """To the query; None where nothing is compared."""

    remarks: tuple[str, ...] = ()
    """What else is to be said of it, in a few words each: ``own caption``, ``same bytes``."""

    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Further numbers, for JSON: plain values by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A query and what was found for it, nearest first; or a group of items that belong together."""

    query: Item | None
    """None: the items are a group, and no one of them was asked for."""

    items: tuple[Item, ...]

    heading: str = ""
    """Over the group, where there is more to say than the query does: ``cluster 3: 4 images``."""

    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Further numbers, for JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that one command found."""

    title: str
    """``Neighbors``, ``Duplicates``, ..."""

    cache: Location
    teachers: tuple[str, ...]
    """The teacher that was asked; two where they were compared."""

    summary: tuple[str, ...]
    """Lines that say what was looked at, with counts."""

    groups: tuple[Group, ...]

    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Counts of what was looked at, for JSON."""

    groups_name: str = ""
    """What the groups are called in JSON, beside the values; empty: JSON is the list of them."""

    items_name: str = "neighbors"
    """What the items of a group are called in JSON."""

    def cut(self, *, groups: int, items: int) -> "Report":
        """Return at most so many groups of so many items each, and a line that says so."""
        shown = tuple(replace(group, items=group.items[:items]) for group in self.groups[:groups])
        if shown == self.groups:
            return self
        line = f"shown here: {len(shown):,} of {len(self.groups):,} rows, {items:,} items of each at most"
        return replace(self, summary=(*self.summary, line), groups=shown)
