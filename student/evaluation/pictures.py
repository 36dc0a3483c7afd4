"""Pictures, decoded as the image processor of a checkpoint does; those of a cache, and its texts."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ...images.catalog_refs import LOCATION_COLUMNS, PlannedFiles
from ...images.decoder import Decoder
from ...images.image import DecodedBatch, ImageRef, PixelFormat
from ...images.kept_places import kept_places, kept_refs
from ...siglip import Checkpoint
from ...store.cache import Cache
from ...store.format.kept_pixels import KeptPixels
from ...store.format.views import WHOLE_IMAGE

_IMAGE_TIMEOUT_S = 60.0


def picture_refs(
    cache: Cache,
    rows_N: NDArray[np.int64],
    *,
    kept: KeptPixels | None = None,
    sha256_N: NDArray[np.uint8] | None = None,
) -> list[ImageRef]:
    """Return references to the whole images of some rows of a cache, without views.

    Args:
        cache: has the files of the images.
        rows_N: images, in any order.
        kept: kept pixels to read; None: read the corpus.
        sha256_N: (N, 32) hashes of the images that kept pixels must have been made from; None: no check.
    """
    if kept is not None:
        return list(kept_refs(kept, kept_places(kept, rows_N, sha256_N)))
    lazy = cache.samples().filter(pl.col("row").is_in(rows_N.tolist()))
    samples = lazy.select("row", *LOCATION_COLUMNS).collect()
    wanted = pl.col("file").is_in(samples["file"].unique().to_list())
    files = PlannedFiles(cache, cache.table("files").filter(wanted).collect())
    places = {row: files.locate(*place) for row, *place in samples.iter_rows()}
    return [ImageRef(row, places[row], ()) for row in rows_N.tolist()]


def decoded_pictures(
    checkpoint: Checkpoint, refs: Sequence[ImageRef], *, batch_size: int, num_workers: int
) -> Iterator[DecodedBatch]:
    """Yield whole images in batches, in order; a batch is valid until the next one.

    The tag of a batch is the position of its first image in ``refs``.

    Args:
        checkpoint: its image processor.
        refs: the images; their views are not used.
        batch_size: images in a batch.
        num_workers: decoding processes; 0: decode in this process.
    """
    decoder = Decoder(
        PixelFormat(num_views=1, recipe=checkpoint.image),
        batch_images=batch_size,
        num_workers=num_workers,
        timeout_s=_IMAGE_TIMEOUT_S,
    )
    yield from decoder.decode(_batches(refs, batch_size))


def _batches(refs: Sequence[ImageRef], batch_size: int) -> Iterator[tuple[int, list[ImageRef]]]:
    """Yield the position of each batch's first image, and references to its whole images."""
    for first in range(0, len(refs), batch_size):
        batch = refs[first : first + batch_size]
        yield first, [replace(ref, boxes=(WHOLE_IMAGE,)) for ref in batch]


def read_texts(cache: Cache, text_rows_M: NDArray[np.int64]) -> list[str]:
    """Return the texts of some text_rows, in their order."""
    lazy = cache.texts().filter(pl.col("text_row").is_in(text_rows_M.tolist()))
    texts = dict(lazy.select("text_row", "text").collect().iter_rows())
    return [texts[row] for row in text_rows_M.tolist()]
