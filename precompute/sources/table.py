"""A table of images and captions: .jsonl, .json, .csv, .tsv or .parquet, a row for each image or caption."""

import errno
import hashlib
import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ...errors import SourceError
from ...store.io.location import Location
from ...store.io.parallel import map_parallel
from ...store.io.requests import status_of
from .base import CorpusPart, Source
from .fields.captions import clean_text
from .fields.columns import check_columns, find_columns
from .fields.image_column import text_columns
from .fields.image_values import named_file
from .fields.row_fields import RowFields, read_fields
from .fields.unread_columns import UnreadColumns, may_hold_captions, unread_columns
from .listing import SizeAndTime, is_remote, path_below, printable, size_and_time
from .readers.parquet_rows import open_parquet, refuse_packed_images
from .readers.table_rows import BadRow, Row, column_names, read_rows
from .samples import Problem, Sample
from .text import is_missing


@dataclass(frozen=True, slots=True)
class _Entry:
    """What a row says."""

    place: str
    path: str
    """Of the image, relative to the table's folder."""

    fields: RowFields


@dataclass(frozen=True, slots=True)
class TableSource(Source):
    """The rows of one table; images are named relative to its folder."""

    kind: ClassVar[str] = "table"

    @property
    def root(self) -> Location:
        return self.location.parent

    def fingerprint(self) -> str:
        """Changes with the table's size or time, or the columns asked for; images do not count."""
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
        """Yield a sample for each row, and a problem for each thing of a row that is no use.

        Raises:
            SourceError: the table is empty, cannot be read, or lacks a column that it needs.
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
        entries = (self._entry(row, unread) for row in rows)
        for entry, (num_bytes, mtime_ns) in self._with_facts(entries):
            num_rows += 1
            if isinstance(entry, Problem):
                yield entry
            else:
                yield from _sample(entry, num_bytes, mtime_ns)
        if not num_rows:
            raise SourceError(f"{self.location} has no rows below its column names")
        yield from unread_columns(unread.counts, printable(str(self.location)), found)

    def _texts_among(self, names: Sequence[str]) -> Sequence[str]:
        """Return the columns that can hold text: of a Parquet file those whose type says so."""
        if self.location.suffix.lower() != ".parquet":
            return names
        with open_parquet(self.location) as opened:
            return text_columns(opened.schema_arrow)

    def _with_facts(
        self, entries: Iterator[_Entry | Problem]
    ) -> Iterator[tuple[_Entry | Problem, SizeAndTime]]:
        """Yield size and time of each row's image; objects are asked for theirs many at a time."""
        prefix = f"{self.root}/"

        def facts(entry: _Entry | Problem) -> SizeAndTime:
            return (
                (None, None) if isinstance(entry, Problem) else size_and_time(prefix + entry.path)
            )

        if is_remote(prefix):
            return map_parallel(facts, entries)
        return ((entry, facts(entry)) for entry in entries)

    def _entry(self, row: Row | BadRow, unread: UnreadColumns) -> _Entry | Problem:
        place = f"{self.location} {row.where}"
        if isinstance(row, BadRow):
            return Problem(place=place, reason=row.reason)
        values = row.values
        unread.add(values)
        found = find_columns(tuple(values), self.choice.columns)
        try:
            path = self._path(values, found.image)
            fields = read_fields(values, found)
        except ValueError as error:
            return Problem(place=place, reason=str(error))
        return _Entry(place, path, fields)

    def _path(self, values: dict[str, object], column: str | None) -> str:
        value = named_file(values[column] if column is not None else None)
        if is_missing(value):
            raise ValueError("no image is named")
        clean_text(value, "the image path")  # for its checks; a file name may end in a space
        assert isinstance(value, str)
        return path_below(self.root, value)


def _sample(
    entry: _Entry, num_bytes: int | None, mtime_ns: int | None
) -> Iterator[Sample | Problem]:
    fields = entry.fields
    key = fields.key or posixpath.splitext(entry.path)[0]
    yield Sample(
        key=key,
        path=entry.path,
        captions=fields.captions,
        label=fields.label,
        num_bytes=num_bytes,
        mtime_ns=mtime_ns,
        place=entry.place,
    )
    for reason in fields.reasons:
        yield Problem(place=entry.place, reason=reason, key=key)
