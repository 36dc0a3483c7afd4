"""Choosing search parameters of an index by its recall, compared with exact search.

Images and captions occupy different regions, so parameters that find the nearest images of an image miss
most of those of a text. Queries of each modality have their own parameters.

Shape letters in this file:
    N = rows, Q = queries, K = neighbours, D = embed_dim.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..targets.targets import Targets
from .exact import exact_neighbors, has_direction
from .index_kinds import SEED, IndexPlan, list_searches
from .index_query import approximate_neighbors
from .index_record import CrossSearch, Recall

RECALL_AT = 10
WANTED_RECALL = 0.95
"""The recall for which the parameters with the least work are chosen."""

_SAME_RECALL = 0.002
"""Codes limit the recall: parameters with more work that gain less than this are not chosen."""

_RECALL_QUERIES = 500
"""Queries of each modality. The standard error of a recall of 0.95 is then at most 0.01, and 1 M rows are
searched in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The chosen search parameters and their recall."""

    search: Mapping[str, int]
    recall: Recall
    cross: CrossSearch | None


def measure(
    index: Any,
    plan: IndexPlan,
    targets: Targets,
    others: Targets,
    *,
    view: int,
    block_rows: int | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> Measured:
    """Choose search parameters for queries of each modality, and return them with their recall.

    Args:
        index: the index over the targets.
        plan: its kind and parameters.
        targets: the indexed targets.
        others: the targets of the other modality by the same teacher; view 0 of images.
        view: the indexed view of images.
        block_rows: rows of a block; None: as read_blocks chooses.
        on_rows: called with the number of rows that exact search has read.
    """
    own_Q, own_QD = _queries(targets, view)
    other_Q, other_QD = _queries(others, 0)
    exclude_Q = np.concatenate([own_Q, np.full(len(other_Q), -1)])
    exact = exact_neighbors(
        targets,
        np.concatenate([own_QD, other_QD]),
        RECALL_AT,
        view=view,
        exclude_Q=exclude_Q,
        block_rows=block_rows,
        on_rows=on_rows,
    )

    def choose(
        queries_QD: NDArray[np.float16], part: slice
    ) -> tuple[Mapping[str, int], float | None]:
        """Return the least work that finds enough, or as much as the most work does; its recall."""
        tried: list[tuple[dict[str, int], float]] = []
        for search in list_searches(plan.kind, plan.factory):
            near = approximate_neighbors(
                index,
                targets,
                queries_QD,
                RECALL_AT,
                search=search,
                view=view,
                exclude_Q=exclude_Q[part],
            )
            value = recall_of(near.cosine_QK, exact.cosine_QK[part])
            if value is None or value >= WANTED_RECALL:
                return search, value
            tried.append((search, value))
        best = max(value for _, value in tried)
        return next((s, v) for s, v in tried if v >= best - _SAME_RECALL)

    search, value = choose(own_QD, slice(0, len(own_Q)))
    cross = None
    if len(other_Q):
        cross_search, cross_value = choose(other_QD, slice(len(own_Q), None))
        cross = CrossSearch(search=cross_search, recall=_recall(cross_value, len(other_Q)))
    return Measured(search=search, recall=_recall(value, len(own_Q)), cross=cross)


def recall_of(found_QK: NDArray[np.float64], exact_QK: NDArray[np.float64]) -> float | None:
    """Return the fraction of the true neighbours that were found, or None if there are none.

    Cosines are compared, not rows, so that any of several equally near rows counts.
    """
    has_QK = np.isfinite(exact_QK)
    num_Q = has_QK.sum(axis=1)
    if num_Q.sum() == 0:
        return None
    last_Q = np.where(has_QK, exact_QK, np.inf).min(axis=1)
    hits_Q = (found_QK >= last_Q[:, None]).sum(axis=1)
    return float(np.minimum(hits_Q, num_Q).sum() / num_Q.sum())


def choose_rows(rows_N: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Return a random choice of rows, ascending, with a fixed seed."""
    chooser = np.random.default_rng(SEED)
    size = min(size, len(rows_N))
    return np.sort(chooser.choice(rows_N, size, replace=False, shuffle=False))


def _queries(targets: Targets, view: int) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
    """Return a choice of rows that have a direction, and their targets."""
    rows_Q = choose_rows(targets.available_rows(), _RECALL_QUERIES)
    queries_QD = targets.read(rows_Q, view if targets.modality == "image" else None)
    is_usable_Q = has_direction(queries_QD)  # as in the indexed blocks
    return rows_Q[is_usable_Q], queries_QD[is_usable_Q]


def _recall(value: float | None, num_queries: int) -> Recall:
    return Recall(at=RECALL_AT, value=value, num_queries=num_queries, seed=SEED)
