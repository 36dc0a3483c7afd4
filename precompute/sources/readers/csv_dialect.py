"""Rows of a .csv or .tsv file, with detection of the separator and of a header."""

import re
from collections.abc import Iterator

from ....errors import SourceError
from ....store.io.location import Location
from ..fields.columns import TableColumns, find_columns
from ..text import is_unicode
from .csv_records import CsvRecords
from .lines import NOT_TEXT, open_text

_SEPARATORS = (",", "\t", ";", "|")
_NUMBER = re.compile(r"[1-9][0-9]{0,3}")


def csv_names(table: Location, wanted: TableColumns) -> list[str]:
    """Return the names of the columns; ``1``, ``2``, ... without a header.

    Raises:
        SourceError: the table is empty or cannot be read.
    """
    return _Head(table, wanted).names


def csv_rows(
    table: Location, wanted: TableColumns
) -> Iterator[tuple[str, dict[str, object] | str]]:
    """Yield the place of each row, and its cells by name or the reason why it cannot be read.

    Raises:
        SourceError: the table is empty or cannot be read.
    """
    head = _Head(table, wanted)
    with open_text(table, newline="", encoding=wanted.encoding) as file:
        records = CsvRecords(file, head.separator)
        records.num_cells = len(head.names)
        is_names = head.has_names
        for where, record in records:
            if is_names:
                is_names = False
            elif isinstance(record, str):
                yield where, record
            elif not all(is_unicode(cell) for cell in record):
                yield where, NOT_TEXT
            elif len(record) != len(head.names):
                yield (
                    where,
                    f"{len(record)} cells, but {len(head.names)} columns; "
                    'a cell that holds a separator is written in quotes: "a, b"',
                )
            else:
                yield where, dict(zip(head.names, record, strict=True))


class _Head:
    """The first line of a table, its separator, and the names of the columns."""

    def __init__(self, table: Location, wanted: TableColumns) -> None:
        """Read the first line.

        The separator is the usual one for the ending of the file, if the line then names the columns that
        are needed; otherwise the first separator with which it does.
        """
        usual = "\t" if table.suffix.lower() == ".tsv" else ","
        self.separator, self.names = usual, _first_record(table, usual, wanted)
        if not _fit(self.names, wanted):
            others = {s: _try_record(table, s, wanted) for s in _SEPARATORS if s != usual}
            found = [s for s, names in others.items() if _fit(names, wanted)]
            if len(self.names) == 1:  # so that a message can name the columns
                found += [s for s, names in others.items() if len(names) > 1]
            if found:
                self.separator, self.names = found[0], others[found[0]]
        self.has_names = not _are_numbered(self.names, wanted)
        if not self.has_names:
            self.names = [str(number) for number in range(1, len(self.names) + 1)]


def _first_record(table: Location, separator: str, wanted: TableColumns) -> list[str]:
    with open_text(table, newline="", encoding=wanted.encoding) as file:
        for where, record in CsvRecords(file, separator):
            if isinstance(record, str):
                raise SourceError(f"{table} {where} should name the columns: {record}")
            if not all(is_unicode(cell) for cell in record):
                raise SourceError(f"{table} {where} is {NOT_TEXT}")
            return [cell.strip() for cell in record]
    raise SourceError(f"{table} is empty; expected a row for each image")


def _try_record(table: Location, separator: str, wanted: TableColumns) -> list[str]:
    try:
        return _first_record(table, separator, wanted)
    except SourceError:  # a quote inside a cell of this separator
        return []


def _fit(names: list[str], wanted: TableColumns) -> bool:
    """Return whether a first line names, or has, the columns that are needed."""
    if _are_numbered(names, wanted):
        return all(int(number) <= len(names) for number in wanted.named())
    has_named = set(names) >= set(wanted.named())
    return has_named and find_columns(tuple(names), wanted).image is not None


def _are_numbered(names: list[str], wanted: TableColumns) -> bool:
    """Return whether the user named columns by number and the first line has no such names."""
    named = wanted.named()
    return (
        wanted.image is not None
        and all(map(_NUMBER.fullmatch, named))
        and not set(named) & set(names)
    )
