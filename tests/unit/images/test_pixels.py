"""Pixels: what becomes of each kind of picture, and which pixels a view is."""

import hashlib
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from siglip2_cache.images.pixels import PixelError, decode_rgb, render_views, sha256_of_pixels
from siglip2_cache.store.format.views import WHOLE_IMAGE, ViewBox

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
NEAREST, BILINEAR = int(Image.Resampling.NEAREST), int(Image.Resampling.BILINEAR)


def quadrants(width: int = 8, height: int = 6) -> Image.Image:
    """Red, green over blue, white."""
    pixels = np.empty((height, width, 3), np.uint8)
    top, left = height // 2, width // 2
    pixels[:top, :left], pixels[:top, left:] = RED, GREEN
    pixels[top:, :left], pixels[top:, left:] = BLUE, WHITE
    return Image.fromarray(pixels)


def encode(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format, **options)
    return sink.getvalue()


def corners(pixels: Image.Image | NDArray[np.uint8]) -> list[tuple[int, ...]]:
    """Colours at the top left, top right, bottom left and bottom right."""
    array = np.asarray(pixels)
    return [tuple(map(int, array[y, x])) for y in (0, -1) for x in (0, -1)]


# -- bytes to upright RGB


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, [RED, GREEN, BLUE, WHITE]),
        (2, [GREEN, RED, WHITE, BLUE]),
        (3, [WHITE, BLUE, GREEN, RED]),
        (4, [BLUE, WHITE, RED, GREEN]),
        (5, [RED, BLUE, GREEN, WHITE]),
        (6, [BLUE, RED, WHITE, GREEN]),
        (7, [WHITE, GREEN, BLUE, RED]),
        (8, [GREEN, WHITE, RED, BLUE]),
    ],
)
def test_exif_orientation_is_applied(orientation: int, expected: list[tuple[int, ...]]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_rgb(encode(quadrants(8, 6), exif=exif))
    assert corners(image) == expected
    assert image.size == ((8, 6) if orientation < 5 else (6, 8))


@pytest.mark.parametrize(
    ("tag", "kind", "count", "value"),
    [
        pytest.param(0x0100, 2, 2, b"8", id="width as text"),
        pytest.param(0x0101, 9, 1, b"\xff\xff\xff\xff", id="negative height"),
        pytest.param(0x011A, 2, 3, b"72", id="resolution as text"),
        pytest.param(0x0213, 2, 2, b"1", id="position of colours as text"),
    ],
)
def test_an_image_with_a_malformed_exif_tag_is_turned_too(
    tag: int, kind: int, count: int, value: bytes
) -> None:
    entries = sorted([(tag, kind, count, value), (0x0112, 3, 1, b"\x06\0")])
    exif = struct.pack("<2sHIH", b"II", 42, 8, len(entries))
    exif += b"".join(struct.pack("<HHI4s", *entry) for entry in entries) + bytes(4)
    image = decode_rgb(encode(quadrants(8, 6), exif=exif))
    assert image.size == (6, 8)
    assert corners(image) == [BLUE, RED, WHITE, GREEN]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_an_image_whose_exif_is_garbage_is_decoded_as_stored(kind: str) -> None:
    begin = b"Exif\0\0" if kind == "JPEG" else b""
    image = decode_rgb(encode(quadrants(8, 6), kind, exif=begin + b"garbage!"))
    assert image.size == (8, 6)


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("L", 100, (100, 100, 100)),
        ("LA", (100, 0), (100, 100, 100)),  # transparent: the colour under it shows
        ("RGBA", (10, 20, 30, 0), (10, 20, 30)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 0x8012, (128, 128, 128)),  # the high byte
        ("I;16", 0x00FF, (0, 0, 0)),
    ],
)
def test_other_modes_become_rgb(mode: str, value: Any, expected: tuple[int, ...]) -> None:
    image = decode_rgb(encode(Image.new(mode, (3, 2), value)))
    assert (image.mode, image.size) == ("RGB", (3, 2))
    assert image.getpixel((1, 1)) == expected


