"""How a row of targets is stored: float16 as it is, or int8 in rotated axes with a scale a row.

One or two dimensions of a SigLIP 2 embedding have most of its norm. Rounded to int8 with one scale, the
others keep a few steps, and the soft targets change by more than the budget. An orthonormal map that spreads
those dimensions over a block of others makes all values of a row about equally large, so that the same 8 bits
are several times as exact. The map is the same for images and texts, which leaves their cosines unchanged.

Shape letters in this file:
    N = rows, E = embed_dim, S = stored values of a row, D = dimensions of a block of the rotation.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ...cores import num_cores
from ...errors import SettingError
from ..io.parallel import map_parallel
from .float16 import round_to_float16

Basis = Literal["teacher", "stored"]
"""Axes of the values that are read: the teacher's own, or those in which they are stored."""

DTYPE = np.dtype("<f2")
"""Dtype of embeddings as they are read."""

_LARGEST = 127
_SCALE = np.dtype("<f4")

_BLOCK = 32
"""Smallest block of the rotation of int8 rows. 32 have the error of a dense map within a third and take a
twentieth of its time: benchmarks/results/targets_xeon-2core_202611.md."""

_TILE_ROWS = 64
"""Rows that are converted at a time: 64 of 1152 float32 values are 295 kB and stay in the processor."""


