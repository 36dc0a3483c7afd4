"""Memory maps of shards: one map a shard, or all in one range of addresses.

Maps are read-only and shared by all processes that read the cache. Shards that cannot be mapped
(compressed, or written with other chunks by another program) are read by zarr-python.
"""

import ctypes
import mmap
import resource
import sys
import weakref
from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import DamagedCacheError
from ...formatting import first_line
from ..format.shard import map_shard, open_shard
from .shard_files import ShardFiles

_MAX_OPEN_SHARDS = 512
_MAX_MAPPED_SHARDS = 32_768
"""Linux allows 65,530 maps in a process."""

_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000  # <bits/mman.h>, of x86 and Arm alike
_MAP_FAILED = ctypes.c_void_p(-1).value


def as_items(rows_NS: NDArray[Any]) -> NDArray[np.void]:
    """Return (N,) items of one row each, so that numpy copies rows, not single values."""
    return rows_NS.view(np.dtype((np.void, rows_NS.shape[1] * rows_NS.itemsize)))[:, 0]


class Shards:
    """A limited number of memory maps; the least recently used ones are closed first.

    Each map holds a file descriptor, and processes are often limited to 256 or 1,024.
    """

    def __init__(self, files: ShardFiles) -> None:
        self._files, self._array = files, files.array
        self._open: OrderedDict[int, NDArray[Any]] = OrderedDict()
        self._max_open = max_open_shards()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def rows_of(self, unit: int, num_rows: int) -> NDArray[Any]:
        """Return the stored rows of a unit (num_rows, *row_shape).

        Raises:
            DamagedCacheError: the shard or the metadata of the array are missing or damaged.
        """
        rows = self._open.pop(unit, None)
        if rows is None:
            rows = self._load(unit, num_rows)
            while len(self._open) >= self._max_open:
                self._open.popitem(last=False)
        self._open[unit] = rows
        return rows

    def read_into(self, unit: int, num_rows: int, first: int, out: NDArray[Any]) -> None:
        """Fill a contiguous ``out`` (n, *row_shape) with stored rows of a unit from position ``first`` on.

        The file is read, not mapped: pages of a map count as memory of this process until the system
        reclaims them.

        Raises:
            DamagedCacheError: the shard or the metadata of the array are missing or damaged.
        """
        if not self._files.have_raw_rows:
            out[:] = self._read_with_zarr(unit, first, len(out))
            return
        with open_shard(self._files.path(unit), self._array, num_rows) as file:
            file.seek(first * self._array.row_bytes)
            num_bytes = file.readinto(out.reshape(-1).view(np.uint8).data)
        assert num_bytes == out.nbytes, (self._files.where(unit), first, num_bytes)

    def _load(self, unit: int, num_rows: int) -> NDArray[Any]:
        if self._files.have_raw_rows:
            return map_shard(self._files.path(unit), self._array, num_rows)
        return self._read_with_zarr(unit, 0, num_rows)

    def _read_with_zarr(self, unit: int, first: int, num_rows: int) -> NDArray[Any]:
        import zarr

        shard = self._files.where(unit)
        if not self._files.exists(unit):  # zarr would return its fill value
            raise DamagedCacheError(
                f"shard {shard} is missing although its unit is committed; run siglip2-cache verify"
            )
        path = self._files.array_folder
        row = unit * self._array.shard_rows + first
        try:
            rows = zarr.open_array(path, mode="r")[row : row + num_rows]
        except Exception as error:  # codecs raise any kind of error
            raise DamagedCacheError(
                f"shard {shard} cannot be decoded ({first_line(error)}); run siglip2-cache verify"
            ) from None
        stored = np.ascontiguousarray(rows, self._array.encoding.dtype)
        return stored.reshape(len(stored), *self._array.row_shape)


class ArrayMap:
    """All shards of an array mapped side by side, so that the number of a row gives its address.

    A range of addresses for the whole array is reserved, which takes no memory. Shards are mapped into it
    when they are first needed, and hold no file open. Reading rows is then one copy, as from one file.
    Addresses without a shard read as zeros and are never returned.
    """

    def __init__(self, files: ShardFiles, num_units: int) -> None:
        self._files, self._array = files, files.array
        array = files.array
        self._unit_bytes = array.shard_rows * array.row_bytes
        self.is_mapped = np.zeros(num_units, np.bool_)
        num_bytes = num_units * self._unit_bytes
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        # Readable although empty, so that a debugger that shows the array finds zeros.
        self._address = _map_memory(None, num_bytes, mmap.PROT_READ, flags, -1)
        memory = (ctypes.c_uint8 * num_bytes).from_address(self._address)
        weakref.finalize(memory, _libc().munmap, self._address, num_bytes)
        rows_NS = np.frombuffer(memoryview(memory), array.encoding.dtype)
        rows_NS = rows_NS.reshape(-1, array.stored_dim)
        rows_NS.flags.writeable = False
        self.rows_NS: NDArray[Any] = rows_NS
        """(units * shard_rows * views, stored_dim); only rows of mapped shards are valid."""

    def map_unit(self, unit: int, num_rows: int) -> None:
        """Map the shard of a unit to its addresses.

        Raises:
            DamagedCacheError: the file does not match the record of its unit.
        """
        with open_shard(self._files.path(unit), self._array, num_rows) as file:
            _map_memory(
                self._address + unit * self._unit_bytes,
                num_rows * self._array.row_bytes,
                mmap.PROT_READ,
                mmap.MAP_SHARED | _MAP_FIXED,
                file.fileno(),
            )
        self.is_mapped[unit] = True


def make_array_map(files: ShardFiles) -> ArrayMap | None:
    """Return a map of a whole array, or None if its shards cannot be mapped side by side."""
    array = files.array
    num_units = -(-array.num_rows // array.shard_rows)
    is_aligned = array.shard_rows * array.row_bytes % mmap.PAGESIZE == 0
    if not (sys.platform == "linux" and is_aligned and 1 <= num_units <= _MAX_MAPPED_SHARDS):
        return None
    try:
        if not (files.fit_locally() and files.have_raw_rows):
            return None
        return ArrayMap(files, num_units)
    except (OSError, DamagedCacheError):  # too few addresses; or damage, which verify reports
        return None


def max_open_shards() -> int:
    """Return how many shards to keep open: a quarter of the limit of the process, at most 512."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _MAX_OPEN_SHARDS
    return max(8, min(_MAX_OPEN_SHARDS, soft // 4))


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int),
        ctypes.c_int64,
    )
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return libc


def _map_memory(
    address: int | None, num_bytes: int, protection: int, flags: int, descriptor: int
) -> int:
    found = _libc().mmap(address, num_bytes, protection, flags, descriptor, 0)
    if found == _MAP_FAILED or found is None:
        raise OSError(ctypes.get_errno(), f"mmap of {num_bytes:,} bytes failed")
    return found
