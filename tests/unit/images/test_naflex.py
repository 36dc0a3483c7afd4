"""Patches are those of transformers' NaFlex processor: the same grids, the same bytes."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from siglip2_cache.images.naflex import patch_grid, patchify, render_patches
from siglip2_cache.images.pixels import PixelError
from siglip2_cache.store.format.views import WHOLE_IMAGE, ViewBox, pixel_box

BILINEAR = 2
SIZES = st.one_of(st.integers(1, 70), st.integers(1, 5000), st.integers(1, 200_000))


def grid_of_transformers(height: int, width: int, patch_size: int, limit: int) -> tuple[int, int]:
    from transformers.models.siglip2.image_processing_pil_siglip2 import (
        get_image_size_for_max_num_patches,
    )

    H, W = get_image_size_for_max_num_patches(height, width, patch_size, limit)
    return H // patch_size, W // patch_size


@given(
    height=SIZES,
    width=SIZES,
    patch_size=st.sampled_from([14, 16, 32]),
    limit=st.one_of(st.sampled_from([128, 256, 576, 784, 1024]), st.integers(1, 2000)),
)
@example(height=1, width=1, patch_size=16, limit=256)
@example(height=1, width=1, patch_size=16, limit=1)
@example(height=1, width=4000, patch_size=16, limit=256)
@example(height=4000, width=1, patch_size=16, limit=256)
@example(height=256, width=256, patch_size=16, limit=256)
@settings(max_examples=150, deadline=None)
def test_the_grid_is_that_of_transformers(
    height: int, width: int, patch_size: int, limit: int
) -> None:
    found = patch_grid(height, width, patch_size=patch_size, max_num_patches=limit)
    assert found == grid_of_transformers(height, width, patch_size, limit)


def test_the_grid_is_that_of_transformers_for_every_small_picture() -> None:
    for height in range(1, 120):
        for width in range(1, 120):
            found = patch_grid(height, width, patch_size=16, max_num_patches=256)
            assert found == grid_of_transformers(height, width, 16, 256)


@pytest.mark.parametrize(
    ("size", "grid"),
    [  # (width, height), (rows, columns)
        ((256, 256), (16, 16)),
        ((640, 480), (14, 18)),
        ((480, 640), (18, 14)),
        ((4000, 1), (1, 256)),
        ((1, 1), (7, 7)),  # enlarged by at most 100
    ],
)
def test_some_grids_known_by_heart(size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert patch_grid(size[1], size[0], patch_size=16, max_num_patches=256) == grid


def noise(width: int, height: int) -> Image.Image:
    draw = np.random.default_rng(width * 10_000 + height)
    return Image.fromarray(draw.integers(0, 256, (height, width, 3), np.uint8))


def of_the_processor(image: Image.Image, limit: int, resample: int) -> dict[str, NDArray[Any]]:
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    processor = Siglip2ImageProcessorPil(max_num_patches=limit, resample=resample)
    return {k: np.asarray(v)[0] for k, v in processor(image, return_tensors="np").items()}


@pytest.mark.parametrize(
    "size",
    [
        pytest.param((640, 480), id="photo"),
        pytest.param((90, 400), id="tall"),
        pytest.param((256, 256), id="of a grid's size already"),
        pytest.param((20, 12), id="enlarged"),
        pytest.param((1, 1), id="1x1"),
        pytest.param((4000, 1), id="4000x1"),
        pytest.param((1, 4000), id="1x4000"),
        pytest.param((3, 700), id="as wide as it has colours"),
    ],
)
@pytest.mark.parametrize(
    "box",
    [
        pytest.param(WHOLE_IMAGE, id="whole"),
        pytest.param(ViewBox(0.1, 0.3, 0.5, 0.4), id="crop"),
        pytest.param(ViewBox(0.0, 0.25, 0.75, 0.75, True), id="mirrored crop"),
    ],
)
@pytest.mark.parametrize(("limit", "resample"), [(256, BILINEAR), (49, 3)])
def test_patches_are_those_of_the_processor_bit_for_bit(
    size: tuple[int, int], box: ViewBox, limit: int, resample: int
) -> None:
    image = noise(*size)
    [ours], [grid] = render_patches(
        image, [box], patch_size=16, max_num_patches=limit, resample=resample
    )
    view: Image.Image = image.crop(pixel_box(box, *size))
    view = ImageOps.mirror(view) if box.flip else view
    theirs = of_the_processor(view, limit, resample)
    N = grid[0] * grid[1]
    assert list(grid) == theirs["spatial_shapes"].tolist()
    assert theirs["pixel_attention_mask"].tolist() == [1] * N + [0] * (limit - N)
    pixels = np.rint((theirs["pixel_values"][:N] * 0.5 + 0.5) * 255).astype(np.uint8)
    np.testing.assert_array_equal(ours[:N], pixels)
    assert ours.shape == (limit, 768)
    assert not ours[N:].any()


def test_every_view_has_its_own_grid() -> None:
    boxes = [WHOLE_IMAGE, ViewBox(0.0, 0.0, 1.0, 0.25), ViewBox(0.5, 0.0, 0.25, 1.0, True)]
    patches, grids = render_patches(
        noise(400, 400), boxes, patch_size=16, max_num_patches=64, resample=BILINEAR
    )
    assert patches.shape == (3, 64, 768)
    assert grids == ((8, 8), (16, 4), (4, 16))


def test_a_patch_is_its_pixels_row_by_row() -> None:
    pixels_HWC = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    patches_NP = patchify(pixels_HWC, 2)
    assert patches_NP.shape == (6, 12)
    np.testing.assert_array_equal(patches_NP[4].reshape(2, 2, 3), pixels_HWC[2:4, 2:4])


def test_a_picture_too_long_for_the_grid_is_refused() -> None:
    image = Image.new("RGB", (17_000_000, 1))
    with pytest.raises(PixelError, match="too long: 17000000 x 1 pixels do not fit into 1 patches"):
        render_patches(image, [WHOLE_IMAGE], patch_size=16, max_num_patches=1, resample=BILINEAR)
