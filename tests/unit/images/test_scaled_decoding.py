"""Scaled decoding: large JPEGs at a fraction of their size, nearly the pixels of exact decoding."""

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from siglip2_cache.images.naflex import patch_grid, render_patches
from siglip2_cache.images.pixels import (
    DECODES,
    Decode,
    PixelError,
    ViewSize,
    decode_for_views,
    decode_rgb,
    render_views,
)
from siglip2_cache.store.format.views import WHOLE_IMAGE, ViewBox

BILINEAR = int(Image.Resampling.BILINEAR)
SIZE = (32, 32)
MOST, MOST_IN_MEAN = 4, 0.5
"""The tolerance for a picture as smooth as this one, in steps of uint8; docs/reference/format.md states what
photographs gave, whose edges are sharper."""


def photograph(width: int = 640, height: int = 480) -> Image.Image:
    """A picture without symmetry, smooth but for a fine grain, as photographs are."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    grain = rng.normal(0, 6, (height, width, 1))
    return Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))


def encode(image: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format, **({"quality": 92} if format == "JPEG" else {}), **options)
    return sink.getvalue()


def always(size: tuple[int, int]) -> ViewSize:
    """A model that squashes every view to one size."""
    return lambda height, width: size


def views(
    data: bytes, decode: Decode, boxes: tuple[ViewBox, ...] = (WHOLE_IMAGE,)
) -> NDArray[np.int16]:
    image, _ = decode_for_views(data, boxes, view_size=always(SIZE), decode=decode)
    return render_views(image, boxes, size=SIZE, resample=BILINEAR).astype(np.int16)


def decoded_size(data: bytes, size: tuple[int, int], *boxes: ViewBox) -> tuple[int, int]:
    image, _ = decode_for_views(
        data, boxes or (WHOLE_IMAGE,), view_size=always(size), decode="scaled"
    )
    return image.size


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_gives_nearly_the_exact_pixels(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photograph(), exif=exif)
    boxes = (WHOLE_IMAGE, ViewBox(0.1, 0.3, 0.6, 0.6), ViewBox(0.4, 0.05, 0.6, 0.7, True))
    difference = np.abs(views(data, "scaled", boxes) - views(data, "exact", boxes))
    assert difference.max() <= MOST
    assert difference.mean() <= MOST_IN_MEAN
    # The tolerance tells pictures apart: turned otherwise, this one is far away.
    assert np.abs(views(data, "exact")[:, ::-1] - views(data, "exact")).mean() > 20
    image, size = decode_for_views(data, boxes, view_size=always(SIZE), decode="scaled")
    assert size == ((640, 480) if orientation < 5 else (480, 640)), "the true size is recorded"
    assert image.size == tuple(side // 4 for side in size)


def test_the_scale_is_the_smallest_that_leaves_every_view_twice_the_pixels_it_will_have() -> None:
    data = encode(photograph())
    assert decoded_size(data, (30, 30)) == (80, 60)
    assert decoded_size(data, (30, 40)) == (80, 60)
    assert decoded_size(data, (30, 41)) == (160, 120)
    assert decoded_size(data, (60, 60)) == (160, 120)
    assert decoded_size(data, (61, 61)) == (320, 240)
    assert decoded_size(data, (121, 121)) == (640, 480)
    half = ViewBox(0.0, 0.5, 1.0, 0.5)
    assert decoded_size(data, (30, 30), WHOLE_IMAGE, half) == (160, 120)
    assert decoded_size(data, (30, 20), WHOLE_IMAGE, half) == (80, 60)


def test_a_turned_picture_is_scaled_by_its_upright_sides() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(photograph(640, 480), exif=exif)  # upright 480 x 640
    assert decoded_size(data, (40, 30)) == (60, 80)
    assert decoded_size(data, (30, 40)) == (120, 160)


def test_what_is_not_several_times_too_large_is_exact() -> None:
    data = encode(photograph(60, 60))
    np.testing.assert_array_equal(views(data, "scaled"), views(data, "exact"))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "BMP"])
def test_other_formats_than_jpeg_are_decoded_exactly(format: str) -> None:
    data = encode(photograph(), format)
    np.testing.assert_array_equal(views(data, "scaled"), views(data, "exact"))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_gray_and_cmyk_jpegs_are_scaled_too(mode: str) -> None:
    data = encode(photograph().convert(mode))
    assert decoded_size(data, SIZE) == (160, 120)
    assert np.abs(views(data, "scaled") - views(data, "exact")).max() <= MOST


def test_a_jpeg_of_several_pictures_is_scaled_to_its_first() -> None:
    data = encode(photograph(), "MPO", save_all=True, append_images=[Image.new("RGB", (640, 480))])
    assert decoded_size(data, SIZE) == (160, 120)
    assert np.abs(views(data, "scaled") - views(data, "exact")).max() <= MOST


@pytest.mark.parametrize("decode", ["exact", "scaled"])
def test_a_truncated_jpeg_is_refused_whichever_way(decode: Decode) -> None:
    data = encode(photograph())
    with pytest.raises(PixelError, match=r"^damaged image: .*truncated"):
        views(data[: len(data) // 2], decode)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exact_is_bit_for_bit_what_pillow_decodes_and_turns_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photograph(), exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    np.testing.assert_array_equal(np.asarray(decode_rgb(data)), np.asarray(expected))
    image, size = decode_for_views(data, [WHOLE_IMAGE], view_size=always(SIZE), decode="exact")
    np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))
    assert size == expected.size


def test_patches_of_a_scaled_picture_have_the_grid_of_the_full_one() -> None:
    # 900 x 632 at an eighth is 113 x 79, whose aspect is another by a little, and so is its grid.
    data = encode(photograph(900, 632))
    limit = {"patch_size": 4, "max_num_patches": 80}
    box = (WHOLE_IMAGE,)
    assert patch_grid(632, 900, **limit) != patch_grid(79, 113, **limit)

    def view_size(height: int, width: int) -> tuple[int, int]:
        rows, columns = patch_grid(height, width, **limit)
        return rows * 4, columns * 4

    found = {}
    for decode in DECODES:
        image, full = decode_for_views(data, box, view_size=view_size, decode=decode)
        assert full == (900, 632)
        assert image.size == {"exact": full, "scaled": (113, 79)}[decode]
        found[decode] = render_patches(image, box, **limit, resample=BILINEAR, full=full)
    assert found["scaled"][1] == found["exact"][1]
    difference = np.abs(found["scaled"][0].astype(np.int16) - found["exact"][0])
    assert difference.mean() <= 2  # 113 pixels at an eighth stand for 904: up to 0.4 % of a stretch
