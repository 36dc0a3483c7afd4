"""Records of a CSV file, resuming after malformed ones."""

import csv
import re
from collections import deque
from collections.abc import Callable, Iterator
from typing import TextIO

from ..fields.image_values import base64_text
from .lines import MAX_LINE, fault_of_line, read_line

_MAX_FIELD = 1 << 24  # characters that an unclosed quote can consume
_FILE = re.compile(r"[^\n]{0,999}\.[A-Za-z][A-Za-z0-9]{1,4}|\S{0,999}/\S{1,999}")
"""A file name: with an ending, or with folders and no blanks."""


class CsvRecords:
    """Records of a CSV file with their line numbers, resuming after malformed records.

    After a malformed record (text after a closing quote, an unclosed quote) reading resumes at its second
    line. Otherwise a stray quote would consume every line up to the next quote. The same holds for a record
    with a cell that spans lines that look like rows: those with as many tabs as a row where tabs separate
    cells, because a caption has hardly ever any; otherwise those with an image where a row has one.
    """

    num_cells: int | None = None
    """Number of cells of a row, once known. A line inside a cell can be a row only if it has as many."""

    def __init__(self, file: TextIO, delimiter: str) -> None:
        csv.field_size_limit(max(csv.field_size_limit(), _MAX_FIELD))
        self._file, self._delimiter = file, delimiter
        self._given_back: deque[str] = deque()
        self._lines: list[str] = []  # of the current record
        self._num_lines = 0  # read so far, without lines to be read again
        self._reader = csv.reader(
            _CsvLines(self._next_line), delimiter=delimiter, strict=True, skipinitialspace=True
        )

    def __iter__(self) -> Iterator[tuple[str, list[str] | str]]:
        """Yield the first line of each record, and its cells or the reason why it cannot be read."""
        while True:
            self._lines.clear()
            where = f"line {self._num_lines + 1}"
            try:
                record = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield where, self._give_up(error)
                continue
            consumed = self._find_consumed(record)
            if consumed is not None:
                last = self._num_lines
                self._give_back()
                yield (
                    where,
                    f"malformed CSV (a quote opens here and closes on line {last}, but line {consumed} "
                    "looks like a row of its own)",
                )
            elif any(cell.strip() for cell in record):
                yield where, record

    def _find_consumed(self, record: list[str]) -> int | None:
        """Return the number of the first line after the first that looks like a row of its own."""
        num_cells = self.num_cells
        if len(self._lines) < 2 or num_cells is None:
            return None
        if self._delimiter == "\t" and num_cells > 1:
            looks_like_row = self._find_tabbed(num_cells)
        else:
            looks_like_row = self._find_imaged(record, num_cells)
        first = self._num_lines - len(self._lines) + 1
        return next((first + i for i in looks_like_row), None)

    def _find_tabbed(self, num_cells: int) -> Iterator[int]:
        """Yield the lines after the first with the tabs of a row, if the record has more than one row has.

        The last line alone may have them: it begins with the end of a cell.
        """
        num_tabs = [line.count("\t") for line in self._lines]
        rows = [i for i, count in enumerate(num_tabs) if count == num_cells - 1]
        if sum(num_tabs) >= num_cells and rows != [len(num_tabs) - 1]:
            yield from (i for i in rows if i > 0)

    def _find_imaged(self, record: list[str], num_cells: int) -> Iterator[int]:
        """Yield the lines after the first with an image in a cell where the record has one.

        In a record with more or fewer cells than a row, in any cell.
        """
        places = range(num_cells)
        if len(record) == num_cells:
            places = [i for i in places if _is_image(record[i])]
        for i, line in enumerate(self._lines[1:], 1):
            cells = _cells_of(line, self._delimiter)
            if len(cells) == num_cells and any(_is_image(cells[place]) for place in places):
                yield i

    def _next_line(self) -> str:
        line = self._given_back.popleft() if self._given_back else read_line(self._file)
        if not line:
            raise StopIteration
        self._lines.append(line)
        self._num_lines += 1
        if len(line) >= MAX_LINE:
            raise csv.Error(fault_of_line(line))
        return line

    def _give_back(self) -> None:
        """Return all lines of the record but the first, to be read again."""
        after_first = self._lines[1:]
        self._given_back.extendleft(reversed(after_first))
        self._num_lines -= len(after_first)

    def _give_up(self, error: csv.Error) -> str:
        self._give_back()
        message = str(error)
        if "unexpected end" in message or "field limit" in message:
            return "malformed CSV (a quote is opened and never closed)"
        if "expected after" in message:
            return (
                'malformed CSV (text follows a closing quote; a quote inside a cell is written "")'
            )
        return f"malformed CSV ({message})"


def _is_image(cell: str) -> bool:
    """Return whether a cell is a file name, or an image as base64 text."""
    cell = cell.strip()
    return _FILE.fullmatch(cell) is not None or base64_text(cell) is not None


def _cells_of(line: str, delimiter: str) -> list[str]:
    """Return the cells of a single line."""
    try:
        return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error:
        return []


class _CsvLines:
    """An iterator that can continue after it ended, unlike a generator."""

    def __init__(self, next_line: Callable[[], str]) -> None:
        self._next_line = next_line

    def __iter__(self) -> "_CsvLines":
        return self

    def __next__(self) -> str:
        return self._next_line()
