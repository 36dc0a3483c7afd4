"""One image: its location and views, and decoding it to the pixels of a model."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..siglip import ImageRecipe, SquashRecipe
from ..store.format.views import ViewBox
from .image_bytes import ImageLocation, read_image_bytes
from .kept import KeptFormat
from .naflex import Grid, patch_grid, render_patches
from .parquet_cells import ReadError
from .pixels import Decode, PixelError, decode_for_views, render_views, sha256_of_pixels


@dataclass(frozen=True, slots=True)
class ImageRef:
    """The location of one image, and its views."""

    row: int
    location: ImageLocation
    boxes: tuple[ViewBox, ...]
    part: tuple[int, int] | None = None
    """First byte and end of the part of its file that is read at once, for other images too; None: it is
    read alone."""

    sha256: bytes | None = None
    """Expected hash of its bytes, for a kept image; None: that of the image that the teacher saw."""

    data: bytes | None = None
    """Its bytes if they were prefetched; None: read them from the location."""

    fault: str | None = None
    """Why prefetching failed; the image is rejected for this reason."""

    read_s: float = 0.0
    """Seconds of prefetching."""

    full: tuple[int, int] | None = None
    """(width, height) of the image that a kept image was made from, whose pixels the views are of; None: its
    own."""

    def with_views(self, boxes: tuple[ViewBox, ...], part: tuple[int, int] | None) -> "ImageRef":
        """Return the same image with other views and part. dataclasses.replace takes ten times as long."""
        return ImageRef(
            self.row,
            self.location,
            boxes,
            part,
            self.sha256,
            self.data,
            self.fault,
            self.read_s,
            self.full,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedImage:
    """The result of decoding one image."""

    width: int = 0
    height: int = 0
    sha256: bytes = b""
    reason: str | None = None
    """Why it was rejected; its pixels are then zero."""

    kept: bytes = b""
    """The image encoded anew, if the form keeps it; else empty."""

    kept_size: tuple[int, int] = (0, 0)
    """(width, height) of the same."""

    grids: tuple[Grid, ...] = ()
    """Rows and columns of patches of each view, for a NaFlex model; empty if it was rejected."""

    read_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelFormat:
    """The pixels that a model takes."""

    num_views: int
    recipe: ImageRecipe
    """What the image processor of the model does."""

    decode: Decode = "exact"
    """How images are decoded before they are resized."""

    kept: KeptFormat | None = None
    """How each image is also encoded to be kept; None: it is not."""

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(views, H, W, 3), or (views, max_num_patches, values of a patch) for a NaFlex model."""
        return (self.num_views, *self.recipe.view_shape)

    def view_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) to which a view of ``height`` x ``width`` pixels is resized."""
        recipe = self.recipe
        if isinstance(recipe, SquashRecipe):
            return recipe.size
        rows, columns = patch_grid(
            height, width, patch_size=recipe.patch_size, max_num_patches=recipe.max_num_patches
        )
        return rows * recipe.patch_size, columns * recipe.patch_size

    def render(
        self,
        image: Image.Image,
        full: tuple[int, int],
        boxes: Sequence[ViewBox],
        out: NDArray[np.uint8],
        *,
        is_kept: bool = False,
    ) -> tuple[Grid, ...]:
        """Fill ``out``, of image_shape, with the views of an upright RGB image, and return their grids.

        Args:
            image: the image, which may be scaled down.
            full: (width, height) of the image at full resolution.
            boxes: the views.
            out: the pixels.
            is_kept: whether views are cut at fractions of a pixel, where they are at full resolution.

        Raises:
            PixelError: a view does not fit into the patches of the model.
        """
        recipe = self.recipe
        if isinstance(recipe, SquashRecipe):
            render_views(
                image,
                boxes,
                size=recipe.size,
                resample=recipe.resample,
                full=full if is_kept else None,
                out=out,
            )
            return ()
        out[:], grids = render_patches(
            image,
            boxes,
            patch_size=recipe.patch_size,
            max_num_patches=recipe.max_num_patches,
            resample=recipe.resample,
            full=full,
            is_kept=is_kept,
        )
        return grids


@dataclass(slots=True)
class DecodedBatch:
    """A batch of images in the order in which they were submitted."""

    tag: Any
    refs: Sequence[ImageRef]
    images: list[DecodedImage]
    pixels: NDArray[np.uint8]
    """(len(refs), *image_shape) uint8."""

    def flat_views(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return the views of all images in sequence, and their grids.

        Returns:
            (B, *view_shape) uint8 pixels and (B, 2) int64 grids, zeros where there are none.
        """
        num_views = self.pixels.shape[1]
        none = ((0, 0),) * num_views
        grids = [image.grids or none for image in self.images]
        return (
            self.pixels.reshape(-1, *self.pixels.shape[2:]),
            np.array(grids, np.int64).reshape(-1, 2),
        )


def decode_image(
    ref: ImageRef, form: PixelFormat | KeptFormat, out: NDArray[np.uint8]
) -> DecodedImage:
    """Read and decode one image into ``out``, of image_shape; zeros if it is rejected."""
    started = time.perf_counter()
    read_at = started
    kept, kept_size, grids = b"", (0, 0), ()
    try:
        data = _bytes_of(ref)
        read_at = time.perf_counter()
        if isinstance(form, KeptFormat):
            kept, kept_size, (width, height) = form.encode(data)
        else:
            image, (width, height) = decode_for_views(
                data,
                ref.boxes,
                view_size=form.view_size,
                decode=form.decode,
                on_white=form.recipe.on_white,
            )
            is_kept = ref.full is not None
            grids = form.render(image, ref.full or (width, height), ref.boxes, out, is_kept=is_kept)
            if form.kept is not None:
                is_same = form.kept.settings.on_white == form.recipe.on_white
                decoded = (image, (width, height)) if is_same else None
                kept, kept_size, _ = form.kept.encode(data, decoded)
    except (ReadError, PixelError) as error:
        out[:] = 0
        return DecodedImage(reason=str(error), read_s=ref.read_s + read_at - started)
    done = time.perf_counter()
    return DecodedImage(
        width=width,
        height=height,
        sha256=sha256_of_pixels(data),
        kept=kept,
        kept_size=kept_size,
        grids=grids,
        read_s=ref.read_s + read_at - started,
        decode_s=done - read_at,
    )


def _bytes_of(ref: ImageRef) -> bytes:
    if ref.fault is not None:
        raise ReadError(ref.fault)
    return read_image_bytes(ref.location) if ref.data is None else ref.data