_PARALLEL_ROWS = 1024
"""Rows that are worth a thread, which takes 0.1 ms to start: they take several ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowEncoding:
    """The stored form of a row."""

    name: str
    """``dtype`` of the teacher's record."""

    dtype: np.dtype[Any]
    fill_value: str | int
    """``fill_value`` of the Zarr array: a row that is not stored reads as one without a target."""

    num_extra: int = 0
    """Values after the embedding: the bytes of its scale."""

    def stored_dim(self, embed_dim: int) -> int:
        """Return the stored values of a vector."""
        return embed_dim + self.num_extra

    def empty_rows(self, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return stored rows without a target, of this shape."""
        return np.full(shape, float(self.fill_value), self.dtype)

    def norms(self, stored_NS: NDArray[Any]) -> NDArray[np.float32]:
        """Return the norm of each embedding, (N,); NaN without a target."""
        values_NE = stored_NS[:, : stored_NS.shape[1] - self.num_extra].astype(np.float32)
        norm_N = np.linalg.norm(values_NE, axis=1)
        return norm_N * row_scales(stored_NS) if self.num_extra else norm_N


FLOAT16 = RowEncoding(name="float16", dtype=DTYPE, fill_value="NaN")
INT8 = RowEncoding(name="int8", dtype=np.dtype("i1"), fill_value=0, num_extra=_SCALE.itemsize)

ENCODINGS = {encoding.name: encoding for encoding in (FLOAT16, INT8)}


def parse_encoding(name: str) -> RowEncoding:
    """Return an encoding by its name.

    Raises:
        SettingError: there is no such encoding.
    """
    if name not in ENCODINGS:
        raise SettingError(f"targets {name!r} is not one of {', '.join(ENCODINGS)}")
    return ENCODINGS[name]


class RowCodec(Protocol):
    """Converts between embeddings and stored rows."""

    encoding: RowEncoding

    @property
    def rotation(self) -> NDArray[np.float32] | None:
        """The map (D, D) of make_rotation; None if the axes are the teacher's."""
        ...

    def encode(self, values: NDArray[np.float16]) -> NDArray[Any]:
        """Return (..., S) stored rows of (..., E) embeddings; one that is not finite, or 0, has no target."""
        ...

    def decode(
        self,
        stored: NDArray[Any],
        basis: Basis = "teacher",
        *,
        out: NDArray[np.float16] | None = None,
    ) -> NDArray[np.float16]:
        """Return (..., E) embeddings of (..., S) stored rows, in ``out`` if given; NaN without a target.

        ``out`` is contiguous.
        """
        ...


class Float16Codec:
    """Stored rows are the embeddings."""

    encoding = FLOAT16
    rotation = None

    def encode(self, values: NDArray[np.float16]) -> NDArray[np.float16]:
        """See RowCodec."""
        return values

    def decode(
        self,
        stored: NDArray[np.float16],
        basis: Basis = "teacher",
        *,
        out: NDArray[np.float16] | None = None,
    ) -> NDArray[np.float16]:
        """See RowCodec."""
        if out is None:
            return stored
        out[...] = stored
        return out


class Int8Codec:
    """Stored rows are E int8 values in rotated axes, then the 4 bytes of the float32 scale of the row."""

    encoding = INT8

    def __init__(self, rotation_DD: NDArray[np.float32]) -> None:
        """Set the rotation, see make_rotation; D divides E."""
        self._rotation_DD = rotation_DD

    @property
    def rotation(self) -> NDArray[np.float32]:
        """See RowCodec."""
        return self._rotation_DD

    def encode(self, values: NDArray[np.float16]) -> NDArray[np.int8]:
        """See RowCodec. The scale is chosen so that the norm is unchanged."""
        E, D = values.shape[-1], len(self._rotation_DD)
        values_NE = values.reshape(-1, E)
        stored_NS = np.zeros((len(values_NE), INT8.stored_dim(E)), np.int8)
        for tile in _tiles(len(values_NE)):
            rows_NE = values_NE[tile].astype(np.float32)
            norm_N = np.linalg.norm(rows_NE, axis=1)
            is_row_N = np.isfinite(norm_N) & (norm_N > 0)
            rows_NE[~is_row_N] = 1  # any row that has a largest value
            rows_NE = (rows_NE.reshape(-1, D) @ self._rotation_DD.T).reshape(-1, E)
            largest_N1 = np.abs(rows_NE).max(axis=1, keepdims=True)
            steps_NE = np.rint(rows_NE * (_LARGEST / largest_N1))
            scale_N = (norm_N / np.linalg.norm(steps_NE, axis=1)).astype(_SCALE)
            encoded_NS = np.concatenate(
                [steps_NE.astype(np.int8), scale_N[:, None].view(np.int8)], axis=1
            )
            stored_NS[tile][is_row_N] = encoded_NS[is_row_N]
        return stored_NS.reshape(*values.shape[:-1], INT8.stored_dim(E))

    def decode(
        self,
        stored: NDArray[np.int8],
        basis: Basis = "teacher",
        *,
        out: NDArray[np.float16] | None = None,
    ) -> NDArray[np.float16]:
        """See RowCodec."""
        E = stored.shape[-1] - INT8.num_extra
        stored_NS = stored.reshape(-1, stored.shape[-1])
        if out is None:
            out = np.empty((*stored.shape[:-1], E), DTYPE)
        assert out.flags.c_contiguous
        out_NE = out.reshape(-1, E)
        size = max(1, -(-len(stored_NS) // _num_threads(len(stored_NS))))
        spans = [slice(first, first + size) for first in range(0, len(stored_NS), size)]
        rotation_DD = self._rotation_DD if basis == "teacher" else None
        if len(spans) < 2:
            _decode(stored_NS, rotation_DD, out_NE)
            return out
        # New threads for each call: a forked process would wait forever for those of its parent.
        for _ in map_parallel(
            lambda span: _decode(stored_NS[span], rotation_DD, out_NE[span]),
            spans,
            num_threads=len(spans),
        ):
            pass
        return out


def _decode(
    stored_NS: NDArray[np.int8],
    rotation_DD: NDArray[np.float32] | None,
    out_NE: NDArray[np.float16],
) -> None:
    """Fill ``out_NE`` with the embeddings of stored rows, in the axes of the teacher if a map is given."""
    E = out_NE.shape[1]
    scale_N1 = row_scales(stored_NS)[:, None]
    room_NE = np.empty((2, min(_TILE_ROWS, len(stored_NS)), E), np.float32)
    for tile in _tiles(len(stored_NS)):
        rows_NE, other_NE = room_NE[:, : len(out_NE[tile])]
        rows_NE[...] = stored_NS[tile, :E]
        if rotation_DD is not None:
            D = len(rotation_DD)
            np.matmul(rows_NE.reshape(-1, D), rotation_DD, out=other_NE.reshape(-1, D))
            rows_NE, other_NE = other_NE, rows_NE
        round_to_float16(rows_NE, scale_N1[tile], out=out_NE[tile], room=other_NE)
    out_NE[np.isnan(scale_N1[:, 0])] = np.nan


def _num_threads(num_rows: int) -> int:
    """Return in how many threads to decode so many rows: one for each _PARALLEL_ROWS, at most all cores."""
    wanted = num_rows // _PARALLEL_ROWS
    return 1 if wanted < 2 else min(wanted, num_cores())  # cores are counted by reading files


def row_scales(stored_NS: NDArray[np.int8]) -> NDArray[np.float32]:
    """Return the scale of each int8 row, (N,); NaN for 0, which marks a row without a target."""
    scale_N = np.ascontiguousarray(stored_NS[:, -_SCALE.itemsize :]).view(_SCALE)[:, 0]
    return np.where(scale_N == 0, np.float32(np.nan), scale_N)


def make_codec(encoding: RowEncoding, embed_dim: int) -> RowCodec:
    """Return the codec of a new teacher of this width."""
    return Float16Codec() if encoding == FLOAT16 else Int8Codec(make_rotation(embed_dim))


def _tiles(num_rows: int) -> list[slice]:
    return [slice(first, first + _TILE_ROWS) for first in range(0, num_rows, _TILE_ROWS)]


def make_rotation(embed_dim: int) -> NDArray[np.float32]:
    """Return the orthonormal map of int8 rows for a width: a block (D, D), D a divisor of the width.

    It maps each D consecutive stored values to D consecutive dimensions of the teacher:
    ``embedding = (stored.reshape(-1, D) @ rotation).reshape(-1, E)``. D is the smallest divisor of the width
    that is at least 32.
    """
    divisors = (d for d in range(_BLOCK, embed_dim) if embed_dim % d == 0)
    return spreading_map(next(divisors, embed_dim)).astype(np.float32)


def spreading_map(size: int) -> NDArray[np.float64]:
    """Return an orthonormal map (D, D) that spreads each dimension over all others about equally.

    It is the Hadamard matrix of the power of two in D, times a cosine transform for the odd part.
    """
    num_hadamard = size & -size
    map_DD: NDArray[Any] = _cosine_transform(size // num_hadamard)
    while len(map_DD) < size:
        map_DD = np.kron(np.array([[1.0, 1.0], [1.0, -1.0]]) / math.sqrt(2), map_DD)
    return map_DD


def _cosine_transform(size: int) -> NDArray[np.float64]:
    """Return the orthonormal DCT-II, (size, size)."""
    k, n = np.arange(size)[:, None], np.arange(size)
    rows = math.sqrt(2 / size) * np.cos(np.pi * (2 * n + 1) * k / (2 * size))
    rows[0] /= math.sqrt(2)
    return rows
