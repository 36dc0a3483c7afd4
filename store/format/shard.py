"""Targets on disk: sharded Zarr v3 arrays that can also be memory-mapped.

A shard contains the stored rows of a unit (row_encoding.py) in row order, then the index of inner chunks
of Zarr (offset and length of each, uint64) and the CRC-32C of the index. Inner chunks without a row of the
unit are marked absent, as Zarr allows, so a short unit is a short file.
"""

import json
import mmap
import os
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from ...errors import DamagedCacheError
from .layout import ArrayName, Modality
from .row_encoding import FLOAT16, RowEncoding

NORM_TOLERANCE = 2e-3
"""Largest distance of a norm from 1: float16 rounds each value by at most 2**-11 of itself, 5e-4."""

_ABSENT = 2**64 - 1
_MAX_CHUNK_ROWS = 64
"""64 rows of 1152 float16 values are 147 kB, one request to an object store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayLayout:
    """The shape of an array of targets and of its shards."""

    modality: Modality
    num_rows: int
    """Rows of the array, gaps included: one more than the last planned row."""

    num_views: int
    """Views of an image; 1 for texts, whose arrays have no dimension for views."""

    embed_dim: int
    shard_rows: int
    encoding: RowEncoding = FLOAT16
    """How its vectors are stored."""

    num_cells: int | None = None
    """Cells that a view has room for, in the array of patch targets, where ``embed_dim`` is the width of a
    cell and the vector of a view holds all its cells; None: an array of embeddings."""

    @property
    def name(self) -> ArrayName:
        """The name of the array among those of its teacher."""
        return self.modality if self.num_cells is None else "patch"

    @property
    def chunk_rows(self) -> int:
        """Rows of an inner chunk: the largest power of two up to 64 that divides ``shard_rows``."""
        return min(_MAX_CHUNK_ROWS, self.shard_rows & -self.shard_rows)

    @property
    def stored_dim(self) -> int:
        """The stored values of a vector."""
        return self.encoding.stored_dim(self.embed_dim) * (self.num_cells or 1)

    @property
    def vector_bytes(self) -> int:
        """The bytes of a vector."""
        return self.stored_dim * self.encoding.dtype.itemsize

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of a stored row in memory: (views, stored_dim) or (stored_dim,)."""
        return (self.num_views, self.stored_dim) if self.modality == "image" else (self.stored_dim,)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array on disk."""
        return (self.num_rows, *self._shape_of_row(self.encoding.stored_dim(self.embed_dim)))

    @property
    def value_shape(self) -> tuple[int, ...]:
        """The shape of the values: that of the array on disk, less what each vector has besides them."""
        return (self.num_rows, *self._shape_of_row(self.embed_dim))

    @property
    def row_bytes(self) -> int:
        """The bytes of a row."""
        return int(np.prod(self.row_shape)) * self.encoding.dtype.itemsize

    def _shape_of_row(self, last: int) -> tuple[int, ...]:
        if self.num_cells is not None:
            return (self.num_views, self.num_cells, last)
        return (self.num_views, last) if self.modality == "image" else (last,)

    def shard_bytes(self, num_rows: int) -> int:
        """Return the bytes of a shard with this many rows."""
        num_chunks = -(-num_rows // self.chunk_rows)
        return num_chunks * self.chunk_rows * self.row_bytes + self._index_bytes

    @property
    def _index_bytes(self) -> int:
        return self.shard_rows // self.chunk_rows * 16 + 4

    def metadata(self) -> dict[str, Any]:
        """Return the content of zarr.json."""
        rest = list(self.shape[1:])
        last = "embed_dim" if self.encoding.num_extra == 0 else "stored"
        names = ["row", "view", "cell"][: len(rest)]
        little_endian = {"name": "bytes", "configuration": {"endian": "little"}}
        sharding = {
            "chunk_shape": [self.chunk_rows, *rest],
            # Values of one byte have no order of bytes, and zarr-python writes none.
            "codecs": [little_endian if self.encoding.dtype.itemsize > 1 else {"name": "bytes"}],
            "index_codecs": [little_endian, {"name": "crc32c"}],
            "index_location": "end",
        }
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.shape),
            "data_type": self.encoding.name,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [self.shard_rows, *rest]},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": self.encoding.fill_value,
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": {},
            "dimension_names": [*names, last],
        }

    def matches_map(self, metadata: dict[str, Any]) -> bool:
        """Return whether shards with this zarr.json can be memory-mapped with this layout."""
        ours = self.metadata()
        return all(
            metadata.get(name) == ours[name]
            for name in ("data_type", "chunk_grid", "chunk_key_encoding", "codecs")
        )


def parse_metadata(data: bytes, *, where: str) -> dict[str, Any]:
    """Return the content of a zarr.json.

    Raises:
        DamagedCacheError: the data are not a JSON object.
    """
    try:
        found: object = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise DamagedCacheError(f"{where} is missing or damaged; run siglip2-cache verify")
    return cast("dict[str, Any]", found)


def encode_shard(layout: ArrayLayout, stored: NDArray[Any]) -> bytearray:
    """Return the bytes of a shard with these stored rows, (n, *row_shape), n at least 1."""
    assert stored.shape[1:] == layout.row_shape and stored.dtype == layout.encoding.dtype
    num_present = -(-len(stored) // layout.chunk_rows)
    chunk_bytes = layout.chunk_rows * layout.row_bytes
    num_data_bytes = num_present * chunk_bytes
    shard = bytearray(layout.shard_bytes(len(stored)))
    dtype = layout.encoding.dtype
    rows = np.frombuffer(shard, dtype, num_data_bytes // dtype.itemsize)
    rows = rows.reshape(-1, *layout.row_shape)
    rows[: len(stored)] = stored
    rows[len(stored) :] = layout.encoding.empty_rows(rows[len(stored) :].shape)
    shard[num_data_bytes:] = _encode_index(layout, num_present)
    return shard


def map_shard(path: Path, layout: ArrayLayout, num_rows: int) -> NDArray[Any]:
    """Return the stored rows of a unit as a read-only memory map (num_rows, *row_shape).

    Raises:
        DamagedCacheError: the file does not match the record of its unit.
    """
    with open_shard(path, layout, num_rows) as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    dtype = layout.encoding.dtype
    count = num_rows * layout.row_bytes // dtype.itemsize
    return np.frombuffer(mapped, dtype, count).reshape(num_rows, *layout.row_shape)


def open_shard(path: Path, layout: ArrayLayout, num_rows: int) -> BufferedReader:
    """Return the open file of a shard after checking its length and index, so that it can be mapped.

    Raises:
        DamagedCacheError: the file does not match the record of its unit.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise DamagedCacheError(
            f"shard {path} is missing although its unit is committed; run siglip2-cache verify"
        ) from None
    index = shard_index(layout, num_rows)
    num_bytes = file.seek(0, os.SEEK_END)
    file.seek(max(0, num_bytes - len(index)))
    if num_bytes != layout.shard_bytes(num_rows) or file.read() != index:
        file.close()
        message = describe_mismatch(str(path), num_bytes, layout, num_rows)
        raise DamagedCacheError(f"{message}; run siglip2-cache verify")
    return file


def describe_mismatch(where: str, num_bytes: int, layout: ArrayLayout, num_rows: int) -> str:
    """Return the message that a file does not match the record of its unit."""
    return (
        f"shard {where} ({num_bytes:,} bytes) does not match the record of its unit "
        f"({num_rows} rows, {layout.shard_bytes(num_rows):,} bytes, chunks in row order)"
    )


def shard_index(layout: ArrayLayout, num_rows: int) -> bytes:
    """Return the index at the end of a shard with this many rows."""
    return _encode_index(layout, -(-num_rows // layout.chunk_rows))


def _encode_index(layout: ArrayLayout, num_present: int) -> bytes:
    num_chunks = layout.shard_rows // layout.chunk_rows
    chunk_bytes = layout.chunk_rows * layout.row_bytes
    index = np.full((num_chunks, 2), _ABSENT, "<u8")
    index[:num_present, 0] = np.arange(num_present, dtype=np.uint64) * np.uint64(chunk_bytes)
    index[:num_present, 1] = chunk_bytes
    data = index.tobytes()
    return data + int(google_crc32c.value(data)).to_bytes(4, "little")
