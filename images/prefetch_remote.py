"""Reading images out of object stores ahead of the decoders: many requests at a time, batches in order.

A decoding process reads one image after the other, which over a network is mostly waiting, and its clock
would run while a store that is away is waited for. So whoever decodes reads for its processes; none of
them ever talks to a store. A store that does not answer ends the work: it rejects no image.
"""

import contextlib
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from upath import UPath

from ..store.io.parallel import REQUESTS, Threads
from .image import ImageRef
from .image_bytes import ImageLocation, read_image_bytes
from .parquet_cells import ReadError

READ_AHEAD_BYTES = 1 << 28
"""Bytes of images, as planned, that may be under way or wait, beside the one batch that always may."""

_NOWHERE = ImageLocation(path=Path())

_Batch = tuple[Any, Sequence[ImageRef]]
_Coming = tuple[Any, list["ImageRef | Future[ImageRef]"], int]


def prefetch_remote(
    batches: Iterable[_Batch], *, max_bytes: int = READ_AHEAD_BYTES, max_batches: int = 8
) -> Generator[_Batch]:
    """Yield the batches, the images that lie in object stores with their bytes, or why they have none.

    Rows of Parquet files are left to parquet_images.py. Batches are taken ahead from the first one on
    that needs it, at most max_batches whatever they hold; a corpus of this machine costs nothing.

    Raises:
        StorageError: a store does not answer.
    """
    source = iter(batches)
    for batch in source:
        if any(map(_is_wanted, batch[1])):
            yield from _read_ahead(chain([batch], source), max_bytes, max_batches)
            return
        yield batch


def strip_location(ref: ImageRef) -> ImageRef:
    """Return a ref as a decoding process needs it: without its location, where its bytes were read."""
    is_read = ref.data is not None or ref.fault is not None
    return (
        replace(ref, location=_NOWHERE) if is_read and isinstance(ref.location.path, UPath) else ref
    )


def _is_wanted(ref: ImageRef) -> bool:
    location = ref.location
    is_open = ref.data is None and ref.fault is None
    return is_open and location.row_group is None and isinstance(location.path, UPath)


def _read_ahead(source: Iterator[_Batch], max_bytes: int, max_batches: int) -> Generator[_Batch]:
    coming: deque[_Coming] = deque()
    num_bytes = 0
    with contextlib.closing(Threads(REQUESTS, "remote-images")) as threads:
        for tag, refs in source:
            found = [
                threads.submit(lambda ref=ref: _read(ref)) if _is_wanted(ref) else ref
                for ref in refs
            ]
            coming.append((tag, found, sum(map(_planned_bytes, refs))))
            num_bytes += coming[-1][2]
            while len(coming) > 1 and (len(coming) > max_batches or num_bytes > max_bytes):
                num_bytes -= coming[0][2]
                yield _finished(coming.popleft())
        while coming:
            yield _finished(coming.popleft())


def _planned_bytes(ref: ImageRef) -> int:
    if not _is_wanted(ref):
        return len(ref.data or b"")
    return (ref.location.file_bytes if ref.location.offset is None else ref.location.length) or 0


def _finished(coming: _Coming) -> _Batch:
    tag, found, _ = coming
    return tag, [ref.result() if isinstance(ref, Future) else ref for ref in found]


def _read(ref: ImageRef) -> ImageRef:
    started = time.perf_counter()
    try:
        data = read_image_bytes(ref.location)
    except ReadError as error:
        return replace(ref, fault=str(error), read_s=time.perf_counter() - started)
    return replace(ref, data=data, read_s=time.perf_counter() - started)
