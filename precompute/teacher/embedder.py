"""Embedding batches with a live teacher: pixels and texts in, float16 unit rows out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...siglip import ImageRecipe, SquashRecipe
from ...store.format.shard import NORM_TOLERANCE
from .patch_batches import group_by_patches
from .teacher import OutOfMemory, Teacher

_WINDOW_PASSES = 4
"""NaFlex views decoded together and then sorted into passes, in forward passes. On 288 photographs of COCO,
whole or in 5 views, 4 leave 0.6 to 1.1 % of padding (1 leaves 1.8 to 2.5 %, as much as padding all to 256
patches); more would delay progress and stopping."""

_WINDOW_BYTES = 1 << 28
"""Most pixel bytes of such a window, unless one pass is larger: 1 GiB in the decoder's four slots."""

_Wait = Callable[[], NDArray[np.float32]]


def split_images(recipe: ImageRecipe, batch_size: int, num_views: int) -> tuple[int, int]:
    """Return how many samples are decoded together, and how many views go into a forward pass.

    For a fixed-resolution teacher both are the same samples. A pure function of its input, because the
    bytes of an embedding may depend on its batch.
    """
    if isinstance(recipe, SquashRecipe):
        samples = max(1, batch_size // num_views)
        return samples, samples * num_views if num_views <= batch_size else batch_size
    pass_bytes = batch_size * int(np.prod(recipe.view_shape))
    num_passes = max(1, min(_WINDOW_PASSES, _WINDOW_BYTES // pass_bytes))
    return max(1, num_passes * batch_size // num_views), batch_size


@dataclass(slots=True)
class Embedder:
    """Runs a teacher on batches of one size; a size that does not fit in memory is halved for good.

    Rounding differs with the batch size, so short batches are padded with blanks. Those of a NaFlex teacher
    are not: which views share a pass depends on their patches anyway.
    """

    teacher: Teacher
    image_batch: int
    text_batch: int

    @property
    def row_dim(self) -> int:
        """Values of a row of an image: those of its embedding, and of its patch targets if there are any."""
        patches, width = self.teacher.patches, self.teacher.embed_dim
        return width if patches is None else width + patches.num_values(width)

    def start_images(
        self, pixels: NDArray[np.uint8], grids_B2: NDArray[np.int64]
    ) -> Callable[[], NDArray[np.float16]]:
        """Start on any number of views; return a function that returns (B, row_dim) float16.

        Args:
            pixels: (B, *view_shape) uint8 of the teacher's recipe.
            grids_B2: rows and columns of patches, used by NaFlex teachers only. A view without patches is
                not embedded; its row is NaN.
        """

        def start(size: int) -> Callable[[], NDArray[np.float16]]:
            if isinstance(self.teacher.image, SquashRecipe):
                return self._start_squashed(pixels, size)
            return self._start_patches(pixels, grids_B2, size)

        while True:
            try:
                return start(self.image_batch)
            except OutOfMemory:
                if self.image_batch == 1:
                    raise
                self.image_batch //= 2

    def start_texts(self, texts: Sequence[str]) -> Callable[[], NDArray[np.float16]]:
        """Start on any number of texts; return a function that returns (B, embed_dim) float16."""

        def start(size: int) -> list[_Wait]:
            return [
                self.teacher.embed_texts(_pad_texts(texts[i : i + size], size))
                for i in range(0, len(texts), size)
            ]

        while True:
            try:
                return _gather(start(self.text_batch), len(texts))
            except OutOfMemory:
                if self.text_batch == 1:
                    raise
                self.text_batch //= 2

    def _start_squashed(
        self, pixels_BHWC: NDArray[np.uint8], size: int
    ) -> Callable[[], NDArray[np.float16]]:
        waits = [
            self.teacher.embed_images(_pad_pixels(pixels_BHWC[i : i + size], size))
            for i in range(0, len(pixels_BHWC), size)
        ]
        return _gather(waits, len(pixels_BHWC))

    def _start_patches(
        self, patches_BNP: NDArray[np.uint8], grids_B2: NDArray[np.int64], size: int
    ) -> Callable[[], NDArray[np.float16]]:
        num_patches = grids_B2.prod(axis=1)
        passes = group_by_patches(num_patches, size)
        waits: list[_Wait] = []
        for views in passes:
            N = int(num_patches[views].max())
            waits.append(self.teacher.embed_patches(patches_BNP[views, :N], grids_B2[views]))

        def wait() -> NDArray[np.float16]:
            found = np.full((len(patches_BNP), self.row_dim), np.nan, np.float16)
            for views, one in zip(passes, waits, strict=True):
                found[views] = _to_float16(one())
            return found

        return wait


def is_unit(rows_BD: NDArray[np.float16]) -> NDArray[np.bool_]:
    """Return whether each row, along the last axis, is finite and of norm 1."""
    with np.errstate(invalid="ignore", over="ignore"):
        norms = np.linalg.norm(rows_BD.astype(np.float32), axis=-1)
        return np.abs(norms - 1) < NORM_TOLERANCE  # False for NaN


def _gather(waits: list[_Wait], count: int) -> Callable[[], NDArray[np.float16]]:
    def wait() -> NDArray[np.float16]:
        return _to_float16(np.concatenate([w() for w in waits])[:count])

    return wait


def _to_float16(rows_BD: NDArray[np.float32]) -> NDArray[np.float16]:
    """Return rows as float16; rows that are not finite are rejected later."""
    with np.errstate(over="ignore", invalid="ignore"):
        return rows_BD.astype(np.float16)


def _pad_pixels(pixels_BHWC: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    if len(pixels_BHWC) == size:
        return pixels_BHWC
    padded = np.zeros((size, *pixels_BHWC.shape[1:]), np.uint8)
    padded[: len(pixels_BHWC)] = pixels_BHWC
    return padded


def _pad_texts(texts: Sequence[str], size: int) -> list[str]:
    return [*texts, *[""] * (size - len(texts))]
