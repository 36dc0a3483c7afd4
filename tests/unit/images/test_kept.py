"""Images encoded to be kept: small, upright, RGB, never enlarged, and near to the original."""

import io
from typing import Any

import numpy as np
import pytest
from kit.fakes import draw_image
from PIL import Image, JpegImagePlugin

from siglip2_cache.errors import SettingError
from siglip2_cache.images import kept as kept_module
from siglip2_cache.images.image import ImageRef, decode_image
from siglip2_cache.images.image_bytes import ImageLocation
from siglip2_cache.images.kept import KeptFormat, kept_size
from siglip2_cache.images.naflex import render_patches
from siglip2_cache.images.pixels import Decode, PixelError, decode_for_views, render_views
from siglip2_cache.store.format.pixel_settings import PixelSettings
from siglip2_cache.store.format.views import WHOLE_IMAGE, ViewBox

FORM = KeptFormat(PixelSettings(short_side=64, quality=90, on_white=True))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def kept(data: bytes, form: KeptFormat = FORM) -> Image.Image:
    image = Image.open(io.BytesIO(form.encode(data)[0]))
    assert (image.format, image.mode) == ("JPEG", "RGB")
    return image


@pytest.mark.parametrize(
    ("full", "expected"),
    [
        ((640, 480), (85, 64)),
        ((480, 640), (64, 85)),
        ((64, 64), (64, 64)),
        ((40, 30), (40, 30)),  # not enlarged
        ((4000, 64), (4000, 64)),
        ((4000, 65), (3938, 64)),
    ],
)
def test_the_short_side_is_as_asked_and_nothing_is_enlarged(
    full: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert kept_size(full, 64) == expected


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_kept_image_is_the_original_made_smaller(kind: str) -> None:
    original = draw_image(1, (16, 12)).resize((640, 480), Image.Resampling.BICUBIC)
    data, size, full = FORM.encode(encoded(original, kind))
    assert (size, full) == ((85, 64), (640, 480))
    expected = original.resize(size, Image.Resampling.LANCZOS)
    found = np.asarray(Image.open(io.BytesIO(data))).astype(int)
    assert np.abs(found - np.asarray(expected)).mean() < 4


def test_colours_are_kept_at_the_resolution_of_brightness() -> None:
    assert JpegImagePlugin.get_sampling(kept(encoded(draw_image(1, (80, 96))))) == 0  # 4:4:4


BOX = ViewBox(0.31, 0.17, 0.52, 0.63, flip=True)


def test_a_view_of_an_image_made_small_is_cut_at_fractions_of_its_pixels() -> None:
    original = draw_image(1, (16, 12)).resize((640, 480), Image.Resampling.BICUBIC)
    small = original.resize((85, 64), Image.Resampling.LANCZOS)

    def difference(full: tuple[int, int] | None) -> float:
        form: Any = {"size": (32, 32), "resample": Image.Resampling.BILINEAR}
        expected = render_views(original, [BOX], **form).astype(float)
        return float(np.abs(render_views(small, [BOX], **form, full=full) - expected).mean())

    assert difference(original.size) < 0.6
    assert difference(None) > 2 * difference(original.size)  # by up to half a pixel elsewhere


def test_a_view_of_an_image_that_kept_its_size_has_the_same_pixels() -> None:
    image = draw_image(1, (41, 33))
    form: Any = {"size": (32, 32), "resample": Image.Resampling.BICUBIC}
    cut, kept_cut = (
        render_views(image, [BOX, WHOLE_IMAGE], **form, full=full) for full in (None, image.size)
    )
    np.testing.assert_array_equal(cut, kept_cut)


def test_patches_of_a_kept_image_have_the_grid_of_the_original() -> None:
    original = draw_image(1, (16, 12)).resize((500, 121), Image.Resampling.BICUBIC)
    small = original.resize((264, 64), Image.Resampling.LANCZOS)  # another aspect ratio
    form: Any = {"patch_size": 16, "max_num_patches": 100, "resample": 2}
    patches, grids = render_patches(original, [BOX, WHOLE_IMAGE], **form)
    found, found_grids = render_patches(
        small, [BOX, WHOLE_IMAGE], **form, full=original.size, is_kept=True
    )
    assert found_grids == grids
    assert np.abs(found.astype(int) - patches).mean() < 8


def test_a_kept_image_is_upright_and_without_exif() -> None:
    original = draw_image(2, (20, 12)).resize((160, 96), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: turned by 90 degrees
    found = kept(encoded(original, "JPEG", quality=95, exif=exif))
    assert found.size == (64, 107)
    assert not found.getexif()
    upright = original.rotate(270, expand=True).resize((64, 107), Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(found).astype(int) - np.asarray(upright)).mean() < 4


@pytest.mark.parametrize(("on_white", "expected"), [(True, 255), (False, 0)])
def test_a_transparent_colour_becomes_white_where_the_settings_say_so(
    on_white: bool, expected: int
) -> None:
    image = Image.new("P", (80, 80), 0)
    image.putpalette([0, 0, 0])
    data = encoded(image, "GIF", transparency=0)
    form = KeptFormat(PixelSettings(short_side=64, quality=90, on_white=on_white))
    assert np.asarray(kept(data, form)).mean() == pytest.approx(expected, abs=1)


def test_what_is_no_image_is_refused_with_the_reason() -> None:
    with pytest.raises(PixelError, match="damaged image"):
        FORM.encode(encoded(draw_image(0, (80, 80)))[:100])
    out = np.empty(FORM.image_shape, np.uint8)
    found = decode_image(ImageRef(0, ImageLocation(path=None), (), data=b"text"), FORM, out)  # type: ignore[arg-type]
    assert found.reason
    assert found.kept == b""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"short_side": 16}, "--keep-pixels must be 32 to 4096, got 16"),
        ({"short_side": 5000}, "--keep-pixels must be 32 to 4096, got 5000"),
        ({"quality": 0}, "--keep-quality must be 50 to 100, got 0"),
        ({"quality": 101}, "--keep-quality must be 50 to 100, got 101"),
    ],
)
def test_settings_that_are_none_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        PixelSettings(**{"short_side": 64, "quality": 90, "on_white": True, **settings})  # type: ignore[arg-type]


TURNED = Image.Exif()
TURNED[0x0112] = 6


@pytest.mark.parametrize("decode", ["exact", "scaled"])
@pytest.mark.parametrize("exif", [Image.Exif(), TURNED])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_decoded_for_a_model_before_or_not_a_kept_image_is_the_same(
    decode: Decode, exif: Image.Exif, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in ((40, 30), (128, 128), (255, 256), (256, 257), (1025, 512), (999, 2100)):
        data = encoded(draw_image(3, (16, 12)).resize(size), kind, exif=exif)
        expected = FORM.encode(data)
        for side in (16, 64, 200):
            decoded = decode_for_views(
                data,
                [WHOLE_IMAGE],
                view_size=lambda *_, side=side: (side, side),
                decode=decode,
                on_white=True,
            )
            assert FORM.encode(data, decoded) == expected
            if kind == "PNG" or (decode == "exact" and min(size) < 256):
                with monkeypatch.context() as patch:
                    patch.delattr(kept_module, "decode_for_short_side")  # it is not decoded again
                    assert FORM.encode(data, decoded) == expected
