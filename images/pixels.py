"""Decoding the bytes of an image to upright RGB, and cutting views at the resolution of a model.

Each kind of image (also in docs/reference/format.md):

- EXIF orientation is applied. ICC profiles are ignored, as by the SigLIP processors.
- Gray, palette and CMYK images are converted to RGB by ``convert`` of Pillow, which drops an alpha
  channel, as ``transformers.image_utils.load_image`` does.
- A transparent colour (GIF, tRNS of PNG) is kept, or becomes white if the processor of the model does so.
- 16-bit gray images keep the high byte (Pillow alone would clip them to white), 12-bit ones the high 8
  bits. Other integer and floating-point images have no defined range and are rejected.
- Animations: the first frame.
- Damaged images are rejected if Pillow or libtiff detects the damage.

Decoding is ``exact`` or ``scaled``. Scaled decodes a JPEG that is several times larger than needed at
1/2, 1/4 or 1/8 of its size, which its transform gives nearly for free.
"""

import contextlib
import hashlib
import io
import math
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

from ..store.format.views import ViewBox, pixel_box
from . import libtiff, png
from .augment import augment
from .unsupported import why_no_picture

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM")
"""The only formats that are tried: Pillow would run Ghostscript on a PostScript file named .jpg."""

_SIXTEEN_BIT = {"I;16", "I;16L", "I;16B", "I;16N"}

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its EXIF orientation. ImageOps.exif_transpose also writes the EXIF anew,
and fails where a tag that does not matter here is malformed."""

_HAS_LARGE_TEXT = re.compile("MAX_TEXT_(CHUNK|MEMORY)")
"""In Pillow's error for a PNG whose texts or profile exceed its limits."""

_JPEG = b"\xff\xd8"

_MAX_SHOWN = 120  # characters of a message of libtiff

Decode = Literal["exact", "scaled"]
"""How images are decoded; part of the identity of a teacher."""

ViewSize = Callable[[int, int], tuple[int, int]]
"""Maps the (height, width) of a view as cut to the (height, width) that the model takes."""

DECODES: tuple[Decode, ...] = get_args(Decode)

_SCALED_MARGIN = 2
"""In a scaled image each view is at least this many times as large as needed. At 1, decoding is a quarter
faster than at 2, with three times the difference to the exact pixels."""


class PixelError(Exception):
    """An image cannot be decoded. The cache records the message as the reason."""


def decode_rgb(data: bytes, *, on_white: bool = False) -> Image.Image:
    """Return an upright RGB image, fully decoded.

    Args:
        data: the bytes of the image.
        on_white: whether a transparent colour becomes white.

    Raises:
        PixelError: not an image, damaged, too large, or of a pixel type without a defined range.
    """
    return _decode(data, None, on_white=on_white)[0]


def decode_for_views(
    data: bytes,
    boxes: Sequence[ViewBox],
    *,
    view_size: ViewSize,
    decode: Decode,
    on_white: bool = False,
) -> tuple[Image.Image, tuple[int, int]]:
    """Return an upright RGB image to cut views from, and its (width, height) at full resolution.

    Args:
        data: the bytes of the image.
        boxes: the views.
        view_size: maps the (height, width) of a view as cut to the (height, width) it is resized to.
        decode: exact gives the full image; scaled may give a smaller one, in which each view still has
            _SCALED_MARGIN times the height and width it is resized to.
        on_white: whether a transparent colour becomes white.

    Raises:
        PixelError: not an image, damaged, too large, or of a pixel type without a defined range.
    """
    if decode == "exact":
        return _decode(data, None, on_white=on_white)

    def smallest(full: tuple[int, int]) -> tuple[int, int]:
        wanted = [(box, view_size(*cut_size(box, full))) for box in boxes]
        width = max(size[1] / box.width for box, size in wanted)
        height = max(size[0] / box.height for box, size in wanted)
        return math.ceil(_SCALED_MARGIN * width), math.ceil(_SCALED_MARGIN * height)

    return _decode(data, smallest, on_white=on_white)


