"""Records of a CSV file, going on behind broken ones."""

import csv
from collections import deque
from collections.abc import Callable, Iterator
from typing import TextIO

from .lines import MAX_LINE, fault_of_line, read_line

_MAX_FIELD = 1 << 24  # characters; a quote that is never closed swallows no more than this


class CsvRecords:
    """Records of a CSV file with their line numbers, able to go on behind a broken one.

    A broken record (text after a closing quote, a quote never closed) is given up at its first
    line, and reading starts again at its second: otherwise one stray quote would take every line
    up to the next quote with it.
    """

    def __init__(self, file: TextIO, delimiter: str) -> None:
        csv.field_size_limit(max(csv.field_size_limit(), _MAX_FIELD))
        self._file = file
        self._given_back: deque[str] = deque()
        self._lines: list[str] = []  # of the record at hand
        self._num_lines = 0  # handed out so far, without those given back
        self._reader = csv.reader(
            _CsvLines(self._next_line), delimiter=delimiter, strict=True, skipinitialspace=True
        )

    def __iter__(self) -> Iterator[tuple[str, list[str] | str]]:
        """Yield where each record starts, and its cells or the reason why it has none."""
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
            if any(cell.strip() for cell in record):
                yield where, record

    def _next_line(self) -> str:
        line = self._given_back.popleft() if self._given_back else read_line(self._file)
        if not line:
            raise StopIteration
        self._lines.append(line)
        self._num_lines += 1
        if len(line) >= MAX_LINE:
            raise csv.Error(fault_of_line(line))
        return line

    def _give_up(self, error: csv.Error) -> str:
        after_first = self._lines[1:]
        self._given_back.extendleft(reversed(after_first))
        self._num_lines -= len(after_first)
        message = str(error)
        if "unexpected end" in message or "field limit" in message:
            return "malformed CSV (a quote is opened and never closed)"
        if "expected after" in message:
            return (
                'malformed CSV (text follows a closing quote; a quote inside a cell is written "")'
            )
        return f"malformed CSV ({message})"


class _CsvLines:
    """An iterator that csv may ask again after it ended: a generator would stay ended."""

    def __init__(self, next_line: Callable[[], str]) -> None:
        self._next_line = next_line

    def __iter__(self) -> "_CsvLines":
        return self

    def __next__(self) -> str:
        return self._next_line()
