"""A report on a cache, for the terminal, for JSON and for the page."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..store.io.location import Location


@dataclass(frozen=True, slots=True)
class Caption:
    """A text and its language according to the corpus."""

    text: str
    lang: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """An image or a text, of the cache or given by the user."""

    kind: Literal["image", "text"]

    row: int | None = None
    """Row of an image, text_row of a text; None: not in the cache."""

    key: str | None = None
    """Key of an image in the cache."""

    view: int = 0
    """View of an image."""

    captions: tuple[Caption, ...] = ()
    """Captions of an image, in the order of the corpus; for a text, the text itself."""

    file: Path | None = None
    """A picture given by the user."""

    cosine: float | None = None
    """Cosine to the query; None if nothing was compared."""

    remarks: tuple[str, ...] = ()
    """Short remarks, such as ``own caption`` or ``same bytes``."""

    patch_cosines: NDArray[np.float32] | None = field(default=None, compare=False)
    """Cosine of a text to each cell of an image, (rows, columns); None: not computed."""

    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Further values for JSON, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A query and its neighbours, nearest first; or a cluster of items."""

    query: Item | None
    """None: the items are a cluster without a query."""

    items: tuple[Item, ...]

    heading: str = ""
    """Heading above the group, such as ``cluster 3: 4 images``; may be empty."""

    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Further values for JSON, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Result of one command."""

    title: str
    """``Neighbors``, ``Duplicates``, ..."""

    cache: Location
    teachers: tuple[str, ...]
    """The teacher; two if teachers were compared."""

    summary: tuple[str, ...]
    """Summary lines with counts."""

    groups: tuple[Group, ...]

    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Counts for JSON, by name."""

    groups_name: str = ""
    """Name of the groups in JSON, beside the values; empty: JSON is the list of groups."""

    items_name: str = "neighbors"
    """Name of a group's items in JSON."""

    def cut(self, *, groups: int, items: int) -> "Report":
        """Return the first groups and the first items of each; add a line to the summary if any is cut."""
        shown = tuple(replace(group, items=group.items[:items]) for group in self.groups[:groups])
        if shown == self.groups:
            return self
        line = (
            f"showing {len(shown):,} of {len(self.groups):,} rows, at most {items:,} items of each"
        )
        return replace(self, summary=(*self.summary, line), groups=shown)
