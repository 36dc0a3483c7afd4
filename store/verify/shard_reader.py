"""Reading a shard once, in pieces: the norms of its vectors, and whether its layout is correct.

Shape letters in this file: N = rows, V = vectors of a row (views of an image; 1 for a text).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..format.shard import ArrayLayout, shard_index


class ShardReader:
    """Reads a shard of raw rows and keeps the norm of each vector, 4 bytes of 1,000 or 2,000."""

    def __init__(
        self,
        array: ArrayLayout,
        num_rows: int,
        measure: Callable[[NDArray[Any]], NDArray[np.float32]] | None = None,
    ) -> None:
        """Start before the first byte of a shard with ``num_rows`` rows.

        ``measure`` returns a number for each stored vector; None: its norm.
        """
        self._measure = measure or array.encoding.norms
        self._dtype, self._stored_dim = array.encoding.dtype, array.stored_dim
        self._vector_bytes = array.vector_bytes
        self._row_bytes = num_rows * array.row_bytes
        self._index = shard_index(array, num_rows)
        self._num_bytes_wanted = array.shard_bytes(num_rows)
        self._rest = b""  # the first bytes of an incomplete vector
        self._tail = bytearray()
        self._num_norms = 0
        num_vectors = array.row_bytes // self._vector_bytes
        self.norms_NV: NDArray[np.float32] = np.full((num_rows, num_vectors), np.nan, np.float32)
        """(N, V) float32; NaN if a vector has no target."""

        self.num_bytes = 0

    def take(self, piece: bytes) -> None:
        """Read the next bytes."""
        start, self.num_bytes = self.num_bytes, self.num_bytes + len(piece)
        rows = self._rest + piece[: max(0, self._row_bytes - start)]
        num_vectors = len(rows) // self._vector_bytes
        stored = np.frombuffer(rows, self._dtype, num_vectors * self._stored_dim)
        end = self._num_norms + num_vectors
        self.norms_NV.reshape(-1)[self._num_norms : end] = self._measure(
            stored.reshape(num_vectors, self._stored_dim)
        )
        self._num_norms = end
        self._rest = rows[num_vectors * self._vector_bytes :]
        index_at = self._num_bytes_wanted - len(self._index)
        self._tail += piece[max(0, index_at - start) : max(0, self._num_bytes_wanted - start)]

    @property
    def is_whole(self) -> bool:
        """Whether the bytes read so far are a complete shard with the expected layout."""
        return self.num_bytes == self._num_bytes_wanted and bytes(self._tail) == self._index
