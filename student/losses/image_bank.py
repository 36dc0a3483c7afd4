"""The teacher-image bank: cached images that texts are compared with, besides those of their batch.

Shape letters in this file: K = bank images of a step, E = the teacher's width.
"""

import numpy as np
from numpy.typing import NDArray

from ...store.targets.targets import Targets
from ..data.random_draws import step_generator


class ImageBank:
    """Images of the train split that have a target, each by one of its views."""

    def __init__(
        self, rows: NDArray[np.int64], images: Targets, *, num_views: int, size: int, seed: int
    ) -> None:
        self._rows, self._images, self._num_views = rows, images, num_views
        self._size, self._seed = size, seed

    def draw(self, step: int) -> NDArray[np.float16]:
        """Return the targets of images drawn for a step, (K, E), in no order: a function of (seed, step)."""
        generator = step_generator(self._seed, step, 0xBA21)
        count = min(self._size, len(self._rows))
        rows_K = self._rows[generator.choice(len(self._rows), count, replace=False, shuffle=False)]
        return self._images.read(rows_K, generator.integers(0, self._num_views, count))
