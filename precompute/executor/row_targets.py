"""Where the targets of a unit's rows come from: a live teacher, or embeddings that are imported.

Shape letters in this file: B = images or texts of a batch, K = views of an image, D = embed_dim.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...images.image import DecodedBatch
from ...siglip import ImageRecipe, PatchPooling
from ...store.format.layout import Modality
from ...store.format.patch_map import PatchMap
from ..teacher.embedder import Embedder
from ..teacher.teacher import Teacher

Wait = Callable[[], NDArray[np.float16]]
"""Waits, and returns the targets of a batch."""


class RowTargets(Protocol):
    """Makes the targets of batches of rows."""

    @property
    def image(self) -> ImageRecipe:
        """The pixels to decode each view to."""
        ...

    @property
    def batch_sizes(self) -> tuple[int, int]:
        """Views, and texts, in the smallest forward pass so far; 0 without forward passes."""
        ...

    def provenance(self) -> dict[str, Any]:
        """Return what may differ between runs of one build, for the record of a unit."""
        ...

    def start_images(self, batch: DecodedBatch) -> Wait:
        """Start a batch with at least one decoded image; the result is (B, K, D), NaN without a target.

        For a teacher with patch targets their values follow the embedding of each view (split_patches).
        """
        ...

    def start_texts(self, texts: Sequence[str], first_row: int) -> Wait:
        """Start consecutive texts; the result is (B, D), NaN without a target."""
        ...

    def why_missing(self, modality: Modality, row: int) -> str:
        """Return why a row that was started has no target."""
        ...


class TeacherTargets:
    """The targets of a live teacher."""

    def __init__(
        self, teacher: Teacher, image_batch: int, text_batch: int, patches: PatchMap | None = None
    ) -> None:
        """Set the teacher, the views and texts of its forward passes, and its patch targets."""
        teacher.patches = (
            None if patches is None else PatchPooling(patches.settings.grid, patches.basis_PW)
        )
        self._embedder = Embedder(teacher, image_batch, text_batch)

    @property
    def image(self) -> ImageRecipe:
        """See RowTargets."""
        return self._embedder.teacher.image

    @property
    def batch_sizes(self) -> tuple[int, int]:
        """See RowTargets."""
        return self._embedder.image_batch, self._embedder.text_batch

    def provenance(self) -> dict[str, Any]:
        """See RowTargets."""
        return self._embedder.teacher.provenance()

    def start_images(self, batch: DecodedBatch) -> Wait:
        """See RowTargets."""
        wait = self._embedder.start_images(*batch.flat_views())
        num_images, num_views = batch.pixels.shape[:2]
        return lambda: wait().reshape(num_images, num_views, -1)

    def start_texts(self, texts: Sequence[str], first_row: int) -> Wait:
        """See RowTargets."""
        return self._embedder.start_texts(texts)

    def why_missing(self, modality: Modality, row: int) -> str:
        """See RowTargets."""
        return "the teacher returned an embedding that is not finite"


def split_patches(
    values: NDArray[np.float16], num_cells: int
) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Return the cells (..., C, P) and the grids (..., 2) in what follows the embeddings of a teacher."""
    cells = values[..., :-2]
    return cells.reshape(*cells.shape[:-1], num_cells, -1), values[..., -2:]
