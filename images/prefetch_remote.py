"""Reading images from object stores before they are decoded, in parallel, batches in order.

A decoding process reads one image at a time, which over a network is mostly waiting, and its time limit
would include retries. So the main process reads for its workers, which never access a store. A store
that does not respond ends the work; no image is rejected for it.
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
"""Bytes of images, by their planned sizes, that may be requested or wait. One batch always may."""

_NO_LOCATION = ImageLocation(path=Path())

_Batch = tuple[Any, Sequence[ImageRef]]
_Pending = tuple[Any, list["ImageRef | Future[ImageRef]"], int]


def prefetch_remote(
    batches: Iterable[_Batch], *, max_bytes: int = READ_AHEAD_BYTES, max_batches: int = 8
) -> Generator[_Batch]:
    """Yield the batches; images in object stores get their bytes or a fault.

    Batches are taken early, starting at the first one that needs it; a local corpus costs nothing. Rows
    of Parquet files are left to prefetch_parquet.

    Args:
        batches: (tag, images) pairs.
        max_bytes: bytes of images that may be requested or wait.
        max_batches: most batches that are taken early.

    Raises:
        StorageError: a store does not respond.
    """
    source = iter(batches)
    for batch in source:
        if any(map(_is_wanted, batch[1])):
            yield from _read_ahead(chain([batch], source), max_bytes, max_batches)
            return
        yield batch


def strip_location(ref: ImageRef) -> ImageRef:
    """Return a ref without its URL if its bytes were read: decoding processes do not need it."""
    is_read = ref.data is not None or ref.fault is not None
    return (
        replace(ref, location=_NO_LOCATION)
        if is_read and isinstance(ref.location.path, UPath)
        else ref
    )


def _is_wanted(ref: ImageRef) -> bool:
    location = ref.location
    is_open = ref.data is None and ref.fault is None
    return is_open and location.row_group is None and isinstance(location.path, UPath)


def _read_ahead(source: Iterator[_Batch], max_bytes: int, max_batches: int) -> Generator[_Batch]:
    pending: deque[_Pending] = deque()
    num_bytes = 0
    with contextlib.closing(Threads(REQUESTS, "remote-images")) as threads:
        for tag, refs in source:
            found = [
                threads.submit(lambda ref=ref: _read(ref)) if _is_wanted(ref) else ref
                for ref in refs
            ]
            pending.append((tag, found, sum(map(_planned_bytes, refs))))
            num_bytes += pending[-1][2]
            while len(pending) > 1 and (len(pending) > max_batches or num_bytes > max_bytes):
                num_bytes -= pending[0][2]
                yield _finished(pending.popleft())
        while pending:
            yield _finished(pending.popleft())


def _planned_bytes(ref: ImageRef) -> int:
    if not _is_wanted(ref):
        return len(ref.data or b"")
    return (ref.location.file_bytes if ref.location.offset is None else ref.location.length) or 0


def _finished(pending: _Pending) -> _Batch:
    tag, found, _ = pending
    return tag, [ref.result() if isinstance(ref, Future) else ref for ref in found]


def _read(ref: ImageRef) -> ImageRef:
    started = time.perf_counter()
    try:
        data = read_image_bytes(ref.location)
    except ReadError as error:
        return replace(ref, fault=str(error), read_s=time.perf_counter() - started)
    return replace(ref, data=data, read_s=time.perf_counter() - started)
