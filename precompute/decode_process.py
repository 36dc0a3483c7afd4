"""The process that decodes: takes images through a pipe, writes pixels into shared memory.

Imports neither torch nor what reads Parquet and Zarr: a worker starts in a tenth of a second.
"""

import contextlib
import mmap
import multiprocessing
import multiprocessing.reduction
import os
import signal
import tempfile
import threading
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .images import PixelFormat, decode_image


class SharedPixels:
    """Slots of pixels in memory that worker processes share through a file descriptor."""

    def __init__(self, num_slots: int, num_images: int, form: PixelFormat) -> None:
        self.shape = (num_slots, num_images, *form.image_shape)
        self.num_bytes = int(np.prod(self.shape))
        self.descriptor = _anonymous_file()
        os.ftruncate(self.descriptor, self.num_bytes)
        self.pixels = _map_pixels(self.descriptor, self.shape)

    def __enter__(self) -> "SharedPixels":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)  # the map itself goes with the last array that refers to it


def _map_pixels(descriptor: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return an array over the shared file."""
    return np.frombuffer(mmap.mmap(descriptor, int(np.prod(shape))), np.uint8).reshape(shape)


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("siglip2-cache-pixels")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Descriptor:
    """A file descriptor that travels to a child as the child is started."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self) -> Any:
        return Descriptor._receive, (multiprocessing.reduction.DupFd(self.descriptor),)

    @staticmethod
    def _receive(duplicate: Any) -> "Descriptor":
        return Descriptor(duplicate.detach())


def work(
    connection: Connection, descriptor: Descriptor, shape: tuple[int, ...], form: PixelFormat
) -> None:
    """Decode what the pipe brings until it closes. Runs in a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the build's to handle
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    pixels = _map_pixels(descriptor.descriptor, shape)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        connection.send(None)  # ready
        while True:
            slot, images = connection.recv()
            for position, ref in images:
                connection.send((position, decode_image(ref, form, pixels[slot, position])))


def _exit_with_parent() -> None:
    """End this worker when the build is killed, even while it hangs on a file."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
