"""Reading rows of an object store one by one, where the shards do not fit on this machine.

Shape letters in this file: B = rows asked for, D = embed_dim.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ...errors import DamagedCacheError
from ..format.shard import DTYPE
from ..io.parallel import map_parallel
from ..io.requests import read_bytes
from .shard_files import ShardFiles

_GAP_ROWS = 8
"""Rows in between that are read as well rather than asking twice."""


class RowRequests:
    """A request for each run of rows, many at a time."""

    def __init__(self, files: ShardFiles) -> None:
        self._files = files
        self._row_bytes = files.array.embed_dim * DTYPE.itemsize

    def read_into(
        self,
        unit_B: NDArray[np.int64],
        position_B: NDArray[np.int64],
        out_BD: NDArray[np.float16],
    ) -> None:
        """Fill ``out`` with one vector each: of a unit, at a position (row in the unit * views + view).

        Raises:
            DamagedCacheError: a shard is missing or too short.
            StorageError: the store does not answer.
        """
        order_B = np.lexsort((position_B, unit_B))
        # Threads of this call alone: a forked process would wait for ever for those of its parent, and
        # what is still to be asked for ends with the first request that fails.
        found = map_parallel(
            lambda run_R: self._read_run(unit_B[run_R], position_B[run_R]),
            _runs(unit_B, position_B, order_B),
        )
        for run_R, rows_RD in found:
            out_BD[run_R] = rows_RD

    def _read_run(
        self, unit_R: NDArray[np.int64], position_R: NDArray[np.int64]
    ) -> NDArray[np.float16]:
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
        rows = np.frombuffer(data, DTYPE).reshape(-1, self._files.array.embed_dim)
        return rows[position_R - first]


def make_requests(files: ShardFiles) -> RowRequests | None:
    """Return what reads rows one by one; None where shards fit on this machine, or are no raw rows."""
    if not files.are_remote or files.fit_locally():
        return None
    try:
        return RowRequests(files) if files.have_raw_rows else None
    except DamagedCacheError:  # whoever reads a shard will say what is wrong
        return None


def _runs(
    unit_B: NDArray[np.int64], position_B: NDArray[np.int64], order_B: NDArray[np.int64]
) -> Iterator[NDArray[np.int64]]:
    """Yield which of the rows asked for are read by one request each, in order of place."""
    if len(order_B) == 0:
        return
    is_far = (np.diff(unit_B[order_B]) != 0) | (np.diff(position_B[order_B]) > _GAP_ROWS)
    yield from np.split(order_B, np.flatnonzero(is_far) + 1)
