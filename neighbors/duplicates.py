"""Duplicates: clusters of images or texts with equal bytes or near embeddings.

Shape letters in this file:
    N = compared rows, B = rows of a block, P = pairs, D = embed_dim.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..errors import SettingError
from ..formatting import format_count
from ..store.cache import Cache
from ..store.search.exact import cosines, float32_margin
from ..store.targets.blocks import Block, read_blocks
from ..store.targets.targets import Targets
from .config import ReportConfig
from .items import items_of
from .report import Group, Item, Report

_SCORED_AT_ONCE = 1 << 22
"""Cosines in one float32 matrix, 16 MB. In the worst case each of them is a pair."""

_GATHERED_ROWS = 16_384
"""Pairs that are scored exactly at a time: 38 MB for width 1152."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DuplicatesConfig(ReportConfig):
    """Settings of find_duplicates."""

    above: float = 0.95
    """Least cosine of a duplicate."""

    limit: int | None = 20
    """Most clusters in the report, the largest first; None: all."""

    members: int | None = 50
    """Most members of a cluster in the report; None: all."""

    sample: int | None = None
    """Compare a random choice of this many images or texts; None: all."""

    def __post_init__(self) -> None:
        ReportConfig.__post_init__(self)
        if not -1 <= self.above <= 1:
            raise SettingError(f"--above must be a cosine, -1 to 1, got {self.above:g}")


