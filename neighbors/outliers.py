"""Outliers: images or texts that are far from all others.

Shape letters in this file:
    B = rows of a block, R = rows of the reference, K = neighbours, D = embed_dim.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..errors import SettingError
from ..store.cache import Cache
from ..store.search.exact import exact_neighbors
from ..store.targets.blocks import Block, read_blocks
from ..store.targets.targets import Targets
from .config import ReportConfig
from .items import items_of
from .report import Group, Report

REFERENCE_ROWS = 16_384
"""Most rows that every row is compared with, a random sample. The distance to neighbours among them ranks
rows as the distance among all would, at a cost linear in the corpus: about 10 minutes for a million rows of
width 1152 on 2 cores."""


_SCORED_AT_ONCE = 1 << 22
"""Cosines in one float32 matrix: 16 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutliersConfig(ReportConfig):
    """Settings of find_outliers."""

    limit: int = 20
    """Most rows in the report, the farthest first."""


def find_outliers(
    config: OutliersConfig, *, on_rows: Callable[[int], None] | None = None
) -> Report:
    """Return the rows whose mean cosine to their k nearest neighbours is lowest.

    Raises:
        SettingError: the teacher or the view cannot be used, or there are fewer than two rows.
    """
    cache, teacher = config.open()
    targets = cache.targets(config.modality, teacher)
    available = targets.available_rows()
    chosen = np.random.default_rng(config.seed).choice(
        available, min(REFERENCE_ROWS, len(available)), replace=False
    )
    wanted = read_blocks(targets, view=config.searched_view, rows=np.sort(chosen))
    reference = [(block.rows_B, block.unit_BD.copy()) for block in wanted]
    if sum(len(rows) for rows, _ in reference) < 2:
        raise SettingError(
            f"{cache.root} has fewer than two {config.among} embedded by {teacher}; outliers need at least "
            "two"
        )
    rows_R, unit_RD = (np.concatenate(parts) for parts in zip(*reference, strict=True))
    k = min(config.k, len(rows_R) - 1)
    rows, means = _mean_cosines(targets, config.searched_view, rows_R, unit_RD, k, on_rows)
    order = np.lexsort((rows, means))[: config.limit]
    whole = len(rows_R) == len(rows)
    return Report(
        title="Outliers",
        cache=cache.root,
        teachers=(teacher,),
        summary=(
            f"{len(rows):,} {config.among}, ranked by the mean cosine to their {k} nearest among "
            + ("all others" if whole else f"a sample of {len(rows_R):,}, seed {config.seed}")
            + config.left_out(cache, len(rows)),
            f"mean over all {means.mean():.4f}, lowest {means.min():.4f}; "
            f"showing the {len(order):,} lowest, with their {k} nearest among all",
        ),
        groups=tuple(_groups(config, cache, targets, rows[order], means[order], k)),
        values={
            config.among: len(rows),
            "reference": len(rows_R),
            "k": k,
            "mean": float(means.mean()),
        },
        groups_name="outliers",
    )


def _mean_cosines(
    targets: Targets,
    view: int,
    rows_R: NDArray[np.int64],
    unit_RD: NDArray[np.float32],
    k: int,
    on_rows: Callable[[int], None] | None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return all rows and the mean cosine of each to its k nearest others in the reference."""
    rows: list[NDArray[np.int64]] = []
    means: list[NDArray[np.float64]] = []
    for block in read_blocks(targets, view=view):
        rows.append(block.rows_B)
        means.append(_block_means(block, rows_R, unit_RD, k))
        if on_rows is not None:
            on_rows(len(block.rows_B))
    return np.concatenate(rows), np.concatenate(means)


def _block_means(
    block: Block, rows_R: NDArray[np.int64], unit_RD: NDArray[np.float32], k: int
) -> NDArray[np.float64]:
    means_B = np.empty(len(block.rows_B))
    step = max(1, _SCORED_AT_ONCE // len(rows_R))
    for start in range(0, len(means_B), step):
        rows = block.rows_B[start : start + step]
        cosine_BR = block.unit_BD[start : start + step] @ unit_RD.T
        column_B = np.searchsorted(rows_R, rows).clip(max=len(rows_R) - 1)
        itself_B = np.flatnonzero(rows_R[column_B] == rows)
        cosine_BR[itself_B, column_B[itself_B]] = -np.inf
        nearest_BK = np.partition(cosine_BR, -k, axis=1)[:, -k:]
        means_B[start : start + step] = nearest_BK.astype(np.float64).mean(axis=1)
    return means_B


def _groups(
    config: OutliersConfig,
    cache: Cache,
    targets: Targets,
    rows: NDArray[np.int64],
    means: NDArray[np.float64],
    k: int,
) -> Iterator[Group]:
    views = config.view if config.modality == "image" else None
    embeddings = targets.read(rows, views)
    found = exact_neighbors(targets, embeddings, k, view=config.searched_view, exclude_Q=rows)
    every = {*rows.tolist(), *found.rows_QK[found.rows_QK >= 0].tolist()}
    items = items_of(cache, config.modality, every, view=config.view)
    for row, mean, rows_K, cosine_K in zip(
        rows.tolist(), means.tolist(), found.rows_QK, found.cosine_QK, strict=True
    ):
        near = [
            replace(items[other], cosine=cosine)
            for other, cosine in zip(rows_K.tolist(), cosine_K.tolist(), strict=True)
            if other >= 0
        ]
        query = replace(items[row], remarks=(f"mean {mean:.4f}", *items[row].remarks))
        yield Group(query=query, items=tuple(near), values={"mean_cosine": mean})
