"""Confidence intervals of the figures of an evaluation, by a bootstrap over images.

Every figure here is a function of sums over images. A resample draws as many pictures as there are, with
replacement; copies of a picture, and the captions and pairs of an image, are drawn with it. The gallery that
a query is ranked in stays whole: an interval says how much a figure depends on the choice of queries.

Shape letters in this file:
    N = images, J = values that are averaged, K = sums of one figure, R = resamples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .metrics import Ints, Rows

NUM_RESAMPLES = 1000
LEVEL = 0.95
"""Share of the resamples whose figures lie in the interval."""

Path = tuple[str, ...]
Figure = Callable[[Rows], Rows]
"""From (R, K) sums over the images of each resample to the (R,) figure."""

_BLOCK_VALUES = 1 << 20
"""Weights in memory at a time, some 8 MB."""


@dataclass
class Figures:
    """Collects what the intervals of an evaluation are computed from."""

    picture_N: Ints
    """Equal numbers for equal pictures."""

    _sums: dict[Path, tuple[Rows, Figure]] = field(default_factory=dict[Path, tuple[Rows, Figure]])
    _means: dict[Path, Sequence[Path]] = field(default_factory=dict[Path, Sequence[Path]])

    def add(self, path: Path, sums_NK: Rows, figure: Figure) -> None:
        """Add a figure that is a function of sums over images.

        Args:
            path: where the figure is in the result.
            sums_NK: what each image adds to the sums.
            figure: from sums to the figure; NaN where they do not define it.
        """
        self._sums[path] = (sums_NK, figure)

    def add_mean(
        self,
        path: Path,
        image_J: Ints,
        value_J: Rows | NDArray[np.bool_],
        weight_J: Rows | None = None,
    ) -> None:
        """Add a weighted mean; values that are not finite are left out.

        Args:
            path: where the figure is in the result.
            image_J: the image that each value belongs to.
            value_J: what is averaged.
            weight_J: its weights; None: equal ones.
        """
        is_there = np.isfinite(value_J)
        weight_J = is_there * (1.0 if weight_J is None else weight_J)
        value_J = np.where(is_there, value_J, 0.0)
        num_images = len(self.picture_N)
        sums = [np.bincount(image_J, x, num_images) for x in (weight_J * value_J, weight_J)]
        self.add(
            path,
            np.stack(sums, axis=1).astype(np.float64),
            lambda sums_R2: sums_R2[:, 0] / sums_R2[:, 1],
        )

    def add_mean_of(self, path: Path, paths: Sequence[Path]) -> None:
        """Add the mean of other figures, those of the same resample."""
        self._means[path] = paths

    def intervals(
        self, *, seed: int, num_resamples: int = NUM_RESAMPLES, level: float = LEVEL
    ) -> dict[str, Any]:
        """Return (low, high) of each figure, nested by its path; None where no resample defines it.

        Args:
            seed: of the resamples.
            num_resamples: number of them.
            level: share of them between low and high.

        Source: the percentile bootstrap, Efron 1979, doi:10.1214/aos/1176344552.
        """
        values = self._resampled(seed, num_resamples)
        for path, paths in self._means.items():
            values[path] = np.mean([values[each] for each in paths], axis=0)
        found: dict[str, Any] = {}
        for path, value_R in values.items():
            place = found
            for name in path[:-1]:
                place = place.setdefault(name, {})
            defined = value_R[np.isfinite(value_R)]
            ends = (0.5 - level / 2, 0.5 + level / 2)
            place[path[-1]] = np.quantile(defined, ends).tolist() if len(defined) else None
        return found

    def _resampled(self, seed: int, num_resamples: int) -> dict[Path, Rows]:
        """Return each figure in every resample, (R,)."""
        pictures, picture_N = np.unique(self.picture_N, return_inverse=True)
        num_pictures = len(pictures)
        columns = [sums_NK for sums_NK, _ in self._sums.values()]
        each_NK = np.concatenate(columns, axis=1) if columns else np.empty((len(picture_N), 0))
        sums_NK = np.zeros((num_pictures, each_NK.shape[1]))
        np.add.at(sums_NK, picture_N, each_NK)
        draw = np.random.default_rng(seed)
        size = max(1, _BLOCK_VALUES // max(1, num_pictures))
        parts: list[Rows] = []
        for first in range(0, num_resamples, size):
            num = min(size, num_resamples - first)
            drawn = draw.integers(0, num_pictures, (num, num_pictures))
            drawn += np.arange(num)[:, None] * num_pictures
            times = np.bincount(drawn.ravel(), minlength=num * num_pictures)
            parts.append(times.reshape(num, num_pictures).astype(np.float64) @ sums_NK)
        sums_RK, at = np.concatenate(parts), 0
        found: dict[Path, Rows] = {}
        with np.errstate(invalid="ignore", divide="ignore"):
            for path, (own_NK, figure) in self._sums.items():
                found[path] = figure(sums_RK[:, at : at + own_NK.shape[1]])
                at += own_NK.shape[1]
        return found