def find_duplicates(
    config: DuplicatesConfig, *, on_rows: Callable[[int], None] | None = None
) -> Report:
    """Return clusters of images with equal bytes, or with embeddings of cosine ``above`` or more.

    Every member of a cluster has equal bytes or such a cosine to the first one; the first members of two
    clusters do not. Time grows with the square of the number of different pictures; memory is about 60
    bytes an image.

    Raises:
        SettingError: the teacher or the view cannot be used.
    """
    cache, teacher = config.open()
    targets = cache.targets(config.modality, teacher)
    drawn, chosen = None, ""
    if config.sample is not None and len(every := targets.available_rows()) > config.sample:
        chosen = f", a random choice of {len(every):,}"
        drawn = np.sort(np.random.default_rng(config.seed).choice(every, config.sample, False))
    blocks = read_blocks(targets, view=config.searched_view, rows=drawn)
    rows_N = np.concatenate([np.empty(0, np.int64), *(b.rows_B for b in blocks)])
    left_out = "" if chosen else config.left_out(cache, len(rows_N))
    same_N = (
        _equal_bytes(cache, teacher, rows_N)
        if config.modality == "image"
        else np.arange(len(rows_N))
    )
    # Of equal pictures only the first is compared.
    first_N = np.flatnonzero(same_N == np.arange(len(rows_N)))
    found = Clusters(same_N)
    num_pairs = 0
    for pair_P2 in near_pairs(
        targets, rows_N[first_N], config.above, view=config.searched_view, on_rows=on_rows
    ):
        num_pairs += len(pair_P2)
        found.add(*np.searchsorted(rows_N, pair_P2.T))
    clusters = found.sets()
    shown = clusters[: config.limit]
    num_members = sum(len(cluster) for cluster in clusters)
    num_compared = len(first_N) * (len(first_N) - 1) // 2
    largest = max((len(cluster) for cluster in clusters), default=0)
    summary = [
        f"{len(rows_N):,} {config.among}{chosen}, {len(first_N):,} of them different; "
        f"{num_compared:,} pairs compared, {num_pairs:,} with cosine {config.above:g} or more"
        + left_out,
        f"{format_count(len(clusters), 'cluster')} of {num_members:,} {config.among}: "
        f"{format_count(len(rows_N) - len(first_N), 'link')} by equal bytes, "
        f"{found.num_near:,} by embedding"
        + (f"; showing the {len(shown):,} largest" if len(shown) < len(clusters) else ""),
    ]
    if found.num_left:
        summary.append(
            f"{found.num_left:,} more are near a member of a cluster but not near its first; they are in no "
            "cluster"
        )
    if largest > max(10, len(rows_N) // 2):
        summary.append(
            f"one cluster has {largest:,} members: for {teacher} most of these are alike at "
            f"{config.above:g}; try a higher --above"
        )
    return Report(
        title="Duplicates",
        cache=cache.root,
        teachers=(teacher,),
        summary=tuple(summary),
        groups=tuple(
            _groups(config, cache, targets, [rows_N[c] for c in shown], [same_N[c] for c in shown])
        ),
        values={
            config.among: len(rows_N),
            "different": len(first_N),
            "pairs": num_pairs,
            "above": config.above,
            "num_clusters": len(clusters),
            "near_a_member_alone": found.num_left,
        },
        groups_name="clusters",
        items_name="members",
    )


def near_pairs(
    targets: Targets,
    rows_N: NDArray[np.int64],
    above: float,
    *,
    view: int = 0,
    on_rows: Callable[[int], None] | None = None,
) -> Iterator[NDArray[np.int64]]:
    """Yield the pairs of different rows with a cosine of at least ``above``, each once: (P, 2) rows.

    The first of a pair is the smaller row. A row is first of a pair only after all pairs in which it is
    second; the pairs of one first row in one array are adjacent.

    Args:
        targets: embeddings of a modality.
        rows_N: rows to compare, ascending.
        above: least cosine of the stored values; close calls are decided in float64.
        view: view of images.
        on_rows: called with the number of rows that were compared with all others.
    """
    for block in read_blocks(targets, view=view, rows=rows_N):
        # Rows of earlier blocks were compared with these already.
        later_N = rows_N[np.searchsorted(rows_N, block.rows_B[0]) :]
        for other in read_blocks(targets, view=view, rows=later_N):
            yield from _pairs_of_blocks(block, other, above)
        if on_rows is not None:
            on_rows(len(block.rows_B))


def _pairs_of_blocks(one: Block, other: Block, above: float) -> Iterator[NDArray[np.int64]]:
    margin = float32_margin(one.unit_BD.shape[1])
    step = max(1, _SCORED_AT_ONCE // len(other.rows_B))
    for start in range(0, len(one.rows_B), step):
        score_BB = one.unit_BD[start : start + step] @ other.unit_BD.T
        i_P, j_P = np.nonzero(score_BB >= above - margin)
        score_P = score_BB[i_P, j_P]
        i_P += start
        keep_P = one.rows_B[i_P] < other.rows_B[j_P]
        near_P = np.flatnonzero(keep_P & (score_P < above + margin))  # decide in float64
        for some in np.array_split(near_P, 1 + len(near_P) // _GATHERED_ROWS):
            keep_P[some] = cosines(one.values_BD[i_P[some]], other.values_BD[j_P[some]]) >= above
        yield np.stack([one.rows_B[i_P[keep_P]], other.rows_B[j_P[keep_P]]], axis=1)


class Clusters:
    """Clusters of rows, each around its first one; rows are positions 0 to N - 1.

    Linking to any member would chain unrelated rows: of 77 photographs joined that way at .95, some had a
    cosine of .44 to the first.
    """

    def __init__(self, same_N: NDArray[np.int64]) -> None:
        """Start with clusters of equal bytes.

        Args:
            same_N: for each row the first one with equal bytes; pairs are of such first ones only.
        """
        self._same_N, self._leader_N = same_N, same_N.copy()
        self._is_near_N = np.zeros(len(same_N), np.bool_)

    def add(self, one_P: NDArray[np.int64], other_P: NDArray[np.int64]) -> None:
        """Add near pairs, in the order of near_pairs."""
        self._is_near_N[one_P] = self._is_near_N[other_P] = True
        starts = np.flatnonzero(np.diff(one_P, prepend=-1))
        for one, others in zip(one_P[starts], np.split(other_P, starts[1:]), strict=False):
            if self._leader_N[one] == one:  # otherwise it is a later member of a cluster
                self._leader_N[others[self._leader_N[others] == others]] = one

    def sets(self) -> list[NDArray[np.int64]]:
        """Return the clusters of two or more, the largest first; the members of each ascend."""
        leader_N = self._leader_N[self._same_N]
        order = np.argsort(leader_N, kind="stable")
        borders = np.flatnonzero(np.diff(leader_N[order])) + 1
        sets = [each for each in np.split(order, borders) if len(each) > 1]
        return sorted(sets, key=lambda each: (-len(each), int(each[0])))

    @property
    def num_near(self) -> int:
        """Number of rows in a cluster by their cosine to its first, without copies."""
        is_first_N = self._same_N == np.arange(len(self._same_N))
        return int((is_first_N & (self._leader_N != self._same_N)).sum())

    @property
    def num_left(self) -> int:
        """Number of rows that are near a member of a cluster and in no cluster."""
        is_in_N = np.zeros(len(self._same_N), np.bool_)
        for each in self.sets():
            is_in_N[each] = True
        return int((self._is_near_N & ~is_in_N).sum())


def _equal_bytes(cache: Cache, teacher: str, rows_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each row the position of the first picture with the same bytes."""
    units = sorted(cache.commits(teacher).units_of("image"))
    seen = [cache.seen(teacher, unit).select("row", "sha256") for unit in units]
    digests = (
        pl.concat(seen) if seen else pl.DataFrame(schema={"row": pl.Int64, "sha256": pl.Binary})
    )
    positions = pl.DataFrame({"row": rows_N, "position": np.arange(len(rows_N))})
    joined = positions.join(digests, on="row", how="left", maintain_order="left")
    first = pl.col("position").first().over("sha256")
    return (
        joined.select(pl.when(pl.col("sha256").is_null()).then(pl.col("position")).otherwise(first))
        .to_series()
        .to_numpy()
    )


def _groups(
    config: DuplicatesConfig,
    cache: Cache,
    targets: Targets,
    clusters: list[NDArray[np.int64]],
    same: list[NDArray[np.int64]],
) -> Iterator[Group]:
    every = {row for rows in clusters for row in rows[: config.members].tolist()}
    items = items_of(cache, config.modality, every, view=config.view)
    for number, (rows, same_as) in enumerate(zip(clusters, same, strict=True), 1):
        size, rows, same_as = len(rows), rows[: config.members], same_as[: config.members]
        views = config.view if config.modality == "image" else None
        embeddings = targets.read(rows, views)
        cosine = cosines(embeddings[:1], embeddings)
        members: list[Item] = []
        for row, near, is_same in zip(
            rows.tolist(), cosine.tolist(), (same_as == same_as[0]).tolist(), strict=True
        ):
            remarks = items[row].remarks
            if members and is_same:
                remarks = ("same bytes", *remarks)
            members.append(replace(items[row], cosine=near, remarks=remarks))
        yield Group(
            query=None,
            items=tuple(members),
            heading=f"cluster {number}: {size:,} {config.among}; cosines to the first"
            + (f"; showing {len(rows):,}" if len(rows) < size else ""),
            values={"size": size},
        )
