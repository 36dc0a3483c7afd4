"""The rotation of int8 targets on disk: a Zarr array of one chunk, named by the record of its teacher."""

import json
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ...errors import DamagedCacheError
from ..io.storage import Storage
from . import layout
from .records import sha256_hex
from .row_encoding import FLOAT16, Float16Codec, Int8Codec, RowCodec
from .shard import parse_metadata
from .teacher_record import TeacherRecord

_DTYPE = np.dtype("<f4")
_COMPARED = ("shape", "data_type", "chunk_grid", "chunk_key_encoding", "codecs")
_TOLERANCE = 1e-4  # of the product with its transpose: rounding to float32 costs 1e-6


def rotation_files(teacher: str, rotation_DD: NDArray[np.float32]) -> dict[str, bytes]:
    """Return the files of a rotation by path."""
    metadata = _metadata(len(rotation_DD))
    return {
        layout.rotation_metadata(teacher): (json.dumps(metadata, indent=1) + "\n").encode(),
        layout.rotation_chunk(teacher): np.ascontiguousarray(rotation_DD, _DTYPE).tobytes(),
    }


def read_codec(files: Storage, record: TeacherRecord) -> RowCodec:
    """Return the codec of a teacher's rows.

    Raises:
        DamagedCacheError: the rotation is missing, does not match the record, is not orthonormal, or its
            size does not divide the width.
    """
    if record.encoding == FLOAT16:
        return Float16Codec()
    metadata_path = layout.rotation_metadata(record.name)
    where = files.where(metadata_path)
    metadata = parse_metadata(_read(files, record, metadata_path), where=where)
    D = _size(metadata)
    if D is None or record.embed_dim % D:
        raise DamagedCacheError(
            f"{where} is not the rotation of a teacher of width {record.embed_dim} as "
            "docs/reference/format.md specifies it; restore it from a backup"
        )
    path = layout.rotation_chunk(record.name)
    data = _read(files, record, path)
    rotation_DD = np.frombuffer(data, _DTYPE).reshape(-1, D) if len(data) == 4 * D * D else None
    if rotation_DD is None or not np.allclose(
        rotation_DD @ rotation_DD.T, np.eye(D), rtol=0, atol=_TOLERANCE
    ):
        raise DamagedCacheError(
            f"{files.where(path)} is not an orthonormal map; restore it from a backup"
        )
    return Int8Codec(rotation_DD)


def _size(metadata: dict[str, Any]) -> int | None:
    """Return D by the metadata of an array (D, D) as specified, or None for any other array."""
    shape = metadata.get("shape")
    D = cast("list[object]", shape)[0] if isinstance(shape, list) and shape else None
    if not isinstance(D, int) or D < 1:
        return None
    ours = _metadata(D)
    return D if all(metadata.get(name) == ours[name] for name in _COMPARED) else None


def _read(files: Storage, record: TeacherRecord, path: str) -> bytes:
    try:
        data = files.read(path)
    except (FileNotFoundError, NotADirectoryError):
        data = b""
    if sha256_hex(data) != record.files.get(path, {}).get("sha256"):
        raise DamagedCacheError(
            f"{files.where(path)} is missing or does not match {layout.teacher_record(record.name)}; "
            "restore it from a backup"
        )
    return data


def _metadata(size: int) -> dict[str, Any]:
    """Return the content of its zarr.json."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [size, size],
        "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [size, size]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0.0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": {},
        "dimension_names": ["stored", "embed_dim"],
    }
