"""The table that describes the images of a folder: ``metadata.csv``, ``.jsonl`` or ``.parquet``.

Source: Hugging Face datasets, "Create an image dataset", ImageFolder.
"""

import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ...errors import SourceError
from ...store.io.location import Location
from .fields.caption_columns import squash
from .fields.captions import clean_text
from .fields.columns import IMAGE_NAMES, FoundColumns, TableColumns, find_columns, first_column
from .fields.row_fields import read_fields
from .listing import printable
from .named_files import composed, with_slashes
from .readers.table_rows import BadRow, column_names, read_rows
from .samples import Caption, Problem
from .text import is_missing

TABLE_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet", "metadata.tsv")
"""Names of such a table. Of several in a folder the first is read."""

_FILE_NAME = "filename"
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class ImageRow:
    """What the rows of one image say."""

    captions: tuple[Caption, ...]
    label: str | None


class FolderTable:
    """One table, read on first use and kept in memory: some 400 bytes per row.

    For tens of millions of rows, use the table itself as the source, which is streamed.
    """

    def __init__(self, table: Location, columns: TableColumns) -> None:
        self._table = table
        self._columns = replace(columns, image=None, key=None)
        self._rows: dict[str, ImageRow] | None = None
        self._used: set[str] = set()
        self._problems: list[Problem] = []

    def row_of(self, path: str) -> ImageRow | None:
        """Return the row of an image, by its path below the table's folder, or None."""
        if self._rows is None:
            self._rows = {}
            self._read(self._rows)
        path = composed(path)
        found = self._rows.get(path)
        if found is not None:
            self._used.add(path)
        return found

    def problems(self) -> Iterator[Problem]:
        """Yield what is wrong with the table, and how many of its images do not exist."""
        yield from self._problems
        gone = [path for path in self._rows or () if path not in self._used]
        place = printable(str(self._table))
        if gone:
            names = ", ".join(printable(path[-60:]) for path in gone[:_SHOWN])
            reason = f"{len(gone):,} images that it names are not in its folder: {names}"
            yield Problem(place=place, reason=reason + (", ..." if len(gone) > _SHOWN else ""))

    def _read(self, rows: dict[str, ImageRow]) -> None:
        place = printable(str(self._table))
        try:
            names = column_names(self._table, self._columns)
            files = _file_columns(names)
            if not files:
                raise SourceError(f"{self._table} has no column file_name; it describes no image")
            free = tuple(name for name in names if name not in files)
            found = find_columns(free, self._columns)
            for row in read_rows(self._table, self._columns, [*files, *found.names()]):
                where = f"{place} {row.where}"
                if isinstance(row, BadRow):
                    self._problems.append(Problem(place=where, reason=row.reason))
                else:
                    self._add(rows, where, row.values, files)
        except SourceError as error:
            reason = str(error).removeprefix(str(self._table)).lstrip(": ")
            self._problems.append(Problem(place=place, reason=reason))

    def _add(
        self, rows: dict[str, ImageRow], where: str, values: dict[str, object], files: Sequence[str]
    ) -> None:
        found = _fields_of(values, files, self._columns)
        try:
            fields = read_fields(values, found)
            paths = [_path(values[name]) for name in files if not is_missing(values.get(name))]
        except ValueError as error:
            self._problems.append(Problem(place=where, reason=str(error)))
            return
        self._problems += [Problem(place=where, reason=reason) for reason in fields.reasons]
        for path in paths:
            before = rows.get(path)
            captions = (*before.captions, *fields.captions) if before else fields.captions
            label = fields.label or (before.label if before else None)
            rows[path] = ImageRow(tuple(dict.fromkeys(captions)), label)


def _fields_of(values: Iterable[str], files: Sequence[str], columns: TableColumns) -> FoundColumns:
    found = find_columns(tuple(name for name in values if name not in files), columns)
    return replace(found, image=None, key=None)


def _file_columns(names: Sequence[str]) -> tuple[str, ...]:
    """Return the columns that name images: file_name, any ``*_file_name``, else a usual name."""
    found = tuple(name for name in names if squash(name).endswith(_FILE_NAME))
    usual = first_column(names, IMAGE_NAMES)
    return found or ((usual,) if usual is not None else ())


def _path(value: object) -> str:
    """Return a path relative to the folder of the table."""
    text = clean_text(value, "the file name")
    return composed(posixpath.normpath(with_slashes(text)))
