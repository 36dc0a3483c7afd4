"""Reading single rows from an object store by ranges, if its shards do not fit on this machine.

Shape letters in this file: B = rows requested, R = rows of a run, S = stored values of a vector.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import DamagedCacheError
from ..io.parallel import map_parallel
from ..io.requests import read_bytes
from .shard_files import ShardFiles

_GAP_ROWS = 8
"""Rows between two requested rows that are read too, to save a request."""


class RowRequests:
    """Reads rows with one request for each run of rows, in parallel."""

    def __init__(self, files: ShardFiles) -> None:
        self._files = files
        self._row_bytes = files.array.vector_bytes

    def read_into(
        self,
        unit_B: NDArray[np.int64],
        position_B: NDArray[np.int64],
        out_BS: NDArray[Any],
    ) -> None:
        """Fill ``out_BS`` with stored vectors.

        Args:
            unit_B: the unit of each vector.
            position_B: its position in the unit, row * views + view.
            out_BS: the vectors.

        Raises:
            DamagedCacheError: a shard is missing or too short.
            StorageError: the store does not respond.
        """
        order_B = np.lexsort((position_B, unit_B))
        # New threads for each call: a forked process would wait forever for threads of its parent, and
        # the first request that fails cancels the rest.
        found = map_parallel(
            lambda run_R: self._read_run(unit_B[run_R], position_B[run_R]),
            _runs(unit_B, position_B, order_B),
        )
        for run_R, rows_RS in found:
            out_BS[run_R] = rows_RS

    def _read_run(self, unit_R: NDArray[np.int64], position_R: NDArray[np.int64]) -> NDArray[Any]:
        unit, first, last = int(unit_R[0]), int(position_R[0]), int(position_R[-1])
        num_bytes = (last - first + 1) * self._row_bytes
        try:
            data = read_bytes(self._files.location(unit), first * self._row_bytes, num_bytes)
        except FileNotFoundError:
            data = b""
        if len(data) != num_bytes:
            raise DamagedCacheError(
                f"shard {self._files.where(unit)} is missing or too short; run siglip2-cache verify"
            )
        array = self._files.array
        rows = np.frombuffer(data, array.encoding.dtype).reshape(-1, array.stored_dim)
        return rows[position_R - first]


def make_requests(files: ShardFiles) -> RowRequests | None:
    """Return a reader of single rows, or None if the shards fit on this machine or are not raw rows."""
    if not files.are_remote or files.fit_locally():
        return None
    try:
        return RowRequests(files) if files.have_raw_rows else None
    except DamagedCacheError:  # reported when a shard is read
        return None


def _runs(
    unit_B: NDArray[np.int64], position_B: NDArray[np.int64], order_B: NDArray[np.int64]
) -> Iterator[NDArray[np.int64]]:
    """Yield the requested rows of each request, as indexes, in order of unit and position."""
    if len(order_B) == 0:
        return
    is_far = (np.diff(unit_B[order_B]) != 0) | (np.diff(position_B[order_B]) > _GAP_ROWS)
    yield from np.split(order_B, np.flatnonzero(is_far) + 1)
