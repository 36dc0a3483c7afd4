"""Views as NaFlex patches: the aspect ratio of an image is nearly preserved.

Shape letters in this file: H, W = pixels, N = patches, P = patch_size * patch_size * 3.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..store.format.views import ViewBox
from .pixels import PixelError, cut_size, render_view

Grid = tuple[int, int]
"""Rows and columns of patches."""

# Bounds of the search for a scale, and the distance at which it ends. The smallest scale is a division,
# as in transformers: it gives 1.0000000000000002e-06.
_TOLERANCE = 1e-5
_MIN_SCALE, _MAX_SCALE = _TOLERANCE / 10, 100.0


def patch_grid(height: int, width: int, *, patch_size: int, max_num_patches: int) -> Grid:
    """Return the grid of patches of an image of height x width pixels.

    The image is resized to the largest scale at which it covers at most ``max_num_patches`` patches,
    partial ones included. The scale is found by bisection, and the grid depends on where that ends, so
    the steps are exactly those of transformers.

    Source: get_image_size_for_max_num_patches of transformers 5.23.
    """

    def grid_at(scale: float) -> Grid:
        rows, columns = (math.ceil(size * scale / patch_size) for size in (height, width))
        return max(1, rows), max(1, columns)

    low, high = _MIN_SCALE, _MAX_SCALE
    while high - low >= _TOLERANCE:
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
    is_kept: bool = False,
) -> tuple[NDArray[np.uint8], tuple[Grid, ...]]:
    """Return the views of an upright RGB image as patches, and their grids.

    Each view is cropped, mirrored if its box says so, then resized to its own grid with the resampler
    of Pillow, exactly as the processor of the checkpoint does with a whole image, and augmented.

    Args:
        image: the image, which may be scaled down.
        boxes: the views.
        patch_size: height and width of a patch in pixels.
        max_num_patches: most patches of a view.
        resample: number of the resampler in Pillow.
        full: (width, height) of the image at full resolution, which the grids are made for; None: that
            of ``image``.
        is_kept: whether views are cut at fractions of a pixel, where they are in ``full``.

    Returns:
        (len(boxes), max_num_patches, P) uint8, zeros after the last patch of each view, and the grids.

    Raises:
        PixelError: a view is so long that it has too many patches even at the smallest scale.
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
                f"too long: {width} x {height} pixels do not fit into {max_num_patches} patches"
            )
        size = (rows * patch_size, columns * patch_size)
        view = render_view(image, box, size, resample, full if is_kept else None)
        patches_NP[: rows * columns] = patchify(np.asarray(view), patch_size)
        grids.append((rows, columns))
    return out, tuple(grids)


def patchify(pixels_HWC: NDArray[np.uint8], patch_size: int) -> NDArray[np.uint8]:
    """Return the (N, P) patches of an image in row order, each with its pixels in row order, RGB."""
    H, W, C = pixels_HWC.shape
    rows, columns = H // patch_size, W // patch_size
    split = pixels_HWC.reshape(rows, patch_size, columns, patch_size, C)
    return split.transpose(0, 2, 1, 3, 4).reshape(rows * columns, patch_size * patch_size * C)
