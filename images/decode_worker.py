"""The worker process that decodes: receives images through a pipe, writes pixels into shared memory.

Imports neither torch nor readers of Parquet and Zarr, so that a worker starts in 0.1 s.
"""

import contextlib
import mmap
import multiprocessing
import multiprocessing.reduction
import os
import signal
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .image import DecodedImage, PixelFormat, decode_image
from .kept import KeptFormat

_AT = np.dtype(np.int64)
_MAX_DELAY_S = 0.05
"""How long a worker may delay a result, to send it with the next ones."""


class SharedPixels:
    """Pixels of several batches, in memory that worker processes share through a file descriptor."""

    def __init__(
        self, num_slots: int, num_images: int, form: PixelFormat | KeptFormat, *, num_workers: int
    ) -> None:
        self.shape = (num_slots, num_images, *form.image_shape)
        self.descriptor = _anonymous_file()
        os.ftruncate(self.descriptor, _num_bytes(self.shape) + num_workers * _AT.itemsize)
        self.pixels, self.at_image = _map_shared(self.descriptor, self.shape)

    def __enter__(self) -> "SharedPixels":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)  # the map is released with the last array that refers to it


def _num_bytes(shape: tuple[int, ...]) -> int:
    """Return the bytes of the pixels, rounded up to align the positions after them."""
    return -(-int(np.prod(shape)) // _AT.itemsize) * _AT.itemsize


def _map_shared(
    descriptor: int, shape: tuple[int, ...]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the pixels, and for each worker the position of its current image."""
    shared = mmap.mmap(descriptor, 0)
    pixels = np.frombuffer(shared, np.uint8, int(np.prod(shape))).reshape(shape)
    return pixels, np.frombuffer(shared, _AT, offset=_num_bytes(shape))


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("siglip2-cache-pixels")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Descriptor:
    """A file descriptor that is passed to a child process when it starts."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self) -> Any:
        return Descriptor._receive, (multiprocessing.reduction.DupFd(self.descriptor),)

    @staticmethod
    def _receive(duplicate: Any) -> "Descriptor":
        return Descriptor(duplicate.detach())


def work(
    connection: Connection,
    descriptor: Descriptor,
    shape: tuple[int, ...],
    form: PixelFormat | KeptFormat,
    number: int,
) -> None:
    """Decode the images that the pipe delivers until it closes. Runs in a worker process.

    A message costs a twentieth of the time of an image, so quick results are sent together. Shared memory
    holds the position of the current image of each worker, in case it dies.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    threading.Thread(target=exit_with_parent, daemon=True).start()
    pixels, at_image = _map_shared(descriptor.descriptor, shape)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        connection.send(None)  # ready
        while True:
            slot, images = connection.recv()
            done: list[tuple[int, DecodedImage]] = []
            sent_at = time.monotonic()
            for position, ref in images:
                at_image[number] = position
                done.append((position, decode_image(ref, form, pixels[slot, position])))
                if time.monotonic() - sent_at > _MAX_DELAY_S:
                    connection.send(done)
                    done, sent_at = [], time.monotonic()
            if done:
                connection.send(done)


def exit_with_parent() -> None:
    """End this process when its parent dies, even while it hangs on a file."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
