"""Writing the catalog's tables in parts of a fixed number of rows."""

from typing import Any, Protocol

import polars as pl

from ...store.format import layout
from ...store.format.catalog import PART_ROWS, Table, encode_part


class Sink(Protocol):
    """Where finished parts go: a Transaction, or a counter in a dry run."""

    def add(self, path: str, data: bytes, **description: Any) -> None:
        """Add one whole file."""
        ...


class PartWriter:
    """Cuts one table into parts of PART_ROWS rows."""

    def __init__(self, table: Table, first_part: int, sink: Sink) -> None:
        self._table: Table = table
        self._part, self._sink = first_part, sink
        self._frames: list[pl.DataFrame] = []
        self._height = 0

    def write(self, frame: pl.DataFrame) -> None:
        """Add rows."""
        self._frames.append(frame)
        self._height += frame.height
        while self._height >= PART_ROWS:
            whole = pl.concat(self._frames)
            self._emit(whole[:PART_ROWS])
            self._frames = [whole[PART_ROWS:]]
            self._height -= PART_ROWS

    def finish(self) -> None:
        """Write the last, shorter part."""
        if self._height:
            self._emit(pl.concat(self._frames))

    def _emit(self, frame: pl.DataFrame) -> None:
        path = layout.catalog_part(self._table, self._part)
        data = encode_part(self._table, frame)
        self._sink.add(path, data, table=self._table, num_rows=frame.height)
        self._part += 1
