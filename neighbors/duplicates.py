"""Images, or texts, that are the same or nearly: clusters by bytes first, then by embedding.

Shape letters in this file:
    N = rows that are compared, B = rows of a block, P = pairs, D = embed_dim.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..errors import SettingError
from ..store.cache import Cache
from ..store.scan import Block, blocks
from ..store.search import cosines, float32_margin
from ..store.targets import Targets
from ..words import counted
from .find import LookConfig
from .items import items_of
from .report import Item, Report, Strip

_SCORED_AT_ONCE = 1 << 22
"""Cosines in one float32 matrix: 16 MB. Where a teacher finds all alike, each may be a pair."""

_GATHERED_ROWS = 16_384  # of pairs that are scored exactly, at a time: 38 MB of 1152


@dataclass(frozen=True, slots=True, kw_only=True)
class DuplicatesConfig(LookConfig):
    """What counts as nearly the same, and how much is shown."""

    above: float = 0.95
    """Least cosine of two rows that belong together."""

    limit: int | None = 20
    """Clusters shown, the largest first; None: all."""

    members: int | None = 50
    """Members shown of a cluster; None: all."""

    def __post_init__(self) -> None:
        LookConfig.__post_init__(self)
        if not -1 <= self.above <= 1:
            raise SettingError(f"--above must be a cosine, -1 to 1, got {self.above:g}")


def find_duplicates(
    config: DuplicatesConfig, *, on_rows: Callable[[int], None] | None = None
) -> Report:
    """Return the clusters of images with equal bytes, or with embeddings of cosine ``above`` or more.

    Links make a cluster: two of its members may be less alike than that. Time grows with the square of
    the number of different pictures; memory by some 60 bytes an image.

    Raises:
        SettingError: the teacher or the view cannot be used.
    """
    cache, teacher = config.open()
    targets = cache.targets(config.modality, teacher)
    rows_N = np.concatenate(
        [np.empty(0, np.int64), *(b.rows_B for b in blocks(targets, view=config.searched_view))]
    )
    same_N = (
        _equal_bytes(cache, teacher, rows_N)
        if config.modality == "image"
        else np.arange(len(rows_N))
    )
    # One of each set of equal pictures is compared: the first.
    first_N = np.flatnonzero(same_N == np.arange(len(rows_N)))
    groups = Groups(len(rows_N))
    groups.join(np.arange(len(rows_N)), same_N)
    by_bytes = groups.num_joins
    num_pairs = 0
    for pair_P2 in near_pairs(
        targets, rows_N[first_N], config.above, view=config.searched_view, on_rows=on_rows
    ):
        num_pairs += len(pair_P2)
        groups.join(*np.searchsorted(rows_N, pair_P2.T))
    clusters = groups.clusters()
    shown = clusters[: config.limit]
    num_members = sum(len(cluster) for cluster in clusters)
    num_compared = len(first_N) * (len(first_N) - 1) // 2
    largest = max((len(cluster) for cluster in clusters), default=0)
    summary = [
        f"{len(rows_N):,} {config.among} looked at, {len(first_N):,} different; "
        f"{num_compared:,} pairs compared, {num_pairs:,} of cosine {config.above:g} or more",
        f"{counted(len(clusters), 'cluster')} of {num_members:,} {config.among}: "
        f"{counted(by_bytes, 'link')} by equal bytes, {groups.num_joins - by_bytes:,} by embedding"
        + (f"; the {len(shown):,} largest are shown" if len(shown) < len(clusters) else ""),
    ]
    if largest > max(10, len(rows_N) // 2):
        summary.append(
            f"one cluster holds {largest:,}: {teacher} cannot tell most of these apart at "
            f"{config.above:g}, try a higher --above"
        )
    return Report(
        title="Duplicates",
        cache=cache.root,
        teachers=(teacher,),
        summary=tuple(summary),
        strips=tuple(
            _strips(config, cache, targets, [rows_N[c] for c in shown], [same_N[c] for c in shown])
        ),
        values={
            config.among: len(rows_N),
            "different": len(first_N),
            "pairs": num_pairs,
            "above": config.above,
            "num_clusters": len(clusters),
        },
        strips_name="clusters",
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
    """Yield the pairs of different rows whose cosine is at least ``above``, each once: (P, 2) rows.

    Args:
        targets: of a modality by a teacher.
        rows_N: ascending; the rows to compare.
        above: of the stored values; pairs within rounding of it are decided in float64.
        view: of images.
        on_rows: told the number of rows that have been compared with all.
    """
    for block in blocks(targets, view=view, rows=rows_N):
        # Rows of earlier blocks have met these already.
        later_N = rows_N[np.searchsorted(rows_N, block.rows_B[0]) :]
        for other in blocks(targets, view=view, rows=later_N):
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
        near_P = np.flatnonzero(keep_P & (score_P < above + margin))  # decided in float64
        for some in np.array_split(near_P, 1 + len(near_P) // _GATHERED_ROWS):
            keep_P[some] = cosines(one.values_BD[i_P[some]], other.values_BD[j_P[some]]) >= above
        yield np.stack([one.rows_B[i_P[keep_P]], other.rows_B[j_P[keep_P]]], axis=1)


class Groups:
    """Numbers 0 to N - 1, joined by and by into sets."""

    def __init__(self, size: int) -> None:
        self._label_N = np.arange(size)
        self.num_joins = 0
        """Joins so far that made one set of two."""

    def join(self, one_P: NDArray[np.int64], other_P: NDArray[np.int64]) -> None:
        """Join each pair's sets."""
        labels_P2 = np.stack([self._label_N[one_P], self._label_N[other_P]], axis=1)
        labels_P2 = np.unique(labels_P2[labels_P2[:, 0] != labels_P2[:, 1]], axis=0)
        if len(labels_P2) == 0:
            return
        parent: dict[int, int] = {}

        def root(label: int) -> int:
            while (above := parent.get(label, label)) != label:
                parent[label] = parent.get(above, above)
                label = above
            return label

        for one, other in labels_P2.tolist():
            low, high = sorted((root(one), root(other)))
            if low != high:
                parent[high] = low
                self.num_joins += 1
        renamed = np.arange(len(self._label_N))
        for label in parent:
            renamed[label] = root(label)
        self._label_N = renamed[self._label_N]

    def clusters(self) -> list[NDArray[np.int64]]:
        """Return the sets of two or more, the largest first, each ascending."""
        order = np.argsort(self._label_N, kind="stable")
        borders = np.flatnonzero(np.diff(self._label_N[order])) + 1
        sets = [each for each in np.split(order, borders) if len(each) > 1]
        return sorted(sets, key=lambda each: (-len(each), int(each[0])))


def _equal_bytes(cache: Cache, teacher: str, rows_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each row the position of the first whose picture has the same bytes."""
    units = sorted(cache.commits(teacher).of("image"))
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


def _strips(
    config: DuplicatesConfig,
    cache: Cache,
    targets: Targets,
    clusters: list[NDArray[np.int64]],
    same: list[NDArray[np.int64]],
) -> Iterator[Strip]:
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
        yield Strip(
            query=None,
            items=tuple(members),
            heading=f"cluster {number}: {size:,} {config.among}; cosines are to the first"
            + (f"; {len(rows):,} are shown" if len(rows) < size else ""),
            values={"size": size},
        )
