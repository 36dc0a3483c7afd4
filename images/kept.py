"""Encoding an image to be kept small."""

import io
from dataclasses import dataclass

from PIL import Image

from ..store.format.pixel_settings import PixelSettings
from .pixels import decode_for_short_side, is_decoded_for_short_side


@dataclass(frozen=True, slots=True)
class KeptFormat:
    """The form in which a Decoder returns images to be kept: encoded, and no pixels."""

    settings: PixelSettings

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(0,): there are no pixels."""
        return (0,)

    def encode(
        self, data: bytes, decoded: tuple[Image.Image, tuple[int, int]] | None = None
    ) -> tuple[bytes, tuple[int, int], tuple[int, int]]:
        """Return an image as a JPEG, its (width, height), and those of the upright original.

        Args:
            data: the bytes of the image.
            decoded: the image as decode_for_views made it, with the same ``on_white``, and its (width,
                height) at full resolution. It is used if the result is the same; else the image is decoded
                again, at half its size or less.

        Raises:
            PixelError: not an image, damaged, too large, or of a pixel type without a defined range.
        """
        settings = self.settings
        short_side = settings.short_side
        if decoded is not None and is_decoded_for_short_side(data, *decoded, short_side):
            image, full = decoded
        else:
            image, full = decode_for_short_side(data, short_side, on_white=settings.on_white)
        size = kept_size(full, settings.short_side)
        if image.size != size:
            image = image.resize(size, Image.Resampling.LANCZOS)
        sink = io.BytesIO()
        # Pillow halves the colours by default: in small images the largest part of the loss.
        image.save(sink, "JPEG", quality=settings.quality, subsampling="4:4:4")
        return sink.getvalue(), size, full


def kept_size(full: tuple[int, int], short_side: int) -> tuple[int, int]:
    """Return the (width, height) in which an image of ``full`` (width, height) is kept; never larger."""
    scale = min(1.0, short_side / min(full))
    width, height = (max(1, round(side * scale)) for side in full)
    return width, height
