"""Patches: a view of a picture as NaFlex models take it, its aspect nearly kept.

Shape letters in this file: H, W = pixels, N = patches, P = patch_size * patch_size * 3.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..store.format.views import ViewBox
from .pixels import PixelError, cut_size, cut_view, resized

Grid = tuple[int, int]
"""Rows and columns of patches."""

# The search for a scale: where it begins, and how near its bounds are when it ends. The smallest is
# a division, as in transformers: it gives 1.0000000000000002e-06.
_NEAR = 1e-5
_SMALLEST_SCALE, _LARGEST_SCALE = _NEAR / 10, 100.0


def patch_grid(height: int, width: int, *, patch_size: int, max_num_patches: int) -> Grid:
    """Return the grid of a picture of height x width pixels.

    The picture is enlarged or reduced to the largest scale at which it covers at most
    ``max_num_patches`` patches, begun ones counted. The scale is found by halving, and the grid
    depends on where that ends, so the steps are those of transformers, operation for operation.

    Source: get_image_size_for_max_num_patches of transformers 5.23.
    """

    def grid_at(scale: float) -> Grid:
        rows, columns = (math.ceil(size * scale / patch_size) for size in (height, width))
        return max(1, rows), max(1, columns)

    low, high = _SMALLEST_SCALE, _LARGEST_SCALE
    while high - low >= _NEAR:
        middle = (low + high) / 2
        if math.prod(grid_at(middle)) <= max_num_patches:
            low = middle
        else:
            high = middle
    return grid_at(low)


def render_patches(
    image: Image.Image,
    boxes: Sequence[ViewBox],
    *,
    patch_size: int,
    max_num_patches: int,
    resample: int,
    full: tuple[int, int] | None = None,
) -> tuple[NDArray[np.uint8], tuple[Grid, ...]]:
    """Return the views of an upright RGB image as (len(boxes), max_num_patches, P) uint8 patches,
    zeros after the last of each, and their grids.

    Each is cropped, mirrored where its box says so, then resized to its own grid with Pillow's
    resampler, exactly as the checkpoint's processor does with a whole image.

    ``full`` is the (width, height) that the picture has in full, where ``image`` is a smaller one: the
    grids are those of the full one.

    Raises:
        PixelError: a view is so long that even at the smallest scale it has too many patches.
    """
    out = np.zeros((len(boxes), max_num_patches, patch_size * patch_size * 3), np.uint8)
    grids: list[Grid] = []
    for patches_NP, box in zip(out, boxes, strict=True):
        height, width = cut_size(box, full or image.size)
        rows, columns = patch_grid(
            height, width, patch_size=patch_size, max_num_patches=max_num_patches
        )
        if rows * columns > max_num_patches:
            raise PixelError(
                f"too long: {width} x {height} pixels do not go into {max_num_patches} patches"
            )
        view = resized(cut_view(image, box), (rows * patch_size, columns * patch_size), resample)
        patches_NP[: rows * columns] = patchify(np.asarray(view), patch_size)
        grids.append((rows, columns))
    return out, tuple(grids)


def patchify(pixels_HWC: NDArray[np.uint8], patch_size: int) -> NDArray[np.uint8]:
    """Return (N, P): patches row by row of the picture, in each its pixels row by row, RGB."""
    H, W, C = pixels_HWC.shape
    rows, columns = H // patch_size, W // patch_size
    split = pixels_HWC.reshape(rows, patch_size, columns, patch_size, C)
    return split.transpose(0, 2, 1, 3, 4).reshape(rows * columns, patch_size * patch_size * C)
