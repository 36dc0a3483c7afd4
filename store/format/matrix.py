"""Small float32 matrices of a teacher on disk: Zarr arrays of one chunk, named by the teacher's record."""

import json
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ...errors import DamagedCacheError
from ..io.storage import Storage
from . import layout
from .records import sha256_hex
from .shard import parse_metadata
from .teacher_record import TeacherRecord

_DTYPE = np.dtype("<f4")
_COMPARED = ("shape", "data_type", "chunk_grid", "chunk_key_encoding", "codecs")
_TOLERANCE = 1e-4  # of the product with its transpose: rounding to float32 costs 1e-6


def matrix_files(
    folder: str, matrix: NDArray[np.float32], names: tuple[str, str]
) -> dict[str, bytes]:
    """Return the files of a matrix by path; ``names`` are those of its dimensions."""
    metadata = {**_metadata(matrix.shape), "dimension_names": names}
    return {
        layout.matrix_metadata(folder): (json.dumps(metadata, indent=1) + "\n").encode(),
        layout.matrix_chunk(folder): np.ascontiguousarray(matrix, _DTYPE).tobytes(),
    }


def read_shape(files: Storage, record: TeacherRecord, folder: str) -> tuple[int, int] | None:
    """Return the shape of a matrix by its metadata, or None if these are of any other array.

    Raises:
        DamagedCacheError: the metadata are missing, or do not match the record.
    """
    path = layout.matrix_metadata(folder)
    metadata = parse_metadata(_read(files, record, path), where=files.where(path))
    shape = metadata.get("shape")
    sizes = cast("list[object]", shape) if isinstance(shape, list) else []
    rows, columns = sizes if len(sizes) == 2 else (None, None)
    if not (isinstance(rows, int) and isinstance(columns, int) and rows >= 1 and columns >= 1):
        return None
    ours = _metadata((rows, columns))
    is_ours = all(metadata.get(name) == ours[name] for name in _COMPARED)
    return (rows, columns) if is_ours else None


def read_orthonormal(
    files: Storage, record: TeacherRecord, folder: str, shape: tuple[int, int]
) -> NDArray[np.float32]:
    """Return a matrix whose rows are orthonormal.

    Raises:
        DamagedCacheError: it is missing, does not match the record, or is another matrix.
    """
    path = layout.matrix_chunk(folder)
    data = _read(files, record, path)
    num_bytes = _DTYPE.itemsize * shape[0] * shape[1]
    matrix = np.frombuffer(data, _DTYPE).reshape(shape).copy() if len(data) == num_bytes else None
    if matrix is None or not np.allclose(
        matrix @ matrix.T, np.eye(shape[0]), rtol=0, atol=_TOLERANCE
    ):
        raise DamagedCacheError(
            f"{files.where(path)} is not an orthonormal map; restore it from a backup"
        )
    return matrix


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


def _metadata(shape: Sequence[int]) -> dict[str, Any]:
    """Return the content of its zarr.json, without the names of dimensions."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shape)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0.0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": {},
    }
