"""Exact nearest neighbours among the targets of a cache, by cosine, in bounded memory.

faiss finds candidates in float32, block by block; those that come into question are scored again in
float64. There every dot product is *exact*: a product of two float16 is a multiple of 2**-48, and a sum
of such whose parts stay below 16 fits the 53 bits of a float64, in whatever order it is made. So equal
vectors have equal cosines, and ties are told from near ties.

Shape letters in this file:
    Q = queries, K = neighbours wanted, B = rows of a block, C = candidates, D = embed_dim.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import faiss
import numpy as np
from numpy.typing import ArrayLike, NDArray

from .scan import Block, blocks, to_float32
from .targets import Targets

SLACK = 16
"""Candidates asked of faiss beyond K: rows within rounding of the K-th, equal ones, the query itself.
Where they are not enough, which faiss's own answer shows, the block is scored whole."""

_SCORED_ROWS = 4096  # that are turned into float64 at a time: 38 MB of 1152
_GPU_MAX_K = 2048


@dataclass(frozen=True, slots=True)
class Neighbors:
    """The nearest rows of each query, nearest first; equal cosines in the order of rows."""

    rows_QK: NDArray[np.int64]
    """-1 behind the last, where there are fewer than K."""

    cosine_QK: NDArray[np.float64]
    """Of the stored float16 values, in [-1, 1]; -inf behind the last."""


