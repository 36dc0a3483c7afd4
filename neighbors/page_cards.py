"""The data of a page: rows of cards, and two tables that hold each item and each picture once.

An image is often near many queries. So a card holds only what differs between its appearances (cosine,
remarks) and refers to a line of a table for the rest.
"""

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..formatting import one_line
from .patch_cosines import draw_over, range_of
from .report import Caption, Group, Item, Report
from .thumbnails import MEDIA_TYPE, Picture, Thumbnail

_CARD_CHARACTERS = 280
"""Most characters of a caption on a card, which shows three lines; the whole text is in the table."""

_NO_CAPTION = Caption("")
_Identity = tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One appearance of an item."""

    item: int
    """Line in the table of items."""

    kind: str
    picture: int | None
    """Line in the table of pictures; None: a text, or no picture."""

    name: str
    """Key, file name, or number of the text."""

    caption: Caption
    """First caption of an image, or the text, shortened; may be empty."""

    num_more: int
    """Further captions."""

    cosine: str
    """Cosine as text; empty if nothing was compared."""

    bar: int
    """Percent of the largest cosine of the row; 0 without a cosine or for a negative one."""

    remarks: tuple[str, ...]
    state: str
    reason: str
    """Why the picture is missing or not the one the teacher saw."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CardRow:
    """A group of the report: its heading, if any, and its cards."""

    title: str
    """Name for screen readers."""

    heading: str
    query: Card | None
    cards: tuple[Card, ...]


@dataclass(slots=True)
class CardTables:
    """Makes the cards of a page and fills the tables they refer to."""

    thumbnails: Mapping[Picture, Thumbnail]
    items: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Details of each item, as JSON values."""

    pictures: list[str] = field(default_factory=list[str])
    """Data URI of each different picture."""

    _item_lines: dict[_Identity, int] = field(default_factory=dict[_Identity, int])
    _picture_lines: dict[bytes, int] = field(default_factory=dict[bytes, int])

    def row(self, group: Group, number: int) -> CardRow:
        """Return the row of a group, number 1, 2, ... of the page."""
        cosines = [item.cosine for item in group.items if item.cosine is not None]
        largest = max(cosines, default=0.0)
        heat = range_of(group.items)
        query = None if group.query is None else self._card(group.query, largest, heat)
        name = group.heading or (query.caption.text or query.name if query else "a group")
        return CardRow(
            title=f"Row {number}: {name}",
            heading=group.heading,
            query=query,
            cards=tuple(self._card(item, largest, heat) for item in group.items),
        )

    def picture_uri(self, picture: Picture) -> str | None:
        """Return the data URI of a picture, outside of the table; None if there is none."""
        thumbnail = self.thumbnails.get(picture)
        return _uri(thumbnail.data) if thumbnail is not None and thumbnail.data else None

    def _card(self, item: Item, largest: float, heat: tuple[float, float]) -> Card:
        line = self._line_of(item)
        details = self.items[line]
        first = item.captions[0] if item.captions else _NO_CAPTION
        return Card(
            item=line,
            kind=item.kind,
            picture=self._heated(item, heat)
            if item.patch_cosines is not None
            else details["picture"],
            name=details["name"],
            caption=Caption(_shortened(first.text), first.lang),
            num_more=max(0, len(item.captions) - 1),
            cosine="" if item.cosine is None else cosine_text(item.cosine),
            bar=_percent(item.cosine, largest),
            remarks=tuple(one_line(remark) for remark in item.remarks),
            state=details["state"],
            reason=details["reason"],
        )

    def _line_of(self, item: Item) -> int:
        identity = (item.kind, item.row, item.view, item.file, item.key, item.captions)
        if identity not in self._item_lines:
            self._item_lines[identity] = len(self.items)
            self.items.append(self._details(item))
        return self._item_lines[identity]

    def _details(self, item: Item) -> dict[str, Any]:
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

    def _heated(self, item: Item, heat: tuple[float, float]) -> int | None:
        """Return the picture of an item under its heat map; the details show it without."""
        name = picture_of(item)
        data = b"" if name is None else self.thumbnails[name].data
        if not data or item.patch_cosines is None:
            return None
        return self._picture_line(draw_over(data, item.patch_cosines, heat, MEDIA_TYPE))

    def _picture_line(self, data: bytes) -> int | None:
        if not data:
            return None
        if data not in self._picture_lines:
            self._picture_lines[data] = len(self.pictures)
            self.pictures.append(_uri(data))
        return self._picture_lines[data]


def pictures_of(report: Report) -> Iterator[Picture]:
    """Yield the picture of every image of a report, with repeats."""
    for group in report.groups:
        for item in (group.query, *group.items):
            name = None if item is None else picture_of(item)
            if name is not None:
                yield name


def _uri(data: bytes) -> str:
    return f"data:{MEDIA_TYPE};base64,{base64.b64encode(data).decode()}"


def picture_of(item: Item) -> Picture | None:
    """Return the picture that belongs to an item; None for a text."""
    if item.kind == "text":
        return None
    if item.file is not None:
        return item.file
    return None if item.row is None else (item.row, item.view)


def cosine_text(cosine: float) -> str:
    """Return a cosine as text: four places, with a true minus sign."""
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
    """Return the row of an item in the cache, in words."""
    if item.row is None:
        return "not in the cache"
    if item.kind == "text":
        return f"text row {item.row:,}"
    return f"row {item.row:,}" + (f", view {item.view}" if item.view else "")


def _shortened(text: str) -> str:
    if len(text) <= _CARD_CHARACTERS:
        return text
    return text[: _CARD_CHARACTERS - 1].rstrip() + "…"
