"""What a training leaves beside a model, for its evaluation: siglip2_cache.json and the map P."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import CheckpointError
from ...formatting import first_line
from ...siglip import Checkpoint
from ...store.format.teacher_record import TeacherRecord
from ..data.split import SplitPolicy
from .atomic_folder import MARK

PROJECTION = "projection.safetensors"
"""In the folder of the run, beside that of the model: one tensor, map_ED, and ``x_ND @ map_ED.T`` is in
the teacher's space."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """What siglip2_cache.json says; None where it does not."""

    split: SplitPolicy | None = None
    """How images were held out."""

    logit: tuple[float, float] | None = None
    """logit_scale, a logarithm, and logit_bias, of an image tower alone."""

    teacher_identity: str | None = None
    """identity_sha256 of the teacher that it was trained against."""

    def is_of(self, teacher: TeacherRecord) -> bool | None:
        """Return whether the model was trained against a teacher; None: that is not noted."""
        if self.teacher_identity is None:
            return None
        return self.teacher_identity == identity_sha256(teacher)


def read_notes(checkpoint: Checkpoint) -> Notes:
    """Return what a training noted; nothing where the model is of no training of ours.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = checkpoint.folder / MARK
    if not path.is_file():
        return Notes()
    try:
        found: Any = json.loads(path.read_text("utf-8"))
        split = found.get("split")
        if split is not None:
            names = ("val_share", "val_keys")
            split = SplitPolicy(**{name: split[name] for name in names if name in split})
        has_logit = "logit_scale" in found and "logit_bias" in found
        logit = (float(found["logit_scale"]), float(found["logit_bias"])) if has_logit else None
        identity = found.get("teacher_identity")
    except (ValueError, AttributeError, TypeError, OSError) as error:
        raise CheckpointError(
            f"{path} is not what a training writes ({first_line(error)}); export the model again, or "
            "move the file away and name the split with --val-share or --val-keys"
        ) from error
    return Notes(
        split=split, logit=logit, teacher_identity=None if identity is None else str(identity)
    )


def read_projection(checkpoint: Checkpoint, teacher_dim: int) -> NDArray[np.float32] | None:
    """Return the map to the teacher's space that a training left, (E, D), or None.

    It is of one teacher: Notes.is_of says whether of this one.

    It lies in the model's folder or, beside a model of ours, in the folder above.

    Raises:
        CheckpointError: it is damaged, or leads elsewhere.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    is_ours = (checkpoint.folder / MARK).is_file()
    folders = [checkpoint.folder, *([checkpoint.folder.parent] if is_ours else [])]
    path = next((p for folder in folders if (p := folder / PROJECTION).is_file()), None)
    if path is None:
        return None
    try:
        map_ED = load_file(path)["map_ED"].astype(np.float32)
    except (SafetensorError, KeyError, OSError) as error:
        raise CheckpointError(f"{path} holds no tensor map_ED: {first_line(error)}") from error
    if map_ED.shape != (teacher_dim, checkpoint.embed_dim):
        raise CheckpointError(
            f"{path} holds a map of shape {map_ED.shape}, but from the model to this teacher it is "
            f"{(teacher_dim, checkpoint.embed_dim)}; it was trained with another teacher"
        )
    return map_ED


def identity_sha256(teacher: TeacherRecord) -> str:
    """Return a hash of every fact that decides a teacher's embeddings."""
    return hashlib.sha256(json.dumps(dict(teacher.identity), sort_keys=True).encode()).hexdigest()
