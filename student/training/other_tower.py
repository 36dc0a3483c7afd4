"""The tower that completes a training of one tower: the teacher's, or another student's in the same space.

Shape letters in this file: E = the teacher's width, D = the student's.
"""

from typing import Literal

import numpy as np

from ...errors import SettingError
from ...siglip import Checkpoint, files_sha256, resolve_checkpoint, weight_files
from ...store.format.teacher_record import TeacherRecord
from ..config import TrainConfig
from ..export.metadata import read_metadata, read_projection
from ..losses.pca_map import PcaMap

_LARGEST_ERROR = 1e-3
"""Of a value of the PCA map between two fits to the same rows, which differ by rounding."""


def other_tower(config: TrainConfig) -> Checkpoint | None:
    """Return the checkpoint with the tower that is not trained; None: the result is one tower alone.

    Raises:
        CheckpointError: it cannot be read, or lacks that tower.
    """
    if config.teacher_text is not None:
        return resolve_checkpoint(config.teacher_text)
    if config.image_tower is not None:
        return resolve_checkpoint(config.image_tower, needed=("image",))
    return None


def check_other_tower(
    config: TrainConfig, teacher: TeacherRecord, projection: Literal["learned", "pca", "none"]
) -> None:
    """Check before the training that the other tower is the teacher's, or in the space of the result.

    Raises:
        SettingError: it is not.
    """
    other = other_tower(config)
    if other is None:
        return
    sha256, own = files_sha256(weight_files(other.folder)), teacher.identity.get("weights_sha256")
    if config.teacher_text is not None and sha256 != own:
        raise SettingError(
            f"teacher_text {other.given} is not the teacher {teacher.name} of the cache: its weights have "
            f"SHA-256 {sha256[:12]}..., the teacher's {str(own)[:12]}..."
        )
    if config.image_tower is None:
        return
    metadata, space = read_metadata(other), "pca" if projection == "pca" else "teacher"
    is_same = metadata.is_of(teacher) and metadata.space == space
    if not is_same and not (sha256 == own and space == "teacher"):
        wanted = {
            "pca": "the model of a training of --towers image --projection pca by the same teacher",
            "teacher": f"the checkpoint of {teacher.name}, or the model of a training of --towers image "
            "--projection none by it",
        }[space]
        raise SettingError(
            f"image_tower {other.given} is not in the space of the text tower; name {wanted}"
        )


def check_same_map(config: TrainConfig, teacher: TeacherRecord, pca: PcaMap | None) -> None:
    """Check that an image tower of a student was trained with this PCA map.

    Raises:
        SettingError: it was trained with another one.
    """
    if config.image_tower is None or pca is None:
        return
    other = resolve_checkpoint(config.image_tower, needed=("image",))
    map_ED = read_projection(other, teacher.embed_dim) if _has_width(other, pca) else None
    if map_ED is None or not np.allclose(map_ED, pca.map_ED, atol=_LARGEST_ERROR):
        raise SettingError(
            f"image_tower {other.given} was trained with another PCA map, so its images are not in the space "
            "of these texts; train both towers on one cache, with one --seed and one width"
        )


def _has_width(other: Checkpoint, pca: PcaMap) -> bool:
    return other.embed_dim == pca.map_ED.shape[1]
