"""One image: where it lies, what is wanted of it, and its way from bytes to the teacher's pixels."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..store.pixels import PixelError, decode_rgb, render_views, sha256_of_pixels
from ..store.places import ImagePlace, ReadError, read_image_bytes
from ..store.views import ViewBox


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Where one image lies, and which views of it are wanted."""

    row: int
    place: ImagePlace
    boxes: tuple[ViewBox, ...]
    data: bytes | None = None
    """Its bytes, where they were read ahead (parquet_images.py); None: they lie at its place."""

    fault: str | None = None
    """Why they could not be read ahead; the image is rejected for this reason."""

    read_s: float = 0.0
    """Seconds that reading ahead took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedImage:
    """What became of one image."""

    width: int = 0
    height: int = 0
    sha256: bytes = b""
    reason: str | None = None
    """Why it was rejected; its pixels are then zeros."""

    read_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelFormat:
    """Shape of what the teacher wants."""

    num_views: int
    size: tuple[int, int]
    """(height, width)."""

    resample: int
    """Pillow's number of the resampler."""

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(views, H, W, 3)."""
        return (self.num_views, *self.size, 3)


@dataclass(slots=True)
class DecodedBatch:
    """A batch in the order it was submitted. The pixels are valid until release()."""

    tag: Any
    refs: Sequence[ImageRef]
    images: list[DecodedImage]
    pixels: NDArray[np.uint8]
    """(len(refs), views, H, W, 3) uint8."""


def decode_image(ref: ImageRef, form: PixelFormat, out: NDArray[np.uint8]) -> DecodedImage:
    """Read and decode one image into ``out`` (views, H, W, 3); zeros where it is rejected."""
    started = time.perf_counter()
    read_at = started
    try:
        data = _bytes_of(ref)
        read_at = time.perf_counter()
        image = decode_rgb(data)
        out[:] = render_views(image, ref.boxes, size=form.size, resample=form.resample)
    except (ReadError, PixelError) as error:
        out[:] = 0
        return DecodedImage(reason=str(error), read_s=ref.read_s + read_at - started)
    done = time.perf_counter()
    return DecodedImage(
        width=image.width,
        height=image.height,
        sha256=sha256_of_pixels(data),
        read_s=ref.read_s + read_at - started,
        decode_s=done - read_at,
    )


def _bytes_of(ref: ImageRef) -> bytes:
    if ref.fault is not None:
        raise ReadError(ref.fault)
    return read_image_bytes(ref.place) if ref.data is None else ref.data
