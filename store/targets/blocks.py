"""Reading all targets of a teacher once, in row order, in limited memory, for searches and indexes.

Shape letters in this file:
    B = rows of a block, D = embed_dim.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from ...errors import RowUnavailableError
from .targets import Targets

_faiss: Any = faiss  # its types lack what the C++ classes and functions have

BLOCK_BYTES = 1 << 26
"""Bytes of a block in float32: 14,563 rows of 1152 values. Larger blocks are no faster. Memory holds two
of them, and two in float16."""


@dataclass(frozen=True, slots=True)
class Block:
    """Rows that have a target, ascending; valid until the next block is requested."""

    rows_B: NDArray[np.int64]

    values_BD: NDArray[np.float16]
    """The stored targets."""

    unit_BD: NDArray[np.float32]
    """The same, normalised again: float16 changes a norm by 1e-5, as much as neighbours differ."""


def read_blocks(
    targets: Targets,
    *,
    view: int = 0,
    rows: NDArray[np.int64] | None = None,
    block_rows: int | None = None,
) -> Iterator[Block]:
    """Yield all targets of one view in blocks; the next block is read in the background.

    Gaps and rows that are not committed, rejected or not finite are left out. No block is empty.

    Args:
        targets: the targets.
        view: view of images; 0 for texts.
        rows: (R,) ascending rows to which blocks are limited; None: all.
        block_rows: most rows of a block; None: as many as BLOCK_BYTES hold.

    Raises:
        RowUnavailableError: there is no such view.
        DamagedCacheError: a shard is missing, or does not match its record.
    """
    num_views = targets.shape[1] if targets.modality == "image" else 1
    if not 0 <= view < num_views:
        raise RowUnavailableError(
            f"view {view} is not in this cache, which holds views 0..{num_views - 1} of each image"
        )
    size = min(block_rows or rows_of_block(targets), max(1, targets.shape[0]))
    with ThreadPoolExecutor(1, thread_name_prefix="targets") as reader:
        waiting: deque[Future[Block]] = deque()
        buffers = cycle([_Buffer(targets, size), _Buffer(targets, size)])
        for pieces in _pieces(targets, rows, size):
            waiting.append(reader.submit(next(buffers).read, targets, view, pieces, rows))
            if len(waiting) == 2 and len((block := waiting.popleft().result()).rows_B):
                yield block
        if waiting and len((block := waiting.popleft().result()).rows_B):
            yield block


def rows_of_block(targets: Targets) -> int:
    """Return how many rows fit into BLOCK_BYTES in float32, and with all views in float16."""
    num_views = targets.shape[1] if targets.modality == "image" else 1
    return max(1, BLOCK_BYTES // (targets.shape[-1] * max(4, 2 * num_views)))


def _pieces(
    targets: Targets, rows: NDArray[np.int64] | None, size: int
) -> Iterator[list[tuple[int, int, int]]]:
    """Yield the parts of units of each block: (unit, first position, number of rows)."""
    pieces: list[tuple[int, int, int]] = []
    room = size
    for unit, num_rows in targets.committed():
        first, end = 0, num_rows
        if rows is not None:
            wanted = rows[slice(*np.searchsorted(rows, targets.rows_of(unit)))]
            if len(wanted) == 0:
                continue
            first, end = (
                int(row) - targets.rows_of(unit)[0] for row in (wanted[0], wanted[-1] + 1)
            )
        while first < end:
            count = min(room, end - first)
            pieces.append((unit, first, count))
            first, room = first + count, room - count
            if room == 0:
                yield pieces
                pieces, room = [], size
    if pieces:
        yield pieces


class _Buffer:
    """Memory for one block, reused: fresh pages cost as much as the computation."""

    def __init__(self, targets: Targets, size: int) -> None:
        self._stored = np.empty((size, *targets.shape[1:]), np.float16)
        self._floats_BD = np.empty((size, targets.shape[-1]), np.float32)

    def read(
        self,
        targets: Targets,
        view: int,
        pieces: list[tuple[int, int, int]],
        wanted: NDArray[np.int64] | None,
    ) -> Block:
        """Return the block of some pieces."""
        size = 0
        for unit, first, count in pieces:
            targets.read_part(unit, first, self._stored[size : size + count])
            size += count
        stored = self._stored[:size]
        values_BD = stored if targets.modality == "text" else stored[:, view]
        rows_B = np.concatenate(
            [targets.rows_of(unit)[0] + np.arange(first, first + n) for unit, first, n in pieces]
        )
        keep_B = targets.available(rows_B)
        if wanted is not None:
            near = wanted[slice(*np.searchsorted(wanted, (rows_B[0], rows_B[-1] + 1)))]
            keep_B &= np.isin(rows_B, near, assume_unique=True)
        rows_B, values_BD = _kept(keep_B, rows_B, values_BD)
        unit_BD = to_float32(values_BD, self._floats_BD[: len(rows_B)])
        norm_B = np.empty(len(unit_BD), np.float32)
        _faiss.fvec_norms_L2(
            faiss.swig_ptr(norm_B), faiss.swig_ptr(unit_BD), unit_BD.shape[1], len(norm_B)
        )
        keep_B = np.isfinite(norm_B) & (norm_B > 0)
        rows_B, values_BD, unit_BD = _kept(keep_B, rows_B, values_BD, unit_BD)
        faiss.normalize_L2(unit_BD)
        return Block(rows_B, values_BD, unit_BD)


def to_float32(
    values_BD: NDArray[np.float16], out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Return the same values in float32, converted by faiss, several times as fast as numpy."""
    values_BD = np.ascontiguousarray(values_BD)
    out = np.empty(values_BD.shape, np.float32) if out is None else out
    codec = _faiss.ScalarQuantizer(values_BD.shape[1], _faiss.ScalarQuantizer.QT_fp16)
    codes = values_BD.view(np.uint8)
    codec.decode_c(faiss.swig_ptr(codes), faiss.swig_ptr(out), len(values_BD))
    return out


def _kept(keep_B: NDArray[np.bool_], *arrays: NDArray[Any]) -> list[NDArray[Any]]:
    return list(arrays) if keep_B.all() else [array[keep_B] for array in arrays]
