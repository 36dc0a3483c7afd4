"""Reading images from object stores before they are decoded, in parallel, batches in order.

A decoding process reads one image at a time, which over a network is mostly waiting, and its time limit
would include retries. So the main process reads for its workers, which never access a store. A store
that does not respond ends the work; no image is rejected for it.
"""

import contextlib
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from upath import UPath

from ..store.io.location import Location
from ..store.io.parallel import REQUESTS, Threads
from ..store.io.requests import read_bytes
from .image import ImageRef
from .image_bytes import ImageLocation, image_in_part, read_image_bytes
from .parquet_cells import ReadError

READ_AHEAD_BYTES = 1 << 28
"""Bytes of images, by their planned sizes, that may be requested or wait. One batch always may."""

_NO_LOCATION = ImageLocation(path=Path())

_Batch = tuple[Any, Sequence[ImageRef]]
_Pending = tuple[Any, list[Callable[[], ImageRef]], int]
_Part = tuple[Location, int, int]


def prefetch_remote(
    batches: Iterable[_Batch],
    *,
    max_bytes: int = READ_AHEAD_BYTES,
    max_batches: int = 8,
    open_parts: int = 1,
) -> Generator[_Batch]:
    """Yield the batches; images in object stores get their bytes or a fault.

    Batches are taken early, starting at the first one that needs it; a local corpus costs nothing. Rows
    of Parquet files are left to prefetch_parquet.

    Args:
        batches: (tag, images) pairs.
        max_bytes: bytes of images that may be requested or wait.
        max_batches: most batches that are taken early.
        open_parts: parts of objects (ImageRef.part) in memory, from which images are taken alternately.

    Raises:
        StorageError: a store does not respond.
    """
    source = iter(batches)
    for batch in source:
        if any(map(_is_wanted, batch[1])):
            yield from _read_ahead(chain([batch], source), max_bytes, max_batches, open_parts)
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


def _read_ahead(
    source: Iterator[_Batch], max_bytes: int, max_batches: int, open_parts: int
) -> Generator[_Batch]:
    pending: deque[_Pending] = deque()
    num_bytes = 0
    with contextlib.closing(Threads(REQUESTS, "remote-images")) as threads:
        parts = _OpenParts(threads, open_parts)

        def request(ref: ImageRef) -> Callable[[], ImageRef]:
            if not _is_wanted(ref):
                return lambda: ref
            if ref.part is None:
                return threads.submit(partial(_read, ref)).result
            return partial(_from_part, ref, parts.request(ref.location.path, *ref.part))

        for tag, refs in source:
            pending.append((tag, [request(ref) for ref in refs], sum(map(_planned_bytes, refs))))
            num_bytes += pending[-1][2]
            while len(pending) > 1 and (len(pending) > max_batches or num_bytes > max_bytes):
                num_bytes -= pending[0][2]
                yield _finished(pending.popleft())
        while pending:
            yield _finished(pending.popleft())


class _OpenParts:
    """The last parts of objects that images were taken from."""

    def __init__(self, threads: Threads, most: int) -> None:
        self._threads, self._most = threads, most
        self._parts: OrderedDict[_Part, Future[bytes]] = OrderedDict()

    def request(self, path: Location, first: int, end: int) -> "Future[bytes]":
        """Return the future of a part, which is requested unless it is among the last ones."""
        key = (path, first, end)
        if key not in self._parts:
            self._parts[key] = self._threads.submit(partial(read_bytes, path, first, end - first))
        self._parts.move_to_end(key)
        if len(self._parts) > self._most:
            self._parts.popitem(last=False)
        return self._parts[key]


def _from_part(ref: ImageRef, part: "Future[bytes]") -> ImageRef:
    assert ref.part is not None
    started = time.perf_counter()
    try:
        data = image_in_part(part.result(), ref.part[0], ref.location)
    except FileNotFoundError:
        return replace(ref, fault="no such file")
    except OSError as error:
        return replace(ref, fault=f"cannot be read: {error.strerror or error}")
    except ReadError as error:
        return replace(ref, fault=str(error))
    return replace(ref, data=data, read_s=time.perf_counter() - started)


def _planned_bytes(ref: ImageRef) -> int:
    if not _is_wanted(ref):
        return len(ref.data or b"")
    return (ref.location.file_bytes if ref.location.offset is None else ref.location.length) or 0


def _finished(pending: _Pending) -> _Batch:
    tag, found, _ = pending
    return tag, [image() for image in found]


def _read(ref: ImageRef) -> ImageRef:
    started = time.perf_counter()
    try:
        data = read_image_bytes(ref.location)
    except ReadError as error:
        return replace(ref, fault=str(error), read_s=time.perf_counter() - started)
    return replace(ref, data=data, read_s=time.perf_counter() - started)