def decode_for_short_side(
    data: bytes, short_side: int, *, on_white: bool
) -> tuple[Image.Image, tuple[int, int]]:
    """Return an upright RGB image to make smaller, and its (width, height) at full resolution.

    A JPEG is decoded as in ``scaled``: its shorter side is at least _SCALED_MARGIN times ``short_side``,
    unless it is less at full resolution.

    Raises:
        PixelError: not an image, damaged, too large, or of a pixel type without a defined range.
    """
    return _decode(data, lambda full: _larger_than(short_side, full), on_white=on_white)


def is_decoded_for_short_side(
    data: bytes, image: Image.Image, full: tuple[int, int], short_side: int
) -> bool:
    """Return whether decode_for_short_side would give this very image.

    Args:
        data: the bytes of the image.
        image: what decode_for_views made of them.
        full: its (width, height) at full resolution.
        short_side: see decode_for_short_side.
    """
    scale = 1
    if data.startswith(_JPEG):  # Pillow halves it as long as neither side gets smaller than wanted
        wanted = _larger_than(short_side, full)
        most = min(side // least for side, least in zip(full, wanted, strict=True))
        scale = next(s for s in (8, 4, 2, 1) if s <= max(1, most))
    return image.size == (-(-full[0] // scale), -(-full[1] // scale))


def _larger_than(short_side: int, full: tuple[int, int]) -> tuple[int, int]:
    """Return the smallest (width, height) to make an image smaller from."""
    scale = _SCALED_MARGIN * short_side / min(full)
    return math.ceil(full[0] * scale), math.ceil(full[1] * scale)


def render_views(
    image: Image.Image,
    boxes: Sequence[ViewBox],
    *,
    size: tuple[int, int],
    resample: int,
    full: tuple[int, int] | None = None,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Return the views of an upright RGB image as (len(boxes), H, W, 3) uint8, in ``out`` if it is given.

    Each view is cropped, mirrored if its box says so, then squashed to ``size`` (height, width) with the
    resampler of Pillow, exactly as the processor of the checkpoint does with a whole image, and augmented.

    Args:
        image: the image.
        boxes: the views.
        size: (height, width) of the result.
        resample: number of the resampler in Pillow.
        full: see render_view.
        out: the result; None: new memory.
    """
    if out is None:
        out = np.empty((len(boxes), *size, 3), np.uint8)
    for pixels_HWC, box in zip(out, boxes, strict=True):
        pixels_HWC[:] = np.asarray(render_view(image, box, size, resample, full))
    return out


def render_view(
    image: Image.Image,
    box: ViewBox,
    size: tuple[int, int],
    resample: int,
    full: tuple[int, int] | None,
) -> Image.Image:
    """Return one view of an upright image in ``size`` (height, width), augmented.

    Args:
        image: the image.
        box: the view.
        size: (height, width) of the result.
        resample: number of the resampler in Pillow.
        full: (width, height) of the image that ``image`` is a smaller form of. The view is cut where it is in
            that one, at fractions of a pixel. None: at whole pixels of ``image``.
    """
    if full is None or full == image.size:
        return augment(resize(cut_view(image, box), size, resample), box.augmentation)
    x, y = image.width, image.height
    left, top, right, bottom = pixel_box(box, *full)
    part = (left * x / full[0], top * y / full[1], right * x / full[0], bottom * y / full[1])
    view = image.resize((size[1], size[0]), Image.Resampling(resample), part)
    return augment(ImageOps.mirror(view) if box.flip else view, box.augmentation)


def cut_size(box: ViewBox, full: tuple[int, int]) -> tuple[int, int]:
    """Return the (height, width) of a view cut from an upright image of ``full`` (width, height)."""
    left, top, right, bottom = pixel_box(box, *full)
    return bottom - top, right - left


def cut_view(image: Image.Image, box: ViewBox) -> Image.Image:
    """Return a view of an upright image at its own resolution: cropped, then mirrored."""
    pixels = pixel_box(box, image.width, image.height)
    view = image if pixels == (0, 0, image.width, image.height) else image.crop(pixels)
    return ImageOps.mirror(view) if box.flip else view


def resize(image: Image.Image, size: tuple[int, int], resample: int) -> Image.Image:
    """Return an image resized to (height, width) pixels."""
    height, width = size
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling(resample))


def sha256_of_pixels(data: bytes) -> bytes:
    """Return the SHA-256 of the bytes of an image, which ties a target to its image."""
    return hashlib.sha256(data).digest()


def _decode(
    data: bytes, smallest: Callable[[tuple[int, int]], tuple[int, int]] | None, *, on_white: bool
) -> tuple[Image.Image, tuple[int, int]]:
    """Return an upright RGB image, and its upright (width, height) at full resolution.

    ``smallest`` maps these to the smallest (width, height) that is needed; None: the full image.
    """
    try:
        return _decode_as_it_is(data, smallest, on_white=on_white)
    except ValueError as error:
        if not data.startswith(png.SIGNATURE) or not _HAS_LARGE_TEXT.search(str(error)):
            raise _as_reason(error, data) from None
    except Exception as error:
        raise _as_reason(error, data) from None
    try:
        return _decode_as_it_is(png.without_large_texts(data), smallest, on_white=on_white)
    except Exception as error:
        raise _as_reason(error, data) from None


def _as_reason(error: Exception, data: bytes) -> PixelError:
    """Return why an image is rejected; plugins of Pillow raise many kinds of errors on damaged input."""
    if isinstance(error, PixelError):
        return error
    if isinstance(error, UnidentifiedImageError):
        return PixelError(why_no_picture(data))
    if isinstance(error, Image.DecompressionBombError):
        return PixelError(f"too large: {error}")
    if isinstance(error, MemoryError):
        return PixelError("too large: not enough memory to decode it")
    return PixelError(f"damaged image: {error or type(error).__name__}")


def _decode_as_it_is(
    data: bytes, smallest: Callable[[tuple[int, int]], tuple[int, int]] | None, *, on_white: bool
) -> tuple[Image.Image, tuple[int, int]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd EXIF and palettes, which Pillow reads nevertheless
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            full: tuple[int, int] | None = None
            if smallest is not None and isinstance(image, JpegImageFile):
                full = _upright(image, image.size)
                image.draft(None, _upright(image, smallest(full)))
            _load(image)
            upright = _to_rgb(image)
            turn = _TURNS.get(_orientation(image))
            if turn is not None:
                upright = upright.transpose(turn)
            if on_white and upright.info.get("transparency") is not None:
                upright = _on_white(upright)
            return upright, full or upright.size


def _load(image: ImageFile) -> None:
    """Decode an image, and raise errors that libtiff only prints before it continues."""
    if not any(tile.codec_name == "libtiff" for tile in image.tile):
        image.load()
        return
    error: Exception | None = None
    with libtiff.capture_errors() as found:
        try:
            image.load()
        except Exception as raised:
            error = raised
    if found:  # more specific than the error of Pillow, which has a number at most
        raise PixelError(f"damaged image: libtiff says {found[0][:_MAX_SHOWN]!r}")
    if error is not None:
        raise error


def _upright(image: JpegImageFile, size: tuple[int, int]) -> tuple[int, int]:
    """Return a stored (width, height) as upright, or an upright one as stored."""
    return (size[1], size[0]) if _orientation(image) in (5, 6, 7, 8) else size


def _orientation(image: Image.Image) -> int:
    """Return the orientation of EXIF, 1 where there is none or EXIF cannot be read."""
    with contextlib.suppress(SyntaxError):  # of a PNG or WebP; a JPEG's is left out by Pillow
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return an RGB image: the same one, without a copy, if it is RGB."""
    if image.mode == "RGB":
        return image
    # Pillow opens a PGM of more than 8 bits as I, scaled to 0..65535.
    if image.mode in _SIXTEEN_BIT or (image.mode, image.format) == ("I", "PPM"):
        bits, is_negative = 16, False
        if isinstance(image, TiffImageFile):  # Pillow gives the values as they are stored
            bits = image.tag_v2[BITSPERSAMPLE][0]
            is_negative = image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0  # WhiteIsZero
        high_byte = (np.asarray(image).astype(np.uint16) >> (bits - 8)).astype(np.uint8)
        return Image.fromarray(~high_byte if is_negative else high_byte).convert("RGB")
    if image.mode in ("I", "F"):
        raise PixelError(f"pixels of mode {image.mode} (32 bits a channel) have no defined range")
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """Return an RGB image whose transparent colour is white.

    Source: convert_to_rgb of transformers 5.23, applied to the result of load_image.
    """
    transparent = image.convert("RGBA")
    white = Image.new("RGBA", transparent.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, transparent).convert("RGB")
