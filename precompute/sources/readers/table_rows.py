"""Streaming the rows of a .jsonl, .json, .csv, .tsv or .parquet file, each with its place.

A row that cannot be read is a BadRow, and the next row follows. Only a file that cannot be read at all is an
error. Memory is bounded: one line or Parquet batch at a time.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from ....errors import SourceError
from ....store.io.location import Location
from ..fields.columns import TableColumns
from ..text import name_type, parse_json
from .csv_dialect import csv_names, csv_rows
from .json_records import json_rows
from .lines import fault_of_line, open_text, read_line
from .parquet_rows import parquet_names, parquet_rows

TABLE_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")

_HEAD_ROWS = 1000  # rows of JSON that are read to find its columns


@dataclass(frozen=True, slots=True)
class Row:
    """One row, by column name."""

    where: str
    """``line 17``, or ``row 17`` of a Parquet file; both count from 1."""

    values: dict[str, object]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that could not be read."""

    where: str
    reason: str


def column_names(table: Location, wanted: TableColumns) -> list[str]:
    """Return the names of the columns; of JSON, all names in its first thousand rows.

    Raises:
        SourceError: the table is empty or cannot be read.
    """
    match table.suffix.lower():
        case ".jsonl" | ".ndjson":
            return _names_of(table, _jsonl_rows(table, wanted))
        case ".json":
            return _names_of(table, _rows(json_rows(table, wanted)))
        case ".parquet":
            return parquet_names(table)
        case _:
            return csv_names(table, wanted)


def read_rows(
    table: Location, wanted: TableColumns, columns: Sequence[str] | None = None
) -> Iterator[Row | BadRow]:
    """Yield the rows in order.

    Args:
        table: file with one of TABLE_ENDINGS.
        wanted: columns and encoding that the user chose.
        columns: columns to read of a Parquet file; None reads all. Other files always yield all.

    Raises:
        SourceError: the table cannot be read.
    """
    match table.suffix.lower():
        case ".jsonl" | ".ndjson":
            return _jsonl_rows(table, wanted)
        case ".json":
            return _rows(json_rows(table, wanted))
        case ".parquet":
            return _rows(parquet_rows(table, columns))
        case _:
            return _rows(csv_rows(table, wanted))


def _rows(rows: Iterator[tuple[str, dict[str, object] | str]]) -> Iterator[Row | BadRow]:
    for where, values in rows:
        yield BadRow(where, values) if isinstance(values, str) else Row(where, values)


def _jsonl_rows(table: Location, wanted: TableColumns) -> Iterator[Row | BadRow]:
    with open_text(table, newline="\n", encoding=wanted.encoding) as file:
        for number in itertools.count(1):
            line = read_line(file)
            if not line:
                return
            if line.isspace():
                continue
            yield _jsonl_row(f"line {number}", line)


def _jsonl_row(where: str, line: str) -> Row | BadRow:
    fault = fault_of_line(line)
    if fault is not None:
        return BadRow(where, fault)
    try:
        value = parse_json(line.strip())
    except ValueError as error:
        return BadRow(where, str(error))
    if not isinstance(value, dict):
        return BadRow(where, f"expected an object of named values, got {name_type(value)}")
    return Row(where, cast(dict[str, object], value))


def _names_of(table: Location, rows: Iterator[Row | BadRow]) -> list[str]:
    names: dict[str, None] = {}
    first_bad: BadRow | None = None
    num_good = 0
    for row in itertools.islice(rows, _HEAD_ROWS):
        if isinstance(row, Row):
            names.update(dict.fromkeys(row.values))
            num_good += 1
        elif first_bad is None:
            first_bad = row
    if not num_good:
        if first_bad is None:
            raise _empty(table)
        raise SourceError(
            f"{table} has no readable row ({first_bad.where}: {first_bad.reason}); "
            "expected UTF-8 text of JSON objects, one for each row"
        )
    return list(names)


def _empty(table: Location) -> SourceError:
    return SourceError(f"{table} is empty; expected a row for each image")
