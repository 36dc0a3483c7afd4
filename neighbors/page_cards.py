"""From a report to what its page shows: cards in rows, and two tables that hold each thing once.

An image is often near many queries. So a card holds only what differs from one showing to the next
(its cosine, its remarks) and names a line of a table for the rest.
"""

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..formatting import one_line
from .report import Caption, Group, Item, Report
from .thumbnails import MEDIA_TYPE, Picture, Thumbnail

_CARD_CHARACTERS = 280
"""Of a caption on a card, which shows three lines of it; the whole text stands in the table once."""

_NO_CAPTION = Caption("")
_Identity = tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One showing of an item."""

    item: int
    """Its line in the table of items."""

    kind: str
    picture: int | None
    """Its line in the table of pictures; None: it is a text, or there is nothing to show."""

    name: str
    """The key, the name of the file, or the number of the text."""

    caption: Caption
    """The first caption, cut short; of a text itself. Empty where there is none."""

    num_more: int
    """Captions beside the first."""

    cosine: str
    """For people; empty where nothing was compared."""

    bar: int
    """Percent of the largest cosine of its row; 0 for none and for a negative one."""

    remarks: tuple[str, ...]
    state: str
    reason: str
    """Why the picture is missing or not to be trusted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CardRow:
    """A group: its heading, if it has one of its own, and its cards."""

    title: str
    """What it is called where it is not seen: for screen readers."""

    heading: str
    query: Card | None
    cards: tuple[Card, ...]


@dataclass(slots=True)
class CardTables:
    """The cards of a page, and the tables that they name lines of."""

    thumbnails: Mapping[Picture, Thumbnail]
    items: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """What is told of each item, as JSON values."""

    pictures: list[str] = field(default_factory=list[str])
    """A data URI of each picture; equal ones are one."""

    _item_lines: dict[_Identity, int] = field(default_factory=dict[_Identity, int])
    _picture_lines: dict[bytes, int] = field(default_factory=dict[bytes, int])

    def row(self, group: Group, number: int) -> CardRow:
        """Return what is shown of a group, the ``number``-th from 1 of its page."""
        known = [item.cosine for item in group.items if item.cosine is not None]
        largest = max(known, default=0.0)
        query = None if group.query is None else self._card(group.query, largest)
        said = group.heading or (query.caption.text or query.name if query else "a group")
        return CardRow(
            title=f"Row {number}: {said}",
            heading=group.heading,
            query=query,
            cards=tuple(self._card(item, largest) for item in group.items),
        )

    def _card(self, item: Item, largest: float) -> Card:
        line = self._line_of(item)
        told = self.items[line]
        first = item.captions[0] if item.captions else _NO_CAPTION
        return Card(
            item=line,
            kind=item.kind,
            picture=told["picture"],
            name=told["name"],
            caption=Caption(_shortened(first.text), first.lang),
            num_more=max(0, len(item.captions) - 1),
            cosine="" if item.cosine is None else cosine_text(item.cosine),
            bar=_percent(item.cosine, largest),
            remarks=tuple(one_line(remark) for remark in item.remarks),
            state=told["state"],
            reason=told["reason"],
        )

    def _line_of(self, item: Item) -> int:
        identity = (item.kind, item.row, item.view, item.file, item.key, item.captions)
        if identity not in self._item_lines:
            self._item_lines[identity] = len(self.items)
            self.items.append(self._told(item))
        return self._item_lines[identity]

    def _told(self, item: Item) -> dict[str, Any]:
        name = picture_of(item)
        thumbnail = Thumbnail() if name is None else self.thumbnails[name]
        return {
            "kind": item.kind,
            "name": _name_of(item),
            "place": _place_of(item),
            "captions": [[caption.text, caption.lang or ""] for caption in item.captions],
            "picture": self._picture_line(thumbnail.data),
            "state": thumbnail.state,
            "reason": one_line(thumbnail.reason),
        }

    def _picture_line(self, data: bytes) -> int | None:
        if not data:
            return None
        if data not in self._picture_lines:
            self._picture_lines[data] = len(self.pictures)
            self.pictures.append(f"data:{MEDIA_TYPE};base64,{base64.b64encode(data).decode()}")
        return self._picture_lines[data]


def pictures_of(report: Report) -> Iterator[Picture]:
    """Yield the picture of every image that a report shows, as often as it is shown."""
    for group in report.groups:
        for item in (group.query, *group.items):
            name = None if item is None else picture_of(item)
            if name is not None:
                yield name


def picture_of(item: Item) -> Picture | None:
    """Return what the picture of an item is called; None where it has none."""
    if item.kind == "text":
        return None
    if item.file is not None:
        return item.file
    return None if item.row is None else (item.row, item.view)


def cosine_text(cosine: float) -> str:
    """Return a cosine for people: four places, a true minus sign."""
    return f"{cosine:.4f}".replace("-", "\N{MINUS SIGN}")


def _percent(cosine: float | None, largest: float) -> int:
    if cosine is None or not cosine > 0 or not largest > 0:  # NaN is not above 0 either
        return 0
    return round(100 * min(1.0, cosine / largest))


def _name_of(item: Item) -> str:
    if item.key is not None:
        return one_line(item.key)
    if item.file is not None:
        return one_line(item.file.name)
    if item.row is not None:
        return f"{item.kind} {item.row:,}"
    return f"a new {item.kind}"


def _place_of(item: Item) -> str:
    """Return where an item stands in the cache, in words."""
    if item.row is None:
        return "not of the cache"
    if item.kind == "text":
        return f"text row {item.row:,}"
    return f"row {item.row:,}" + (f", view {item.view}" if item.view else "")


def _shortened(text: str) -> str:
    if len(text) <= _CARD_CHARACTERS:
        return text
    return text[: _CARD_CHARACTERS - 1].rstrip() + "…"
