"""Pixels: the bytes of a picture to upright RGB, and a view of it at a model's resolution.

What becomes of each kind of picture (docs/format.md says the same):

- EXIF orientation is applied; ICC profiles are ignored, as the SigLIP processors do.
- gray, palette and CMYK become RGB by Pillow's ``convert``; an alpha channel is dropped by it, as
  ``transformers.image_utils.load_image`` does.
- 16-bit gray keeps its high byte (Pillow alone would clip it to white); other integer and
  floating-point pictures have no defined range and are refused.
- of an animation, the first frame.
"""

import hashlib
import io
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from .views import ViewBox, pixel_box

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF")
"""Nothing else is tried: Pillow would run Ghostscript on a PostScript file named .jpg."""

_SIXTEEN_BIT = {"I;16", "I;16L", "I;16B", "I;16N"}


class PixelError(Exception):
    """An image cannot be read; its message is the reason that the cache records."""


def decode_rgb(data: bytes) -> Image.Image:
    """Return an upright RGB picture, fully decoded.

    Raises:
        PixelError: not a picture, damaged, too large, or of a pixel type without a defined range.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd EXIF and palettes; it still reads
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image))
    except PixelError:
        raise
    except UnidentifiedImageError:
        raise PixelError(f"not an image: {_describe_start(data)}") from None
    except Image.DecompressionBombError as error:
        raise PixelError(f"too large: {error}") from None
    except MemoryError:
        raise PixelError("too large: not enough memory to decode it") from None
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged input
        raise PixelError(f"damaged image: {error or type(error).__name__}") from None


def render_views(
    image: Image.Image, boxes: Sequence[ViewBox], *, size: tuple[int, int], resample: int
) -> NDArray[np.uint8]:
    """Return the views of an upright RGB image as (len(boxes), H, W, 3) uint8.

    Each is cropped, mirrored where its box says so, then squashed to ``size`` (height, width) with
    Pillow's resampler, exactly as the checkpoint's processor does with a whole image.
    """
    out = np.empty((len(boxes), *size, 3), np.uint8)
    for pixels_HWC, box in zip(out, boxes, strict=True):
        pixels_HWC[:] = np.asarray(resized(cut_view(image, box), size, resample))
    return out


def cut_view(image: Image.Image, box: ViewBox) -> Image.Image:
    """Return a view of an upright image at its own resolution: cropped, then mirrored."""
    pixels = pixel_box(box, image.width, image.height)
    view = image if pixels == (0, 0, image.width, image.height) else image.crop(pixels)
    return ImageOps.mirror(view) if box.flip else view


def resized(image: Image.Image, size: tuple[int, int], resample: int) -> Image.Image:
    """Return an image of (height, width) pixels."""
    height, width = size
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling(resample))


def sha256_of_pixels(data: bytes) -> bytes:
    """Return the SHA-256 of an image's bytes, 32 bytes: what ties a target to its picture."""
    return hashlib.sha256(data).digest()


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image.copy()
    if image.mode in _SIXTEEN_BIT:
        high_byte = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return Image.fromarray(high_byte).convert("RGB")
    if image.mode in ("I", "F"):
        raise PixelError(f"pixels of mode {image.mode} (32 bits a channel) have no defined range")
    return image.convert("RGB")


def _describe_start(data: bytes) -> str:
    start = data[:512].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return "it is a web page"
    return f"it begins with {data[:8].hex(' ')}"