def test_sixteen_bit_tiffs_of_either_byte_order_keep_their_high_byte() -> None:
    for mode in ("I;16", "I;16B"):
        image = decode_rgb(encode(Image.new(mode, (3, 2), 0x8012), "TIFF"))
        assert image.getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize(
    ("bits", "photometric", "data", "expected"),
    [
        pytest.param(12, 1, "fff801 00012f", [255, 128, 0, 18], id="12 bits"),
        pytest.param(16, 1, "ffff 0180 0000 ff12", [255, 128, 0, 18], id="16 bits"),
        pytest.param(16, 0, "0000 ff7f ffff 00ed", [255, 128, 0, 18], id="16 bits, white is 0"),
    ],
)
def test_deep_gray_tiffs_keep_their_high_8_bits_with_black_as_0(
    bits: int, photometric: int, data: str, expected: list[int]
) -> None:
    image = decode_rgb(_gray_tiff(4, 1, bits, photometric, bytes.fromhex(data)))
    assert [image.getpixel((x, 0)) for x in range(4)] == [(gray,) * 3 for gray in expected]


def test_sixteen_bits_a_colour_channel_become_eight() -> None:
    # Pillow cannot write such a PNG: header, one row of one pixel, filter byte 0.
    data = _png(1, 1, depth=16, color=2, raw=b"\0" + bytes.fromhex("80127fff00ff"))
    assert decode_rgb(data).getpixel((0, 0)) == (0x80, 0x7F, 0x00)


def test_cmyk_becomes_rgb() -> None:
    image = decode_rgb(encode(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF"))
    assert image.getpixel((0, 0)) == (255, 0, 0)
    jpeg = decode_rgb(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100))
    red, green, blue = jpeg.getpixel((8, 8))
    assert red > 250
    assert max(green, blue) < 6


def test_palettes_become_their_colours_with_transparency_dropped() -> None:
    image = quadrants().quantize(4)
    assert corners(decode_rgb(encode(image))) == [RED, GREEN, BLUE, WHITE]
    transparent = decode_rgb(encode(image, transparency=image.getpixel((0, 0))))
    assert corners(transparent) == [RED, GREEN, BLUE, WHITE]
    as_bytes = decode_rgb(encode(image, transparency=bytes([0, 128, 255, 7])))
    assert corners(as_bytes) == [RED, GREEN, BLUE, WHITE]


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in (GREEN, RED, BLUE)]
    for format in ("GIF", "PNG", "WEBP"):
        options = {"lossless": True} if format == "WEBP" else {}
        data = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert decode_rgb(data).getpixel((0, 0)) == GREEN


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pictures_of_32_bits_are_refused(mode: str) -> None:
    data = encode(Image.new(mode, (2, 2)), "TIFF")
    with pytest.raises(PixelError, match=rf"pixels of mode {mode} \(32 bits a channel\) have no"):
        decode_rgb(data)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
