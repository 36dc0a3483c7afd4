"""Encoding an image to be kept small."""

import io
from dataclasses import dataclass

from PIL import Image

from ..store.format.pixel_settings import PixelSettings
from .pixels import decode_for_short_side


@dataclass(frozen=True, slots=True)
class KeptFormat:
    """The form in which a Decoder returns images to be kept: encoded, and no pixels."""

    settings: PixelSettings

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(0,): there are no pixels."""
        return (0,)

    def encode(self, data: bytes) -> tuple[bytes, tuple[int, int], tuple[int, int]]:
        """Return an image as a JPEG, its (width, height), and those of the upright original.

        Raises:
            PixelError: not an image, damaged, too large, or of a pixel type without a defined range.
        """
        settings = self.settings
        image, full = decode_for_short_side(data, settings.short_side, on_white=settings.on_white)
        size = kept_size(full, settings.short_side)
        if image.size != size:
            image = image.resize(size, Image.Resampling.LANCZOS)
        sink = io.BytesIO()
        image.save(sink, "JPEG", quality=settings.quality)
        return sink.getvalue(), size, full


def kept_size(full: tuple[int, int], short_side: int) -> tuple[int, int]:
    """Return the (width, height) in which an image of ``full`` (width, height) is kept; never larger."""
    scale = min(1.0, short_side / min(full))
    width, height = (max(1, round(side * scale)) for side in full)
    return width, height
