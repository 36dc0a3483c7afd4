"""Approximate nearest neighbours: an index proposes rows, and the stored targets rank them.

Results have the form and the exact cosines of exact.py; only a neighbour that the index does not propose
can be missing.

Shape letters in this file:
    Q = queries, K = neighbours of a query, C = candidates, D = embed_dim.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import DamagedCacheError, SettingError
from ...formatting import first_line
from ..cache import Cache
from ..format.layout import IndexId, Modality
from ..io.storage import Storage
from ..targets.targets import Targets
from .exact import Neighbors, cosines, unit_queries
from .index_kinds import set_search, widen_search
from .index_record import IndexRecord, build_command, fingerprint, read_index_record, why_stale

_faiss: Any = faiss  # its types lack what the C++ classes and functions have

FEWEST_CANDIDATES = 64
"""Fewest rows that an index proposes: many rows may be equal, and one may be the query itself."""

_BATCH_QUERIES = 256  # most queries of one search
_BATCH_CANDIDATES = 1 << 20  # most candidates of one search, unless one query has more
_READ_ROWS = 16_384  # candidates read together: 38 MB of 1152 values


@dataclass(frozen=True, slots=True)
class IndexedTargets:
    """The targets of a teacher with an index over them."""

    record: IndexRecord
    targets: Targets
    index: Any
    """The index as opened by faiss."""

    def neighbors(
        self,
        queries_QD: NDArray[np.float16],
        k: int,
        *,
        exclude_Q: ArrayLike | None = None,
        is_other_Q: ArrayLike | None = None,
    ) -> Neighbors:
        """Return the K rows with the largest cosine among those that the index proposes.

        Args:
            queries_QD: (Q, embed_dim) float16, finite and not zero; need not be normalised.
            k: neighbours of each query.
            exclude_Q: a row to exclude for each query, -1 for none.
            is_other_Q: which queries are of the other modality; None: none.
        """
        Q, record = len(queries_QD), self.record
        exclude = np.full(Q, -1) if exclude_Q is None else np.asarray(exclude_Q, np.int64)
        is_other = np.zeros(Q, np.bool_) if is_other_Q is None else np.asarray(is_other_Q, np.bool_)
        whole = Neighbors(np.full((Q, k), -1), np.full((Q, k), -np.inf), self.index.ntotal)
        for is_part, search in (
            (~is_other, record.search),
            (is_other, record.cross.search if record.cross else record.search),
        ):
            found = approximate_neighbors(
                self.index,
                self.targets,
                queries_QD[is_part],
                k,
                search=search,
                view=record.view,
                exclude_Q=exclude[is_part],
            )
            whole.rows_QK[is_part], whole.cosine_QK[is_part] = found.rows_QK, found.cosine_QK
        return whole


def resolve_index(
    cache: Cache, modality: Modality, *, teacher: str | None = None, view: int = 0
) -> IndexId:
    """Return the identity of the index over the targets of a teacher, which need not exist.

    Raises:
        SettingError: there is no such teacher or view, or there are several teachers and none is named.
    """
    num_views = cache.num_views if modality == "image" else 1
    if not 0 <= view < num_views:
        views = f"views 0..{num_views - 1} of each image" if modality == "image" else "no views"
        raise SettingError(
            f"view {view} is not in {cache.root}, which holds {views}"
            + ("" if modality == "image" else " of texts")
        )
    return IndexId(teacher=cache.teacher(teacher).name, modality=modality, view=view)


def open_index(
    cache: Cache, modality: Modality, *, teacher: str | None = None, view: int = 0
) -> IndexedTargets:
    """Return the targets of a teacher with their index.

    Raises:
        SettingError: there is no index, or the cache has changed since it was built.
        DamagedCacheError: the file of the index does not match its record.
    """
    index_id = resolve_index(cache, modality, teacher=teacher, view=view)
    command = build_command(cache, index_id)
    record = read_index_record(cache.files, index_id)
    if record is None:
        raise SettingError(f"{cache.root} has no index at {index_id.file}; {command} builds it")
    stale = why_stale(record, fingerprint(cache, index_id))
    if stale is not None:
        raise SettingError(
            f"the index {cache.files.where(index_id.file)} is stale: {stale}; {command} builds it again"
        )
    index = _read_index(cache.files, record, remedy=f"{command} builds it again")
    return IndexedTargets(record, cache.targets(index_id.modality, index_id.teacher), index)


def _read_index(files: Storage, record: IndexRecord, *, remedy: str) -> Any:
    """Return an index with its lists or codes memory-mapped, so that only the parts used are read."""
    [(path, description)] = record.files.items()
    found = files.num_bytes(path)
    if found != description["num_bytes"]:
        state = "is missing" if found is None else f"has {found:,} bytes"
        raise DamagedCacheError(
            f"{files.where(path)} {state}, {description['num_bytes']:,} were written; {remedy}"
        )
    has_lists = record.kind in ("ivf", "ivfpq")
    flags = _faiss.IO_FLAG_MMAP if has_lists else _faiss.IO_FLAG_MMAP_IFC
    try:
        return _faiss.read_index(str(files.fetch(path, description)), flags)
    except RuntimeError as error:
        raise DamagedCacheError(
            f"faiss cannot read {files.where(path)} ({first_line(error)}); {remedy}"
        ) from None


def approximate_neighbors(
    index: Any,
    targets: Targets,
    queries_QD: NDArray[np.float16],
    k: int,
    *,
    search: Mapping[str, int],
    view: int = 0,
    exclude_Q: ArrayLike | None = None,
) -> Neighbors:
    """Return the K best rows of those that an index proposes, ranked by the stored targets.

    If the searched lists contain fewer than K rows, more lists are searched.

    Args:
        index: a faiss index of inner products whose ids are rows.
        targets: the indexed targets; every row of the index has a target.
        queries_QD: (Q, embed_dim) float16, finite and not zero.
        k: neighbours of each query.
        search: search parameters, as in a record.
        view: view of images.
        exclude_Q: a row to exclude for each query, -1 for none.

    Raises:
        ValueError: a query is zero or not finite.
    """
    unit_QD = unit_queries(queries_QD)
    num_queries = len(unit_QD)
    exclude = np.full(num_queries, -1) if exclude_Q is None else np.asarray(exclude_Q, np.int64)
    rows_QK = np.full((num_queries, k), -1, np.int64)
    cosine_QK = np.full((num_queries, k), -np.inf)
    depth = min(index.ntotal, max(search["candidates"] * k, k + FEWEST_CANDIDATES))
    batch_queries = max(1, min(_BATCH_QUERIES, _BATCH_CANDIDATES // max(1, depth)))
    num_wanted_Q = np.minimum(k, index.ntotal - (exclude >= 0))
    open_Q = np.flatnonzero(num_wanted_Q > 0)
    for step in (search, *widen_search(index, search)):
        set_search(index, step)
        for start in range(0, len(open_Q), batch_queries):
            some_Q = open_Q[start : start + batch_queries]
            _, row_QC = index.search(unit_QD[some_Q], depth)
            is_valid_QC = (row_QC >= 0) & (row_QC != exclude[some_Q, None])
            query_C, column_C = np.nonzero(is_valid_QC)
            query_C, row_C = some_Q[query_C], row_QC[query_C, column_C]
            cosine_C = _score(targets, queries_QD, query_C, row_C, view)
            order = np.lexsort((row_C, -cosine_C, query_C))
            query_C, row_C, cosine_C = query_C[order], row_C[order], cosine_C[order]
            rank_C = np.arange(len(query_C)) - np.searchsorted(query_C, query_C)
            keep_C = rank_C < k
            at = query_C[keep_C], rank_C[keep_C]
            rows_QK[at], cosine_QK[at] = row_C[keep_C], cosine_C[keep_C]
        open_Q = open_Q[(rows_QK[open_Q] >= 0).sum(axis=1) < num_wanted_Q[open_Q]]
        if len(open_Q) == 0:
            break
    return Neighbors(rows_QK, cosine_QK, index.ntotal)


def _score(
    targets: Targets,
    queries_QD: NDArray[np.float16],
    query_C: NDArray[np.int64],
    row_C: NDArray[np.int64],
    view: int,
) -> NDArray[np.float64]:
    views = view if targets.modality == "image" else None
    cosine_C = np.empty(len(query_C))
    for start in range(0, len(query_C), _READ_ROWS):
        some = slice(start, start + _READ_ROWS)
        cosine_C[some] = cosines(queries_QD[query_C[some]], targets.read(row_C[some], views))
    return cosine_C
