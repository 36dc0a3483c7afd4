"""libtiff's own output: it becomes the reason of a rejection, and never reaches the terminal."""

import io
import os
import threading

import numpy as np
import pytest
from PIL import Image

from siglip2_cache.images import libtiff
from siglip2_cache.images.pixels import PixelError, decode_rgb


def tiff(compression: str) -> bytes:
    sink = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(sink, "TIFF", compression=compression)
    return sink.getvalue()


@pytest.mark.parametrize("compression", ["jpeg", "tiff_lzw", "tiff_adobe_deflate"])
def test_a_sound_tiff_is_read_in_silence(
    compression: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert decode_rgb(tiff(compression)).size == (64, 64)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("compression", ["jpeg", "tiff_lzw", "tiff_adobe_deflate"])
def test_what_libtiff_complains_of_is_rejected_with_its_words(
    compression: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data = tiff(compression)
    damaged = data[:900] + b"\xff\x27" * 150 + data[1200:]
    with pytest.raises(PixelError, match=r"^damaged image: libtiff says '\w.*'$"):
        decode_rgb(damaged)
    assert capfd.readouterr().err == ""


def test_errors_are_kept_warnings_dropped_and_other_lines_passed_on(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with libtiff.capture_errors() as found:
        os.write(2, b"TIFFReadDirectory: Warning, Unknown field with tag 34016 encountered.\n")
        thread = threading.Thread(target=os.write, args=(2, b"images 3 of 9, 2 rejected\n"))
        thread.start()
        thread.join()
        os.write(2, b"LZWDecode: Not enough data at scanline 3.\n")
    assert found == ["LZWDecode: Not enough data at scanline 3"]
    assert capfd.readouterr().err == "images 3 of 9, 2 rejected\n"


def test_standard_error_is_given_back_after_an_exception(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(RuntimeError), libtiff.capture_errors():
        raise RuntimeError
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"
