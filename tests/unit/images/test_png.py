"""PNG: texts and profiles of any size do no harm to a picture, and none to the process."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from siglip2_cache.images.pixels import PixelError, decode_rgb
from siglip2_cache.images.png import without_large_texts

HEADER = 33  # bytes: the signature and IHDR
XMP = b'<x tiff:Orientation="6"/>'


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def packed_text(num_bytes: int) -> bytes:
    return chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(num_bytes)))


def picture(*extra: bytes, at: int = HEADER) -> bytes:
    """A picture of noise, 5 x 3, with other chunks at a place."""
    sink = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (3, 5, 3), np.uint8)
    Image.fromarray(noise).save(sink, "PNG")
    plain = sink.getvalue()
    return plain[:at] + b"".join(extra) + plain[at:]


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param([packed_text(2 << 20)], id="a text of 2 MiB"),
        pytest.param(
            [chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(bytes(2 << 20)))],
            id="an international text of 2 MiB",
        ),
        pytest.param(
            [chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(2 << 20)))], id="a profile of 2 MiB"
        ),
        pytest.param([packed_text(1 << 20)] * 65, id="65 texts of 1 MiB"),
        pytest.param([packed_text(1 << 20), packed_text(70 << 20)], id="a bomb of 70 MiB"),
    ],
)
@pytest.mark.parametrize("at", [HEADER, -12])
def test_large_texts_and_profiles_leave_the_pixels_as_they_are(extra: list[bytes], at: int) -> None:
    data = picture(*extra, at=at)
    with pytest.raises(ValueError, match="MAX_TEXT"):
        Image.open(io.BytesIO(data)).load()
    tracemalloc.start()
    found = decode_rgb(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(np.asarray(found), np.asarray(decode_rgb(picture())))
    assert peak < 80 << 20  # Pillow holds 64 MiB of texts before it gives up


def test_an_orientation_in_a_small_text_counts_beside_a_large_one() -> None:
    xmp = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)
    assert decode_rgb(picture(xmp, packed_text(2 << 20))).size == (3, 5)


def test_what_is_left_out_is_the_profile_and_the_large_texts_alone() -> None:
    small, exif = chunk(b"tEXt", b"Title\0cat"), chunk(b"eXIf", b"II*\0\x08\0\0\0\0\0\0\0\0\0")
    profile = chunk(b"iCCP", b"p\0\0" + zlib.compress(b"small"))
    kept = without_large_texts(picture(small, profile, exif, packed_text(2 << 20)))
    assert kept == picture(small, exif)


def test_a_png_that_is_cut_within_a_chunk_is_still_damaged() -> None:
    data = picture(packed_text(2 << 20))
    assert without_large_texts(data[:-30]).endswith(picture()[HEADER:-30])
    with pytest.raises(PixelError, match=r"^damaged image: "):
        decode_rgb(data[:-30])
