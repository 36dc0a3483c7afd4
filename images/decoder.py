"""Decoding images to uint8 pixels, in order, in worker processes.

A worker that dies or hangs on an image is replaced and the image rejected; the build continues.
"""

import contextlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from .decode_pool import DecodePool
from .decode_worker import SharedPixels
from .image import DecodedBatch, ImageRef, PixelFormat, decode_image
from .kept import KeptFormat
from .prefetch_parquet import prefetch_parquet
from .prefetch_remote import prefetch_remote

_NUM_SLOTS = 4
"""Batches in memory: one at the teacher, one decoded, two being decoded."""


class Decoder:
    """Decodes batches in order, in worker processes or in this process."""

    def __init__(
        self,
        form: PixelFormat | KeptFormat,
        *,
        batch_images: int,
        num_workers: int,
        timeout_s: float,
        open_groups: int = 1,
    ) -> None:
        """Start no process yet.

        Args:
            form: the pixels to produce.
            batch_images: most images in a batch.
            num_workers: worker processes; 0 decodes in this process.
            timeout_s: seconds for reading and decoding one image, after which its worker is replaced.
            open_groups: row groups of Parquet files, and parts of objects, that are read alternately.
        """
        self._form = form
        self._batch_images = batch_images
        self._num_workers = num_workers
        self._timeout_s = timeout_s
        self._open_groups = open_groups

    def decode(self, batches: Iterable[tuple[Any, Sequence[ImageRef]]]) -> Generator[DecodedBatch]:
        """Yield decoded batches in the order given; a batch is valid until the next is requested.

        Args:
            batches: (tag, images) pairs with at most ``batch_images`` images each. A few are taken early.

        Raises:
            BuildError: the workers do not start.
            StorageError: an object store does not respond.
        """
        rows = prefetch_parquet(batches, open_groups=self._open_groups)
        remote = prefetch_remote(rows, open_parts=2 * self._open_groups)  # the next ones too
        with contextlib.closing(rows), contextlib.closing(remote) as ready:
            if self._num_workers == 0:
                yield from self._decode_here(ready)
                return
            with SharedPixels(
                _NUM_SLOTS, self._batch_images, self._form, num_workers=self._num_workers
            ) as shared:
                pool = DecodePool(shared, self._form, self._num_workers, self._timeout_s)
                try:
                    yield from pool.run(ready)
                finally:
                    pool.stop()

    def _decode_here(
        self, batches: Iterable[tuple[Any, Sequence[ImageRef]]]
    ) -> Iterator[DecodedBatch]:
        for tag, refs in batches:
            pixels = np.zeros((len(refs), *self._form.image_shape), np.uint8)
            images = [decode_image(r, self._form, p) for r, p in zip(refs, pixels, strict=True)]
            yield DecodedBatch(tag, refs, images, pixels)
