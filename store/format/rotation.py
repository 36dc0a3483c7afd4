"""The rotation of int8 targets on disk."""

import numpy as np
from numpy.typing import NDArray

from ...errors import DamagedCacheError
from ..io.storage import Storage
from . import layout
from .matrix import matrix_files, read_orthonormal, read_shape
from .row_encoding import FLOAT16, Float16Codec, Int8Codec, RowCodec
from .teacher_record import TeacherRecord


def rotation_files(teacher: str, rotation_DD: NDArray[np.float32]) -> dict[str, bytes]:
    """Return the files of a rotation by path."""
    return matrix_files(layout.rotation(teacher), rotation_DD, ("stored", "embed_dim"))


def read_codec(files: Storage, record: TeacherRecord) -> RowCodec:
    """Return the codec of a teacher's rows.

    Raises:
        DamagedCacheError: the rotation is missing, does not match the record, is not orthonormal, or its
            size does not divide the width.
    """
    if record.encoding == FLOAT16:
        return Float16Codec()
    folder = layout.rotation(record.name)
    shape = read_shape(files, record, folder)
    if shape is None or shape[0] != shape[1] or record.embed_dim % shape[0]:
        raise DamagedCacheError(
            f"{files.where(layout.matrix_metadata(folder))} is not the rotation of a teacher of width "
            f"{record.embed_dim} as docs/reference/format.md specifies it; restore it from a backup"
        )
    return Int8Codec(read_orthonormal(files, record, folder, shape))
