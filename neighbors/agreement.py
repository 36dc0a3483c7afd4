"""Agreement of two teachers of one cache about the nearest neighbours of images.

Shape letters in this file:
    S = rows of the sample, K = neighbours.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..errors import SettingError
from ..store.cache import Cache
from ..store.format.layout import Modality
from ..store.search.exact import Neighbors, exact_neighbors, has_direction
from .config import ReportConfig
from .items import image_items, items_of
from .report import Group, Item, Report


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementConfig(ReportConfig):
    """Settings of find_disagreements."""

    other_teacher: str
    """Name of the other teacher."""

    sample: int = 1000
    """Images whose neighbours are compared, a random sample."""

    limit: int = 20
    """Most images in the report, those of least overlap first."""

    def num_rows_read(self) -> int:
        """Return the number of rows that the search reads, once for each teacher."""
        return 2 * ReportConfig.num_rows_read(self)


def find_disagreements(
    config: AgreementConfig, *, on_rows: Callable[[int], None] | None = None
) -> Report:
    """Return the overlap of two teachers' k nearest neighbours, and the images where it is least.

    Only rows embedded by both teachers are compared; an image is not its own neighbour.

    Raises:
        SettingError: a teacher or the view cannot be used, or they have too little in common.
    """
    cache, first = config.open()
    second = cache.teacher(config.other_teacher).name
    if first == second:
        raise SettingError(
            f"{second!r} is compared with itself; name another teacher of {cache.root}"
        )
    common = _common_rows(cache, "image", first, second)
    rows = common if config.modality == "image" else _common_rows(cache, "text", first, second)
    is_own = config.modality == "image"
    k = min(config.k, len(rows) - is_own)
    if k < 1 or len(common) == 0:
        raise SettingError(
            f"{first!r} and {second!r} of {cache.root} share {len(common):,} images and "
            f"{len(rows):,} {config.among}; there is nothing to compare"
        )
    chosen = np.sort(
        np.random.default_rng(config.seed).choice(
            common, min(config.sample, len(common)), replace=False
        )
    )
    queries = {
        name: cache.image_targets(name).read(chosen, config.view) for name in (first, second)
    }
    is_sound_S = np.logical_and(*(has_direction(each) for each in queries.values()))
    chosen = chosen[is_sound_S]
    found = {
        name: exact_neighbors(
            cache.targets(config.modality, name),
            queries[name][is_sound_S],
            k,
            view=config.searched_view,
            exclude_Q=chosen if is_own else None,
            rows=rows,
            on_rows=on_rows,
        )
        for name in (first, second)
    }
    shared_S = _num_shared(found[first].rows_QK, found[second].rows_QK)
    worst = np.lexsort((chosen, shared_S))[: config.limit]
    mean = float(shared_S.mean() / k)
    chance = k / (len(rows) - is_own)
    return Report(
        title="Agreement of teachers",
        cache=cache.root,
        teachers=(first, second),
        summary=(
            f"{len(chosen):,} of {len(common):,} images embedded by both, seed {config.seed}; their {k} "
            f"nearest of {len(rows):,} {config.among}",
            f"overlap@{k} {mean:.4f} (by chance {chance:.4f}); {int((shared_S == 0).sum()):,} images "
            f"share none; showing the {len(worst):,} of least overlap",
        ),
        groups=tuple(_groups(config, cache, chosen, found, shared_S, worst, k)),
        values={
            "images": len(chosen),
            config.among + "_searched": len(rows),
            "k": k,
            "overlap": mean,
            "overlap_by_chance": chance,
        },
        groups_name="least_overlap",
    )


def _common_rows(cache: Cache, modality: Modality, first: str, second: str) -> NDArray[np.int64]:
    one, other = (cache.targets(modality, teacher).available_rows() for teacher in (first, second))
    return np.intersect1d(one, other, assume_unique=True)


def _num_shared(one_SK: NDArray[np.int64], other_SK: NDArray[np.int64]) -> NDArray[np.int64]:
    both = np.sort(np.concatenate([one_SK, other_SK], axis=1), axis=1)
    return ((both[:, 1:] == both[:, :-1]) & (both[:, 1:] >= 0)).sum(axis=1)


def _groups(
    config: AgreementConfig,
    cache: Cache,
    chosen: NDArray[np.int64],
    found: dict[str, Neighbors],
    shared_S: NDArray[np.int64],
    worst: NDArray[np.int64],
    k: int,
) -> Iterator[Group]:
    """Yield two groups for each image, one a teacher."""
    queries = image_items(cache, chosen[worst].tolist(), view=config.view)
    near = {
        row for each in found.values() for row in each.rows_QK[worst].ravel().tolist() if row >= 0
    }
    items = items_of(cache, config.modality, near, view=config.view)
    for at in worst.tolist():
        sets = [set(each.rows_QK[at].tolist()) for each in found.values()]
        both = sets[0] & sets[1]
        for name, each in found.items():
            yield Group(
                query=queries[int(chosen[at])],
                items=tuple(_near(items, each, at, both)),
                heading=f"{name}: {shared_S[at]} of {k} shared",
                values={"teacher": name, "overlap": float(shared_S[at] / k)},
            )


def _near(items: dict[int, Item], found: Neighbors, at: int, both: set[int]) -> Iterator[Item]:
    for row, cosine in zip(found.rows_QK[at].tolist(), found.cosine_QK[at].tolist(), strict=True):
        if row >= 0:
            remarks = (("shared",) if row in both else ()) + items[row].remarks
            yield replace(items[row], cosine=cosine, remarks=remarks)
