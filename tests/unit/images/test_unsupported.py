"""Why bytes are no picture: the reason that a cache records names what they are."""

import io

import numpy as np
import pytest
from PIL import Image

from siglip2_cache.images.pixels import PixelError, decode_rgb

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
UNREAD = "unsupported format; convert it to JPEG, PNG or WebP"


def reason_of(data: bytes) -> str:
    with pytest.raises(PixelError) as caught:
        decode_rgb(data)
    return str(caught.value)


def encoded(format: str, **options: str) -> bytes:
    sink = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(noise).save(sink, format, **options)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (HEIC, f"HEIC: {UNREAD}"),
        (b"\0\0\0\x20ftypmp42\0\0\0\0isom", f"MP4 or QuickTime video: {UNREAD}"),
        (b"\xff\x0a\xfa\x1f", f"JPEG XL: {UNREAD}"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", f"PostScript: {UNREAD}"),
        (b"%PDF-1.7", f"PDF: {UNREAD}"),
        (b"PK\x03\x04\x14", f"ZIP archive: {UNREAD}"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
            "not an image: a Git LFS pointer; fetch the files with 'git lfs pull'",
        ),
        (
            b"../../.git/annex/objects/x/MD5E-s9--1.jpg\n",
            "not an image: a git-annex pointer; fetch the files with 'git annex get'",
        ),
        (
            b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
            "not an image: SVG, vector graphics; convert it to PNG",
        ),
        (b'{"error": "gone"}', "not an image: it is JSON"),
        (b"[]", "not an image: it is JSON"),
        (b"Too Many Requests\n", 'not an image: it is text, "Too Many Requests"'),
        (b"\0" * 4096, "not an image: 4,096 bytes, all of them zero"),
    ],
)
def test_what_is_no_picture_is_named(data: bytes, reason: str) -> None:
    assert reason_of(data) == reason


@pytest.mark.parametrize(
    ("format", "name"),
    [("PNG", "a PNG"), ("TIFF", "a TIFF"), ("AVIF", "an AVIF")],
)
def test_a_picture_whose_header_is_damaged_is_called_a_damaged_picture(
    format: str, name: str
) -> None:
    assert reason_of(encoded(format)[:30]).startswith(f"damaged image: {name} that is truncated")


def test_a_png_whose_header_fails_its_checksum_is_a_damaged_png() -> None:
    data = bytearray(encoded("PNG"))
    data[29] ^= 1
    assert (
        reason_of(bytes(data))
        == "damaged image: a PNG that is truncated, or whose header is damaged"
    )


def test_a_tiff_that_is_cut_before_its_directory_is_a_damaged_tiff() -> None:
    data = encoded("TIFF", compression="tiff_lzw")
    assert reason_of(data[: len(data) // 2]).startswith("damaged image: a TIFF that is truncated")
