"""Approximate neighbours: an index proposes rows, the stored targets decide.

What comes out has the form and the exact cosines of store/search/exact.py; only a neighbour that the index
did not propose can be missing.

Shape letters in this file:
    Q = queries, K = neighbours wanted, C = candidates, D = embed_dim.
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
"""Rows that an index proposes at least: few neighbours among many equal rows, the query itself."""

_QUERIES = 256  # asked together at most
_PROPOSED = 1 << 20  # candidates of those, at most unless one query has more
_READ_ROWS = 16_384  # of candidates at a time: 38 MB of 1152


@dataclass(frozen=True, slots=True)
class IndexedTargets:
    """The targets of a teacher with an index over them."""

    record: IndexRecord
    targets: Targets
    index: Any
    """As faiss opened it."""

    def neighbors(
        self,
        queries_QD: NDArray[np.float16],
        k: int,
        *,
        exclude_Q: ArrayLike | None = None,
        is_other_Q: ArrayLike | None = None,
    ) -> Neighbors:
        """Return the K rows of largest cosine among those that the index proposes.

        Arguments and result are those of store.search.exact_neighbors, and:

        Args:
            is_other_Q: which queries are of the other modality; None: none.
        """
        Q, record = len(queries_QD), self.record
        exclude = np.full(Q, -1) if exclude_Q is None else np.asarray(exclude_Q, np.int64)
        is_other = np.zeros(Q, np.bool_) if is_other_Q is None else np.asarray(is_other_Q, np.bool_)
        whole = Neighbors(np.full((Q, k), -1), np.full((Q, k), -np.inf), self.index.ntotal)
        for is_asked, search in (
            (~is_other, record.search),
            (is_other, record.cross.search if record.cross else record.search),
        ):
            found = approximate_neighbors(
                self.index,
                self.targets,
                queries_QD[is_asked],
                k,
                search=search,
                view=record.view,
                exclude_Q=exclude[is_asked],
            )
            whole.rows_QK[is_asked], whole.cosine_QK[is_asked] = found.rows_QK, found.cosine_QK
        return whole


def resolve_index(
    cache: Cache, modality: Modality, *, teacher: str | None = None, view: int = 0
) -> IndexId:
    """Return where an index over a teacher's targets lies, or would lie.

    Raises:
        SettingError: no such teacher, several and none named, or no such view.
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
    """Return the targets of a teacher with the index that ``siglip2-cache index`` made over them.

    Raises:
        SettingError: there is none, or the cache has changed since it was made.
        DamagedCacheError: its files are not what its record says.
    """
    index_id = resolve_index(cache, modality, teacher=teacher, view=view)
    command = build_command(cache, index_id)
    record = read_index_record(cache.files, index_id)
    if record is None:
        raise SettingError(f"{cache.root} has no index at {index_id.file}; {command} makes it")
    stale = why_stale(record, fingerprint(cache, index_id))
    if stale is not None:
        raise SettingError(
            f"the index {cache.files.where(index_id.file)} is of another state of the cache: {stale}; "
            f"{command} makes it anew"
        )
    index = _read_index(cache.files, record, remedy=f"{command} makes it anew")
    return IndexedTargets(record, cache.targets(index_id.modality, index_id.teacher), index)


def _read_index(files: Storage, record: IndexRecord, *, remedy: str) -> Any:
    """Return an index that faiss wrote, its lists or codes mapped, so that only what is used is read."""
    [(path, described)] = record.files.items()
    found = files.num_bytes(path)
    if found != described["num_bytes"]:
        size = "is missing" if found is None else f"has {found:,} bytes"
        raise DamagedCacheError(
            f"{files.where(path)} {size}, {described['num_bytes']:,} were written; {remedy}"
        )
    has_lists = record.kind in ("ivf", "ivfpq")
    flags = _faiss.IO_FLAG_MMAP if has_lists else _faiss.IO_FLAG_MMAP_IFC
    try:
        return _faiss.read_index(str(files.fetch(path, described)), flags)
    except RuntimeError as error:
        raise DamagedCacheError(
            f"{files.where(path)} is no index that this faiss reads ({first_line(error)}); {remedy}"
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
    """Return the K best of the rows that an index proposes, scored by the stored targets.

    Where the lists that are looked into hold fewer, more are: so K are found if there are so many.

    Args:
        index: a faiss index of inner products whose ids are rows.
        targets: what it was made from; every row that it holds has a target.
        queries_QD: (Q, embed_dim) float16, finite and not zero.
        k: neighbours wanted.
        search: what to search with, as a record has it.
        view: of images.
        exclude_Q: a row a query that is not to be among its neighbours, -1 for none.

    Raises:
        ValueError: a query is not finite, or zero.
    """
    unit_QD = unit_queries(queries_QD)
    num_queries = len(unit_QD)
    exclude = np.full(num_queries, -1) if exclude_Q is None else np.asarray(exclude_Q, np.int64)
    rows_QK = np.full((num_queries, k), -1, np.int64)
    cosine_QK = np.full((num_queries, k), -np.inf)
    depth = min(index.ntotal, max(search["candidates"] * k, k + FEWEST_CANDIDATES))
    num_asked = max(1, min(_QUERIES, _PROPOSED // max(1, depth)))
    num_there_Q = np.minimum(k, index.ntotal - (exclude >= 0))
    left_Q = np.flatnonzero(num_there_Q > 0)
    for step in (search, *widen_search(index, search)):
        set_search(index, step)
        for start in range(0, len(left_Q), num_asked):
            some_Q = left_Q[start : start + num_asked]
            _, row_QC = index.search(unit_QD[some_Q], depth)
            is_wanted_QC = (row_QC >= 0) & (row_QC != exclude[some_Q, None])
            query_C, column_C = np.nonzero(is_wanted_QC)
            query_C, row_C = some_Q[query_C], row_QC[query_C, column_C]
            cosine_C = _score(targets, queries_QD, query_C, row_C, view)
            order = np.lexsort((row_C, -cosine_C, query_C))
            query_C, row_C, cosine_C = query_C[order], row_C[order], cosine_C[order]
            rank_C = np.arange(len(query_C)) - np.searchsorted(query_C, query_C)
            keep_C = rank_C < k
            at = query_C[keep_C], rank_C[keep_C]
            rows_QK[at], cosine_QK[at] = row_C[keep_C], cosine_C[keep_C]
        left_Q = left_Q[(rows_QK[left_Q] >= 0).sum(axis=1) < num_there_Q[left_Q]]
        if len(left_Q) == 0:
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