def exact_neighbors(
    targets: Targets,
    queries_QD: NDArray[np.float16],
    k: int,
    *,
    view: int = 0,
    exclude_Q: ArrayLike | None = None,
    rows: NDArray[np.int64] | None = None,
    block_rows: int | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> Neighbors:
    """Return the K rows of largest cosine to each query, exactly as float64 would find them.

    Memory: some 200 MB, and queries x (K + 16) x 28 bytes, however large the cache.

    Args:
        targets: of images or texts; what has no target is no neighbour.
        queries_QD: (Q, embed_dim) float16, finite and not zero; they need not be normalised.
        k: neighbours wanted; may be more than there are rows.
        view: of images.
        exclude_Q: a row a query that is not to be among its neighbours, -1 for none.
        rows: ascending: search among these only.
        block_rows: rows looked at together.
        on_rows: told the number of rows looked at, block by block.

    Raises:
        ValueError: a query is not finite, or zero.
    """
    search = Search(queries_QD, k, exclude_Q=exclude_Q)
    for block in blocks(targets, view=view, rows=rows, block_rows=block_rows):
        search.add(block)
        if on_rows is not None:
            on_rows(len(block.rows_B))
    return search.found()


class Search:
    """The nearest rows of each query among the blocks seen so far."""

    def __init__(
        self, queries_QD: NDArray[np.float16], k: int, *, exclude_Q: ArrayLike | None = None
    ) -> None:
        Q, D = queries_QD.shape
        self._queries_QD = queries_QD
        self._unit_QD = to_float32(queries_QD)
        norm_Q = np.linalg.norm(self._unit_QD, axis=1)
        if not (np.isfinite(norm_Q) & (norm_Q > 0)).all():
            raise ValueError("a query is not finite, or zero")
        faiss.normalize_L2(self._unit_QD)
        self._exclude_Q = np.full(Q, -1) if exclude_Q is None else np.asarray(exclude_Q, np.int64)
        self._k = k
        # What a float32 dot product of two vectors that were normalised in float32 is off by at most,
        # D * 2**-24 for the sum and half as much for each norm; on a GPU, that of TF32.
        self._margin = 2.0**-9 if _has_gpu() else 2 * D * 2.0**-24 + 1e-6
        self._rows_QK = np.full((Q, k), -1, np.int64)
        self._cosine_QK = np.full((Q, k), -np.inf)

    def add(self, block: Block) -> None:
        """Look at the rows of a block; blocks come in any order."""
        num_rows = len(block.rows_B)
        if num_rows == 0 or len(self._unit_QD) == 0 or self._k == 0:
            return
        depth = min(num_rows, self._k + SLACK)
        score_QC, position_QC = _knn(self._unit_QD, block.unit_BD, depth)
        worth_QC = score_QC >= (self._cosine_QK[:, -1] - self._margin)[:, None]
        query_C, column_C = np.nonzero(worth_QC)
        self._offer(block, query_C, position_QC[query_C, column_C])
        if depth < num_rows:
            is_open_Q = score_QC[:, -1] >= self._cosine_QK[:, -1] - self._margin
            for query in np.flatnonzero(is_open_Q).tolist():
                self._offer_all(block, query)

    def found(self) -> Neighbors:
        """Return what was found."""
        return Neighbors(self._rows_QK, self._cosine_QK)

    def _offer_all(self, block: Block, query: int) -> None:
        """Offer a query every row of a block: more of them are near the K-th than were asked for."""
        num_rows = len(block.rows_B)
        cosine_B = np.empty(num_rows)
        for start in range(0, num_rows, _SCORED_ROWS):
            some = slice(start, start + _SCORED_ROWS)
            cosine_B[some] = cosines(self._queries_QD[None, query], block.values_BD[some])
        cosine_B[block.rows_B == self._exclude_Q[query]] = -np.inf
        best = np.lexsort((block.rows_B, -cosine_B))[: self._k]
        self._merge(np.full(len(best), query), block.rows_B[best], cosine_B[best])

    def _offer(
        self, block: Block, query_C: NDArray[np.int64], position_C: NDArray[np.int64]
    ) -> None:
        is_other_C = block.rows_B[position_C] != self._exclude_Q[query_C]
        query_C, position_C = query_C[is_other_C], position_C[is_other_C]
        cosine_C = np.empty(len(query_C))
        for start in range(0, len(query_C), _SCORED_ROWS):
            some = slice(start, start + _SCORED_ROWS)
            cosine_C[some] = cosines(
                self._queries_QD[query_C[some]], block.values_BD[position_C[some]]
            )
        self._merge(query_C, block.rows_B[position_C], cosine_C)

    def _merge(
        self, query_C: NDArray[np.int64], row_C: NDArray[np.int64], cosine_C: NDArray[np.float64]
    ) -> None:
        """Keep the best K of what each query has and what it is offered."""
        queries = np.unique(query_C)
        if len(queries) == 0:
            return
        query_C = np.concatenate([np.repeat(queries, self._k), query_C])
        row_C = np.concatenate([self._rows_QK[queries].ravel(), row_C])
        cosine_C = np.concatenate([self._cosine_QK[queries].ravel(), cosine_C])
        query_C, row_C, cosine_C = _each_once(query_C, row_C, cosine_C)
        order = np.lexsort((row_C, -cosine_C, query_C))
        query_C, row_C, cosine_C = query_C[order], row_C[order], cosine_C[order]
        first_C = np.searchsorted(query_C, query_C)  # of its query
        rank_C = np.arange(len(query_C)) - first_C
        keep_C = rank_C < self._k
        query_C, rank_C = query_C[keep_C], rank_C[keep_C]
        self._rows_QK[queries], self._cosine_QK[queries] = -1, -np.inf
        self._rows_QK[query_C, rank_C] = row_C[keep_C]
        self._cosine_QK[query_C, rank_C] = cosine_C[keep_C]


def cosines(one_CD: NDArray[np.floating], other_CD: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the cosine of each pair of rows, (C,) float64; of float16 rows from exact sums.

    Either side may have one row, which is then compared with all of the other. NaN where a row is
    zero or not finite.
    """
    one_CD, other_CD = one_CD.astype(np.float64), other_CD.astype(np.float64)
    dots, one_C, other_C = (
        np.einsum("cd,cd->c", *np.broadcast_arrays(*pair))
        for pair in ((one_CD, other_CD), (one_CD, one_CD), (other_CD, other_CD))
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.clip(dots / np.sqrt(one_C * other_C), -1.0, 1.0)


def _each_once(
    query_C: NDArray[np.int64], row_C: NDArray[np.int64], cosine_C: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return candidates without those a query has already; a block may be offered twice."""
    order = np.lexsort((row_C, query_C))
    query_C, row_C, cosine_C = query_C[order], row_C[order], cosine_C[order]
    is_new_C = np.ones(len(query_C), np.bool_)
    is_new_C[1:] = (np.diff(query_C) != 0) | (np.diff(row_C) != 0)
    is_new_C &= row_C >= 0
    return query_C[is_new_C], row_C[is_new_C], cosine_C[is_new_C]


def _knn(
    queries_QD: NDArray[np.float32], rows_BD: NDArray[np.float32], depth: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return faiss's nearest by inner product, on a GPU where faiss has one."""
    metric = faiss.METRIC_INNER_PRODUCT
    if _has_gpu() and depth <= _GPU_MAX_K:
        return faiss.knn_gpu(_gpu_resources(), queries_QD, rows_BD, depth, metric=metric)
    return faiss.knn(queries_QD, rows_BD, depth, metric)


def _has_gpu() -> bool:
    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


@cache
def _gpu_resources() -> Any:
    return faiss.StandardGpuResources()
