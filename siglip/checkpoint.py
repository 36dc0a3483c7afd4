"""Checkpoints on the local disk: their folder, settings and identity."""

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, SettingError
from ..formatting import first_line
from .config import BOTH, ModelType, Tower, read_towers
from .files import (
    file_sha256,
    files_sha256,
    read_header,
    refuse_other_names,
    stored_dtype_of,
    weight_files,
)
from .image import ImageRecipe, NaflexRecipe, check_max_num_patches, read_image_settings
from .text_settings import read_text_settings

COMPUTE_DTYPES = ("float32", "bfloat16", "float16")
_NUMPY_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_HUB_FILES = ["*.json", "*.safetensors", "spiece.model", "tokenizer.model", "README.md"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A SigLIP or SigLIP 2 checkpoint on the local disk, without its weights."""

    folder: Path
    """Local folder that holds config.json."""

    given: str
    """Path or hub id as the user wrote it."""

    name: str
    """Last part of ``given``, safe as a folder name; the default name of the teacher."""

    revision: str | None
    """Commit on the hub; None for a local folder."""

    model_type: ModelType
    """``siglip``: fixed resolution; ``siglip2``: NaFlex."""

    embed_dim: int
    """Width of both embeddings."""

    image_recipe: ImageRecipe | None
    """How images are prepared before they are normalised; None for a text tower alone."""

    max_text_tokens: int
    """Positions of the text tower, 64; every text is padded or truncated to this length."""

    vocab_size: int
    """Rows of the token embedding."""

    rescale_factor: float
    """Factor for uint8 pixels before mean and std are applied, 1/255."""

    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]

    stored_dtype: str
    """Dtype of most of the stored weights, one of COMPUTE_DTYPES."""

    has_text: bool = True
    """False for an image tower alone, without tokenizer, text tower and logits."""

    @property
    def has_image(self) -> bool:
        """Whether there is an image tower; a text tower alone has no image settings and no logits."""
        return self.image_recipe is not None

    @property
    def image(self) -> ImageRecipe:
        """How images are prepared before they are normalised.

        Raises:
            CheckpointError: it is a text tower alone.
        """
        if self.image_recipe is None:
            raise CheckpointError(f"{self.given} is a text tower alone, which takes no images")
        return self.image_recipe


def resolve_checkpoint(
    id_or_path: str,
    *,
    revision: str | None = None,
    has_weights: bool = True,
    needed: Collection[Tower] = BOTH,
) -> Checkpoint:
    """Return the checkpoint in a local folder or of a hub id, downloading what is missing.

    Reads the settings and the headers of the weights without importing torch. Without network a hub id
    is looked up in the local hub cache.

    Args:
        id_or_path: a folder or a hub id.
        revision: revision of a hub id; None: its main branch.
        has_weights: False if only settings are needed, for a model with random weights; ``stored_dtype``
            is then float32.
        needed: towers that it must have; one tower alone is what a training of it leaves.

    Raises:
        CheckpointError: the checkpoint does not exist, is damaged or is not supported.
    """
    folder, commit = find_folder(id_or_path, revision)
    towers = read_towers(folder, needed=needed)
    text, vision = towers.text, towers.vision
    image = read_image_settings(folder, towers) if towers.has_image else None
    if has_weights:
        refuse_other_names(folder)
    embed_dim, text_dim = vision["hidden_size"], text["projection_size"]
    if not towers.has_image:
        embed_dim = text_dim
    if towers.has_text and embed_dim != text_dim:
        raise CheckpointError(
            f"{folder} has image embeddings of width {embed_dim} and text embeddings of width "
            f"{text_dim}; both must have one width (vision hidden_size = text projection_size)"
        )
    return Checkpoint(
        folder=folder,
        given=id_or_path,
        name=_safe_name(id_or_path.rstrip("/").rsplit("/", 1)[-1] if commit else folder.name),
        revision=commit,
        model_type=towers.model_type,
        embed_dim=embed_dim,
        image_recipe=None if image is None else image.recipe,
        max_text_tokens=text["max_position_embeddings"] if towers.has_text else 0,
        vocab_size=text["vocab_size"] if towers.has_text else 0,
        rescale_factor=1.0 if image is None else image.rescale_factor,
        image_mean=(0.0, 0.0, 0.0) if image is None else image.mean,
        image_std=(1.0, 1.0, 1.0) if image is None else image.std,
        stored_dtype=stored_dtype_of(folder) if has_weights else "float32",
        has_text=towers.has_text,
    )


def with_max_num_patches(checkpoint: Checkpoint, max_num_patches: int) -> Checkpoint:
    """Return a NaFlex checkpoint with another limit for the patches of a view.

    Raises:
        SettingError: the limit is invalid, or the checkpoint has a fixed resolution.
    """
    check_max_num_patches(max_num_patches)
    if not isinstance(checkpoint.image, NaflexRecipe):
        raise SettingError(
            f"max num patches {max_num_patches} goes with a NaFlex checkpoint; {checkpoint.given} "
            f"is of fixed resolution (model_type {checkpoint.model_type}): leave out --max-num-patches"
        )
    recipe = replace(checkpoint.image, max_num_patches=max_num_patches)
    return replace(checkpoint, image_recipe=recipe)


def checkpoint_identity(checkpoint: Checkpoint, *, compute_dtype: str) -> dict[str, Any]:
    """Return every fact that determines an embedding, as JSON values; equal dicts, equal embeddings.

    The files of the weights and the tokenizer are hashed, and the hashes remembered by path, size and
    mtime. Versions, paths and devices are provenance, not identity.
    """
    if compute_dtype not in COMPUTE_DTYPES:
        raise SettingError(f"dtype {compute_dtype!r} is not one of {', '.join(COMPUTE_DTYPES)}")
    towers = read_towers(checkpoint.folder)
    text_settings = read_text_settings(checkpoint.folder)
    L = checkpoint.max_text_tokens
    return {
        "weights_sha256": files_sha256(weight_files(checkpoint.folder)),
        "tokenizer_sha256": file_sha256(checkpoint.folder / text_settings.file),
        "text_cleaning": text_settings.cleaning,
        "text_tokens": L,
        "text_truncation": f"to {L}, eos kept",
        "text_padding": f"right to {L} with {text_settings.pad_token}",
        "text_attention_mask": False,
        "text_pooling": "last position",
        **checkpoint.image.identity(),
        "image_resampler": "pillow",
        "image_rescale_factor": checkpoint.rescale_factor,
        "image_mean": list(checkpoint.image_mean),
        "image_std": list(checkpoint.image_std),
        "compute_dtype": compute_dtype,
        **{f"text_config.{name}": value for name, value in towers.text.items()},
        **{f"vision_config.{name}": value for name, value in towers.vision.items()},
    }


def logit_scale_and_bias(checkpoint: Checkpoint) -> tuple[float, float]:
    """Return the stored logit scale, a *logarithm* of about 4.75, and logit bias, about -16.8.

    A logit is ``exp(logit_scale) * cosine + logit_bias``. No model is loaded.

    Raises:
        CheckpointError: a weight file is damaged, or one of the two is missing or of another dtype.
    """
    import numpy as np

    values: dict[str, float] = {}
    for path in weight_files(checkpoint.folder):
        header, data_start = read_header(path)
        for name in {"logit_scale", "logit_bias"} & header.keys():
            start, end = header[name]["data_offsets"]
            with path.open("rb") as file:
                file.seek(data_start + start)
                raw = file.read(end - start)
            dtype = header[name]["dtype"]
            if dtype not in _NUMPY_DTYPES:
                raise CheckpointError(
                    f"{path} stores {name} as {dtype}, expected one of {', '.join(_NUMPY_DTYPES)}; "
                    "convert it to float32, and save the weights again"
                )
            number = np.frombuffer(raw, _NUMPY_DTYPES[dtype])
            if dtype == "BF16":  # the upper half of a float32
                number = (number.astype("<u4") << 16).view("<f4")
            values[name] = float(number[0])
    missing = sorted({"logit_scale", "logit_bias"} - values.keys())
    if missing:
        raise CheckpointError(
            f"{checkpoint.folder} has no {' and no '.join(missing)} among its weights"
        )
    return values["logit_scale"], values["logit_bias"]


def find_folder(
    id_or_path: str, revision: str | None, *, patterns: Sequence[str] = _HUB_FILES
) -> tuple[Path, str | None]:
    """Return the local folder of a checkpoint, and its commit if it comes from the hub.

    Args:
        id_or_path: a folder or a hub id.
        revision: revision of a hub id; None: its main branch.
        patterns: files to download if they are not in the local hub cache.

    Raises:
        CheckpointError: the checkpoint does not exist.
    """
    folder = Path(os.path.expanduser(id_or_path))
    if folder.is_dir():
        if revision is not None:
            raise CheckpointError(f"{folder} is a local folder, which has no revision {revision!r}")
        return folder.resolve(), None
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", id_or_path):
        raise CheckpointError(
            f"{id_or_path} is neither a folder nor a hub id such as "
            "google/siglip2-so400m-patch14-224"
        )
    import huggingface_hub

    hub: Any = huggingface_hub  # its types are partly unknown
    request: Any = {"revision": revision, "allow_patterns": list(patterns)}
    try:
        found: str = hub.snapshot_download(id_or_path, **request)
    except Exception as error:  # network, proxy, missing repository: the hub has many
        try:
            found = hub.snapshot_download(id_or_path, local_files_only=True, **request)
        except Exception:
            raise CheckpointError(
                f"{id_or_path} is not a local folder, and cannot be downloaded from the hub or found "
                f"in the local hub cache: {first_line(error)}"
            ) from error
    return Path(found), Path(found).name  # .../snapshots/<commit>


def _safe_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-") or "teacher"
