"""Rows of a .json file: a list of objects, one list inside an object, or COCO's images and annotations.

Values are read one by one, so that memory holds one row of a list of any length. For COCO's format the names
of the images are kept while the annotations are read, some 200 bytes per image.
"""

import json
from collections.abc import Iterator
from typing import TextIO, cast

from ....errors import SourceError
from ....store.io.location import Location
from ..fields.columns import TableColumns
from ..text import is_unicode, name_type
from .lines import MAX_LINE, NOT_TEXT, open_text

_CHUNK = 1 << 16
_BLANK = " \t\n\r"
_IMAGES, _ANNOTATIONS = "images", "annotations"

_Records = Iterator[tuple[str, dict[str, object] | str]]


def json_rows(table: Location, wanted: TableColumns) -> _Records:
    """Yield the place of each row, and its values or the reason why it cannot be read.

    Raises:
        SourceError: it is not JSON, or has no list of rows.
    """
    lists = _lists_of(table, wanted)
    if lists >= {_IMAGES, _ANNOTATIONS}:
        yield from _coco_rows(table, wanted)
        return
    if len(lists) != 1:
        names = ", ".join(sorted(name for name in lists if name)) or "none"
        raise SourceError(
            f"{table} should be a list of rows, or an object with one list of rows, it has lists: "
            f"{names[:80]}; write one object per line as .jsonl"
        )
    yield from _rows_of(table, wanted, next(iter(lists)))


def _coco_rows(table: Location, wanted: TableColumns) -> _Records:
    """Yield a row for each image, then one for each caption: rows of one image become one sample."""
    names: dict[object, object] = {}
    for where, image in _rows_of(table, wanted, _IMAGES):
        if isinstance(image, str):
            yield where, image
            continue
        names[_hashable(image.get("id"))] = image.get("file_name")
        yield where, {"image": image.get("file_name"), "caption": None}
    for where, entry in _rows_of(table, wanted, _ANNOTATIONS):
        if isinstance(entry, str):
            yield where, entry
        elif "caption" in entry:
            of = _hashable(entry.get("image_id"))
            if of in names:
                yield where, {"image": names[of], "caption": entry["caption"]}
            else:
                yield (
                    where,
                    f"its image_id {str(of)[:40]!r} does not belong to an image of the file",
                )


def _hashable(value: object) -> object:
    return value if isinstance(value, int | str) else None


def _rows_of(table: Location, wanted: TableColumns, name: str) -> _Records:
    """Yield the entries of one list of a file; the name is empty if the file is a list."""
    label = f"{name} " if name else ""
    with open_text(table, newline="", encoding=wanted.encoding) as file:
        for of, number, value in _Reader(table, file).entries():
            if of != name or number == 0:
                continue
            where = f"{label}entry {number}"
            if isinstance(value, dict):
                yield where, cast(dict[str, object], value)
            else:
                yield where, f"expected an object of named values, got {name_type(value)}"


def _lists_of(table: Location, wanted: TableColumns) -> set[str]:
    """Return the names of the lists of objects in a file; empty for a file that is a list."""
    found: set[str] = set()
    with open_text(table, newline="", encoding=wanted.encoding) as file:
        for of, number, value in _Reader(table, file).entries():
            if number == 1 and isinstance(value, dict):
                found.add(of)
                if not of:
                    break
    return found


class _Reader:
    """Reads values from a text, a part of which is in memory."""

    def __init__(self, table: Location, file: TextIO) -> None:
        self._table, self._file = table, file
        self._text, self._at, self._is_end = "", 0, False
        self._decoder = json.JSONDecoder()

    def entries(self) -> Iterator[tuple[str, int, object]]:
        """Yield name of the list, number from 1, and value of each entry; other values with number 0."""
        if self._peek() == "[":
            for number, value in enumerate(self._list(), 1):
                yield "", number, value
            return
        if self._peek() != "{":
            raise SourceError(
                f"{self._table} should begin with [ or {{: a list of rows, or an object"
            )
        self._at += 1
        while self._peek() != "}":
            name = self._value()
            self._take(":")
            if not isinstance(name, str):
                raise self._fault("a name in quotes")
            if self._peek() == "[":
                for number, value in enumerate(self._list(), 1):
                    yield name, number, value
            else:
                yield name, 0, self._value()
            if self._peek() != "}":
                self._take(",")

    def _list(self) -> Iterator[object]:
        self._take("[")
        while self._peek() != "]":
            yield self._value()
            if self._peek() != "]":
                self._take(",")
        self._at += 1

    def _value(self) -> object:
        """Return the value that begins here; reads until it is complete."""
        self._peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except RecursionError:
                raise self._fault("less deeply nested values") from None
            except ValueError:
                if self._is_end or len(self._text) - self._at > MAX_LINE:
                    raise self._fault("a value") from None
                self._read(
                    max(_CHUNK, len(self._text) - self._at)
                )  # doubled, so that parsing stays linear
                continue
            if end == len(self._text) and not self._is_end:
                self._read(_CHUNK)  # a number may continue
                continue
            self._at = end
            return value

    def _peek(self) -> str:
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _BLANK:
                    return self._text[self._at]
                self._at += 1
            if self._is_end:
                raise self._fault("more")
            self._read(_CHUNK)

    def _take(self, expected: str) -> None:
        if self._peek() != expected:
            raise self._fault(expected)
        self._at += 1

    def _read(self, num_characters: int) -> None:
        more = self._file.read(num_characters)
        self._is_end = not more
        self._text, self._at = self._text[self._at :] + more, 0

    def _fault(self, expected: str) -> SourceError:
        here = self._text[self._at : self._at + 30]
        if not is_unicode(here):
            return SourceError(f"{self._table} is {NOT_TEXT}")
        return SourceError(
            f"{self._table} is not JSON: expected {expected} at {here!r}; if it has one object per line, "
            "rename it to .jsonl"
        )
