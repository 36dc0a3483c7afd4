"""Metadata that a training writes beside a model, for its evaluation: siglip2_cache.json and the map P."""

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
"""File in the folder of the run: one tensor, map_ED; ``x_ND @ map_ED.T`` is in the teacher's space."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMetadata:
    """Contents of siglip2_cache.json; None for what it does not have."""

    split: SplitPolicy | None = None
    """How images were held out."""

    logit: tuple[float, float] | None = None
    """logit_scale, a logarithm, and logit_bias; for one tower alone."""

    teacher_identity: str | None = None
    """identity_sha256 of the teacher of the training."""

    space: str | None = None
    """Space of the embeddings: ``teacher``; ``pca``, the teacher's through projection.safetensors; ``own``,
    the student's, which may have such a map too. None: unknown."""

    base_model: str | None = None
    """Hub id of the checkpoint that the model was cut or trained from."""

    license: str | None = None
    """License of that checkpoint, as the hub writes it."""

    def is_of(self, teacher: TeacherRecord) -> bool | None:
        """Return whether the model was trained with this teacher; None: unknown."""
        if self.teacher_identity is None:
            return None
        return self.teacher_identity == identity_sha256(teacher)


def read_metadata(checkpoint: Checkpoint) -> ModelMetadata:
    """Return the metadata of a model; empty if it was not trained by this program.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = checkpoint.folder / MARK
    if not path.is_file():
        return ModelMetadata()
    try:
        found: Any = json.loads(path.read_text("utf-8"))
        split = found.get("split")
        if split is not None:
            names = ("val_share", "val_keys")
            split = SplitPolicy(**{name: split[name] for name in names if name in split})
        has_logit = "logit_scale" in found and "logit_bias" in found
        logit = (float(found["logit_scale"]), float(found["logit_bias"])) if has_logit else None
        identity, base_model = found.get("teacher_identity"), found.get("base_model")
        license = found.get("license")
        space = (found["space"] or "own") if "space" in found else None
    except (ValueError, AttributeError, TypeError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged ({first_line(error)}); export the model again, or remove the file and "
            "give --val-share or --val-keys"
        ) from error
    return ModelMetadata(
        split=split,
        logit=logit,
        teacher_identity=None if identity is None else str(identity),
        space=space if isinstance(space, str) else None,
        base_model=base_model if isinstance(base_model, str) else None,
        license=license if isinstance(license, str) else None,
    )


def read_projection(
    checkpoint: Checkpoint, teacher_dim: int | None = None
) -> NDArray[np.float32] | None:
    """Return the map to the teacher's space that a training wrote, (E, D), or None.

    The file is in the model's folder or, for a model trained by this program, in the folder above. The map
    belongs to one teacher: check ModelMetadata.is_of. ``teacher_dim`` is its width; None: any.

    Raises:
        CheckpointError: the file is damaged, or the map has other widths.
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
    wanted = (teacher_dim or len(map_ED), checkpoint.embed_dim)
    if map_ED.shape != wanted:
        raise CheckpointError(
            f"{path} holds a map of shape {map_ED.shape}, expected {wanted} "
            "from this model to this teacher; it was trained with another teacher"
        )
    return map_ED


def projection_bytes(map_ED: NDArray[np.float32]) -> bytes:
    """Return the content of projection.safetensors."""
    from safetensors.numpy import save

    return save({"map_ED": np.ascontiguousarray(map_ED)})


def identity_sha256(teacher: TeacherRecord) -> str:
    """Return a hash of all facts that determine a teacher's embeddings."""
    return hashlib.sha256(json.dumps(dict(teacher.identity), sort_keys=True).encode()).hexdigest()
