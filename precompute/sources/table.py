"""A table of images and captions: .jsonl, .csv, .tsv or .parquet, a row for each image."""

import hashlib
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import SourceError
from .base import Piece, Problem, Sample
from .captions import clean_text, is_missing, read_cell
from .columns import TableColumns, check_columns, find_columns
from .fields import read_fields
from .parquet_rows import refuse_packed_images
from .paths import path_below, size_and_time
from .rows import BadRow, Row, column_names, read_rows

_CELL_ENDINGS = (".csv", ".tsv")


@dataclass(frozen=True, slots=True)
class TableSource:
    """The rows of one table; images are named relative to its folder."""

    location: Path
    """The table, absolute."""

    columns: TableColumns = field(default_factory=TableColumns)

    @property
    def kind(self) -> str:
        return "table"

    @property
    def root(self) -> Path:
        return self.location.parent

    @property
    def settings(self) -> dict[str, Any]:
        """The columns that the user named."""
        return self.columns.to_settings()

    def fingerprint(self) -> str:
        """Changes with the table's size or time, or the columns asked for; images do not count."""
        try:
            status = self.location.stat()
        except OSError as error:
            raise SourceError(f"{self.location} cannot be read ({error.strerror})") from error
        parts = f"table\n{self.columns!r}\n{status.st_size}\n{status.st_mtime_ns}\n"
        return hashlib.sha256(parts.encode()).hexdigest()

    def pieces(self) -> Iterator[Piece]:
        """Yield the one piece there is."""
        yield Piece("", self.scan)

    def scan(self) -> Iterator[Sample | Problem]:
        """Yield a sample for each row, and a problem for each thing of a row that is no use.

        Raises:
            SourceError: the table is empty, cannot be read, or lacks a column that it needs.
        """
        names = column_names(self.location)
        check_columns(names, self.columns, self.location)
        found = find_columns(tuple(names), self.columns)
        if found.image is not None and self.location.suffix.lower() == ".parquet":
            refuse_packed_images(self.location, found.image)
        num_rows = 0
        for row in read_rows(self.location, found.names()):
            num_rows += 1
            if isinstance(row, BadRow):
                yield Problem(place=f"{self.location} {row.where}", reason=row.reason)
            else:
                yield from self._sample(row)
        if not num_rows:
            raise SourceError(f"{self.location} has no rows below its column names")

    def _sample(self, row: Row) -> Iterator[Sample | Problem]:
        place = f"{self.location} {row.where}"
        values = row.values
        found = find_columns(tuple(values), self.columns)
        try:
            path = self._path(values, found.image)
            fields = read_fields(values, found, read_cell=self._cell)
        except ValueError as error:
            yield Problem(place=place, reason=str(error))
            return
        key = fields.key or posixpath.splitext(path)[0]
        num_bytes, mtime_ns = size_and_time(f"{self.root}/{path}")
        yield Sample(
            key=key,
            path=path,
            captions=fields.captions,
            label=fields.label,
            num_bytes=num_bytes,
            mtime_ns=mtime_ns,
            place=place,
        )
        for reason in fields.reasons:
            yield Problem(place=place, reason=reason, key=key)

    def _path(self, values: dict[str, object], column: str | None) -> str:
        value = values[column] if column is not None else None
        if is_missing(value):
            raise ValueError("no image is named")
        clean_text(value, "the image path")  # for its checks; a file name may end in a space
        assert isinstance(value, str)
        return path_below(self.root, value)

    def _cell(self, value: object) -> object:
        """The value, or the list that a text-only table wrote into one cell."""
        return read_cell(value) if self.location.suffix.lower() in _CELL_ENDINGS else value