def test_a_truncated_picture_is_refused_not_half_read(format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encode(Image.fromarray(noise), format)
    with pytest.raises(PixelError, match=r"^damaged image: |^not an image: it begins with "):
        decode_rgb(data[: len(data) // 2])


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_truncated_jpeg_or_png_is_called_damaged(format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encode(Image.fromarray(noise), format)
    with pytest.raises(PixelError, match=r"^damaged image: .*truncated"):
        decode_rgb(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<!DOCTYPE html><title>404</title>", "not an image: it is a web page"),
        (b"  \n<html>Not found</html>", "not an image: it is a web page"),
        (
            b"<?xml version='1.0'?><Error>AccessDenied</Error>",
            "not an image: it is XML, such as a store's error message",
        ),
        (b"\x01\x02\xff plain", "not an image: it begins with 01 02 ff 20 70 6c 61 69"),
        (b"x", "not an image: it begins with 78"),
    ],
)
def test_what_is_no_picture_is_called_by_how_it_begins(data: bytes, message: str) -> None:
    with pytest.raises(PixelError) as caught:
        decode_rgb(data)
    assert str(caught.value) == message


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    data = _png(60_000, 60_000, depth=8, color=2, raw=b"")
    with pytest.raises(PixelError, match=r"^too large: Image size \(3600000000 pixels\)"):
        decode_rgb(data)


def test_the_picture_returned_is_whole_without_its_bytes() -> None:
    image = decode_rgb(encode(quadrants()))
    assert corners(image) == [RED, GREEN, BLUE, WHITE]
    assert getattr(image, "fp", None) is None


# -- bytes


def test_the_hash_of_a_picture_is_that_of_its_bytes() -> None:
    assert sha256_of_pixels(b"abc") == hashlib.sha256(b"abc").digest()


# -- views


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        (ViewBox(0.0, 0.0, 1.0, 1.0), [RED, GREEN, BLUE, WHITE]),
        (ViewBox(0.0, 0.0, 1.0, 1.0, True), [GREEN, RED, WHITE, BLUE]),
        (ViewBox(0.0, 0.0, 0.5, 0.5), [RED] * 4),
        (ViewBox(0.0, 0.5, 0.5, 0.5), [GREEN] * 4),
        (ViewBox(0.5, 0.0, 0.5, 0.5), [BLUE] * 4),
        (ViewBox(0.5, 0.5, 0.5, 0.5), [WHITE] * 4),
        (ViewBox(0.25, 0.0, 0.5, 0.5), [RED, RED, BLUE, BLUE]),
        (ViewBox(0.0, 0.25, 0.5, 0.5), [RED, GREEN, RED, GREEN]),
        (ViewBox(0.0, 0.25, 0.5, 0.5, True), [GREEN, RED, GREEN, RED]),
        # cropped, then mirrored: the other way round this would show the right half
        (ViewBox(0.0, 0.0, 1.0, 0.5, True), [RED, RED, BLUE, BLUE]),
    ],
)
def test_crops_and_flips_show_the_right_pixels(
    box: ViewBox, expected: list[tuple[int, ...]]
) -> None:
    [view] = render_views(quadrants(80, 60), [box], size=(8, 8), resample=NEAREST)
    assert view.shape == (8, 8, 3)
    assert corners(view) == expected


def test_views_come_in_the_order_of_their_boxes_at_height_by_width() -> None:
    boxes = [WHOLE_IMAGE, ViewBox(0.0, 0.0, 0.5, 0.5), ViewBox(0.5, 0.5, 0.5, 0.5)]
    views = render_views(quadrants(), boxes, size=(4, 10), resample=BILINEAR)
    assert (views.shape, views.dtype) == ((3, 4, 10, 3), np.uint8)
    assert [corners(view)[0] for view in views] == [RED, RED, WHITE]


def test_the_whole_image_is_resized_as_pillow_alone_does() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
    image = Image.fromarray(noise)
    [view] = render_views(image, [WHOLE_IMAGE], size=(16, 24), resample=BILINEAR)
    expected = image.resize((24, 16), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(view, np.asarray(expected))


def test_a_flip_is_exactly_the_mirror_of_the_view_without_it() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
    boxes = [ViewBox(0.1, 0.2, 0.6, 0.5), ViewBox(0.1, 0.2, 0.6, 0.5, True)]
    plain, flipped = render_views(
        Image.fromarray(noise), boxes, size=(16, 16), resample=BILINEAR
    ).astype(int)
    # Pillow rounds its filter's weights from the left, so a mirrored resize may differ by one.
    assert np.abs(plain[:, ::-1] - flipped).max() <= 1
    assert np.abs(plain - flipped).max() > 20


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1)])
def test_thin_pictures_have_views_too(size: tuple[int, int]) -> None:
    boxes = [WHOLE_IMAGE, ViewBox(0.3, 0.3, 0.2, 0.2, True)]
    views = render_views(Image.new("RGB", size, GREEN), boxes, size=(4, 4), resample=BILINEAR)
    assert (views == GREEN).all()


def _png(width: int, height: int, *, depth: int, color: int, raw: bytes) -> bytes:
    """A PNG made by hand."""

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _gray_tiff(width: int, height: int, bits: int, photometric: int, raw: bytes) -> bytes:
    """A TIFF made by hand: Pillow writes neither 12 bits nor WhiteIsZero."""
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 277: 1, 278: height}
    tags |= {273: 8, 279: len(raw)}  # offset and length of the only strip
    directory = struct.pack("<H", len(tags))
    directory += b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    return struct.pack("<2sHI", b"II", 42, 8 + len(raw)) + raw + directory + bytes(4)
