"""Tables that name images: .jsonl, .json, .csv, .tsv or .parquet, with a row for each image or caption."""

import contextlib
import errno
import hashlib
import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import ClassVar

from ...errors import SourceError
from ...store.io.location import Location
from ...store.io.parallel import map_parallel
from ...store.io.requests import status_of
from .base import CorpusPart, Source
from .fields.captions import clean_text
from .fields.columns import check_columns, find_columns
from .fields.image_column import text_columns
from .fields.image_values import Base64Image, read_image_value
from .fields.row_fields import RowFields, read_fields
from .fields.unread_columns import UnreadColumns, may_hold_captions, unread_columns
from .listing import is_remote, path_below, printable, size_and_time
from .named_files import NamedFile, find_named
from .packed_rows import image_id
from .readers.parquet_rows import open_parquet, refuse_packed_images
from .readers.table_rows import BadRow, Row, column_names, read_rows
from .readers.text_spans import TextSpans
from .samples import Problem, Sample
from .text import is_missing


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """The values of one row."""

    place: str
    path: str
    """Path of the image, relative to the folder of the table."""

    key: str | None = None
    """Key of a row without one; None: the path without ending."""

    fields: RowFields
    span: tuple[int, int] | None = None
    """Offset and length of the image's base64 text in the table; None for an image that is a file."""

    image_id: str | None = None


@dataclass(frozen=True, slots=True)
class TableSource(Source):
    """The rows of one table; images are named relative to its folder."""

    kind: ClassVar[str] = "table"

    @property
    def root(self) -> Location:
        """Folder of the table."""
        return self.location.parent

    def fingerprint(self) -> str:
        """Return a hash that changes with the size or time of the table, or the columns; not with images."""
        try:
            status = status_of(self.location)
        except OSError as error:
            raise SourceError(f"{self.location} cannot be read ({error.strerror})") from error
        if status is None:
            raise SourceError(f"{self.location} cannot be read ({os.strerror(errno.ENOENT)})")
        parts = f"table\n{self.choice.columns!r}\n{status.num_bytes}\n{status.mtime_ns}\n"
        return hashlib.sha256(parts.encode()).hexdigest()

    def _own_parts(self) -> Iterator[CorpusPart]:
        yield CorpusPart("", self._scan)

    def _scan(self) -> Iterator[Sample | Problem]:
        """Yield a sample for each row, and a problem for each value that cannot be used.

        Raises:
            SourceError: the table is empty, cannot be read, or has no column of images.
        """
        names = column_names(self.location, self.choice.columns)
        check_columns(names, self.choice.columns, self.location)
        found = find_columns(tuple(names), self.choice.columns)
        if found.image is not None and self.location.suffix.lower() == ".parquet":
            refuse_packed_images(self.location, found.image)
        num_rows = 0
        unread = UnreadColumns(
            may_hold_captions(self._texts_among(names), found, self.choice.columns)
        )
        rows = read_rows(self.location, self.choice.columns, [*found.names(), *unread.names])
        entries = _Entries(self, unread).read(rows)
        for entry, file in self._with_files(entries):
            num_rows += 1
            if isinstance(entry, Problem):
                yield entry
            else:
                yield from _sample(entry, file)
        if not num_rows:
            raise SourceError(f"{self.location} has no rows below its column names")
        yield from unread_columns(unread.counts, printable(str(self.location)), found)

    def _texts_among(self, names: Sequence[str]) -> Sequence[str]:
        """Return the columns that can hold text; of a Parquet file those of a type with text."""
        if self.location.suffix.lower() != ".parquet":
            return names
        with open_parquet(self.location) as opened:
            return text_columns(opened.schema_arrow)

    def _with_files(
        self, entries: Iterator[_Entry | Problem]
    ) -> Iterator[tuple[_Entry | Problem, NamedFile]]:
        """Yield the file of each row's image; objects are looked up in parallel."""
        of_table = cache(partial(size_and_time, str(self.location)))

        def find(entry: _Entry | Problem) -> NamedFile:
            if isinstance(entry, Problem):
                return "", (None, None)
            return (entry.path, of_table()) if entry.span else find_named(self.root, entry.path)

        if is_remote(str(self.root)):
            return map_parallel(find, entries)
        return ((entry, find(entry)) for entry in entries)


class _Entries:
    """Converts the rows of one table to entries."""

    def __init__(self, source: TableSource, unread: UnreadColumns) -> None:
        self._source, self._unread = source, unread
        self._spans = TextSpans(str(source.location))
        self._num_rows = 0

    def read(self, rows: Iterable[Row | BadRow]) -> Iterator[_Entry | Problem]:
        """Yield an entry or a problem for each row."""
        with contextlib.closing(self._spans):
            for row in rows:
                try:
                    yield self._entry(row)
                except ValueError as error:
                    yield Problem(place=f"{self._source.location} {row.where}", reason=str(error))
                self._num_rows += 1

    def _entry(self, row: Row | BadRow) -> _Entry:
        if isinstance(row, BadRow):
            raise ValueError(row.reason)
        self._unread.add(row.values)
        found = find_columns(tuple(row.values), self._source.choice.columns)
        image = read_image_value(row.values[found.image] if found.image is not None else None)
        if isinstance(image, Base64Image):
            return self._base64_entry(row, image, read_fields(row.values, found))
        if is_missing(image):
            raise ValueError("no image is named")
        clean_text(image, "the image path")  # only checks it; a file name may end in a space
        assert isinstance(image, str)
        path = path_below(self._source.root, image)
        fields = read_fields(row.values, found)
        return _Entry(place=f"{self._source.location} {row.where}", path=path, fields=fields)

    def _base64_entry(self, row: Row, image: Base64Image, fields: RowFields) -> _Entry:
        table = self._source.location
        if table.suffix.lower() == ".parquet":
            raise ValueError(
                f"the image is base64 text of {len(image.text):,} characters; write it as bytes, in a column "
                "of type binary"
            )
        return _Entry(
            place=f"{table} {row.where}",
            path=table.name,
            key=f"{table.stem}/{self._num_rows}",
            fields=fields,
            span=self._spans.find(image.text),
            image_id=image_id(
                image.name or fields.key, hashlib.sha256(image.text.encode()).hexdigest()
            ),
        )


def _sample(entry: _Entry, file: NamedFile) -> Iterator[Sample | Problem]:
    path, (num_bytes, mtime_ns) = file
    fields = entry.fields
    key = fields.key or entry.key or posixpath.splitext(path)[0]
    offset, length = entry.span or (None, None)
    yield Sample(
        key=key,
        path=path,
        captions=fields.captions,
        label=fields.label,
        offset=offset,
        length=length,
        image_id=entry.image_id,
        num_bytes=num_bytes,
        mtime_ns=mtime_ns,
        place=entry.place,
    )
    for reason in fields.reasons:
        yield Problem(place=entry.place, reason=reason, key=key)
