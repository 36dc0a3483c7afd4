"""Targets on disk: standard sharded Zarr v3 that is also a memory map.

A shard is its unit's rows as raw little-endian float16 in row order, then Zarr's index of inner chunks
(offset and length of each, uint64) and the index's CRC-32C. Inner chunks that hold no row of the unit
are marked absent, as Zarr allows, so a short unit is a short file.
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
from .layout import Modality

DTYPE = np.dtype("<f2")
NORM_TOLERANCE = 2e-3
"""How far from 1 a target's norm may be: float16 rounds each value to 2**-11 of itself, 5e-4 at most."""

_ABSENT = 2**64 - 1
_MAX_CHUNK_ROWS = 64
"""64 rows of 1152 x fp16 are 147 kB: one request to an object store, 17 bytes of index a chunk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayLayout:
    """Shape of a target array and of its shards."""

    modality: Modality
    num_rows: int
    """Rows of the array: one more than the last planned row. Gaps are among them."""

    num_views: int
    """Views an image; 1 for texts, whose arrays have no such dimension."""

    embed_dim: int
    shard_rows: int

    @property
    def chunk_rows(self) -> int:
        """Rows of an inner chunk: the largest power of two up to 64 that divides shard_rows."""
        return min(_MAX_CHUNK_ROWS, self.shard_rows & -self.shard_rows)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row: (views, embed_dim) or (embed_dim,)."""
        if self.modality == "image":
            return (self.num_views, self.embed_dim)
        return (self.embed_dim,)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole array."""
        return (self.num_rows, *self.row_shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.row_shape)) * DTYPE.itemsize

    def shard_bytes(self, num_rows: int) -> int:
        """Bytes of a shard that holds this many rows."""
        num_chunks = -(-num_rows // self.chunk_rows)
        return num_chunks * self.chunk_rows * self.row_bytes + self._index_bytes

    @property
    def _index_bytes(self) -> int:
        return self.shard_rows // self.chunk_rows * 16 + 4

    def metadata(self) -> dict[str, Any]:
        """Return the array's zarr.json."""
        rest = list(self.row_shape)
        names = ["row", "view", "embed_dim"] if self.modality == "image" else ["row", "embed_dim"]
        little_endian = {"name": "bytes", "configuration": {"endian": "little"}}
        sharding = {
            "chunk_shape": [self.chunk_rows, *rest],
            "codecs": [little_endian],
            "index_codecs": [little_endian, {"name": "crc32c"}],
            "index_location": "end",
        }
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.shape),
            "data_type": "float16",
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [self.shard_rows, *rest]},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": "NaN",
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": {},
            "dimension_names": names,
        }

    def matches_map(self, metadata: dict[str, Any]) -> bool:
        """Say whether shards of this zarr.json can be memory-mapped as this layout describes."""
        ours = self.metadata()
        return all(
            metadata.get(name) == ours[name]
            for name in ("data_type", "chunk_grid", "chunk_key_encoding", "codecs")
        )


def parse_metadata(data: bytes, *, where: str) -> dict[str, Any]:
    """Return a zarr.json.

    Raises:
        DamagedCacheError: it is no JSON object.
    """
    try:
        found: object = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise DamagedCacheError(f"{where} is missing or damaged; run siglip2-cache verify")
    return cast("dict[str, Any]", found)


def encode_shard(layout: ArrayLayout, values: NDArray[np.float16]) -> bytearray:
    """Return the bytes of the shard that holds these rows, (n, *row_shape), n at least 1."""
    assert values.shape[1:] == layout.row_shape and values.dtype == np.float16
    num_present = -(-len(values) // layout.chunk_rows)
    chunk_bytes = layout.chunk_rows * layout.row_bytes
    num_data_bytes = num_present * chunk_bytes
    shard = bytearray(layout.shard_bytes(len(values)))
    rows = np.frombuffer(shard, DTYPE, num_data_bytes // DTYPE.itemsize)
    rows = rows.reshape(-1, *layout.row_shape)
    rows[: len(values)] = values
    rows[len(values) :] = np.nan
    shard[num_data_bytes:] = _encode_index(layout, num_present)
    return shard


def map_shard(path: Path, layout: ArrayLayout, num_rows: int) -> NDArray[np.float16]:
    """Return a unit's rows as a read-only memory map (num_rows, *row_shape) float16.

    Raises:
        DamagedCacheError: the file is not the shard that its unit's record describes.
    """
    with open_shard(path, layout, num_rows) as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    count = num_rows * layout.row_bytes // DTYPE.itemsize
    return np.frombuffer(mapped, DTYPE, count).reshape(num_rows, *layout.row_shape)


def open_shard(path: Path, layout: ArrayLayout, num_rows: int) -> BufferedReader:
    """Return a shard's file, open, its length and its index checked: it can be mapped.

    Raises:
        DamagedCacheError: the file is not the shard that its unit's record describes.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise DamagedCacheError(
            f"shard {path} is missing, though its unit was committed; run siglip2-cache verify"
        ) from None
    index = shard_index(layout, num_rows)
    num_bytes = file.seek(0, os.SEEK_END)
    file.seek(max(0, num_bytes - len(index)))
    if num_bytes != layout.shard_bytes(num_rows) or file.read() != index:
        file.close()
        wrong = describe_other_shard(str(path), num_bytes, layout, num_rows)
        raise DamagedCacheError(f"{wrong}; run siglip2-cache verify")
    return file


def describe_other_shard(where: str, num_bytes: int, layout: ArrayLayout, num_rows: int) -> str:
    """Return, for people, that a file is not the shard that a record describes."""
    return (
        f"shard {where} ({num_bytes:,} bytes) is not what its unit's record describes "
        f"({num_rows} rows, {layout.shard_bytes(num_rows):,} bytes, chunks in row order)"
    )


def shard_index(layout: ArrayLayout, num_rows: int) -> bytes:
    """Return the index that the shard of so many rows ends with."""
    return _encode_index(layout, -(-num_rows // layout.chunk_rows))


def _encode_index(layout: ArrayLayout, num_present: int) -> bytes:
    num_chunks = layout.shard_rows // layout.chunk_rows
    chunk_bytes = layout.chunk_rows * layout.row_bytes
    index = np.full((num_chunks, 2), _ABSENT, "<u8")
    index[:num_present, 0] = np.arange(num_present, dtype=np.uint64) * np.uint64(chunk_bytes)
    index[:num_present, 1] = chunk_bytes
    data = index.tobytes()
    return data + int(google_crc32c.value(data)).to_bytes(4, "little")
