"""A checkpoint on the local disk: where it is, what its settings are, and its identity."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ..errors import SettingError, TeacherError
from .files import (
    file_sha256,
    files_sha256,
    first_line,
    read_header,
    read_json,
    stored_dtype_of,
    weight_files,
)
from .text import read_text_settings

# What a config.json that leaves a field out means. Only fields that change an embedding; the token
# ids are not among them (nothing here uses them, and the defaults are wrong for SigLIP 2).
# Source: SiglipTextConfig, SiglipVisionConfig and SiglipImageProcessor of transformers 5.23; a test
# compares them with the installed version.
TEXT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 64,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "projection_size": None,
}
VISION_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "vision_use_head": True,
}
IMAGE_PROCESSOR_DEFAULTS: dict[str, Any] = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "size": {"height": 224, "width": 224},
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
_IMAGE_PROCESSORS = {
    "SiglipImageProcessor",
    "SiglipImageProcessorFast",
    "SiglipImageProcessorPil",
    "SiglipFeatureExtractor",
}

RESAMPLE_NAMES = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""The filters of PIL.Image.Resampling by number."""

COMPUTE_DTYPES = ("float32", "bfloat16", "float16")
_HUB_FILES = ["*.json", "*.safetensors", "spiece.model", "tokenizer.model"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A fixed-resolution SigLIP or SigLIP 2 checkpoint on the local disk; no weight is loaded."""

    folder: Path
    """Local folder that holds config.json."""

    given: str
    """Path or hub id as the user wrote it."""

    name: str
    """Last part of what was given, safe as a folder name; the default name of the teacher."""

    revision: str | None
    """Commit on the hub; None for a local folder."""

    model_type: str
    """Always ``siglip`` so far: ``siglip2`` in a config means NaFlex."""

    embed_dim: int
    """Width of both embeddings."""

    image_size: tuple[int, int]
    """Height and width in pixels that the image tower takes."""

    max_text_tokens: int
    """Positions of the text tower, 64; every text is padded or cut to exactly this."""

    vocab_size: int
    """Rows of the token embedding."""

    resample: int
    """Filter of the resize, a number of PIL.Image.Resampling."""

    rescale_factor: float
    """Multiplies the uint8 pixels before mean and std, 1/255."""

    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]

    stored_dtype: str
    """Dtype of most of the stored weights, one of COMPUTE_DTYPES."""


def resolve_checkpoint(id_or_path: str, *, revision: str | None = None) -> Checkpoint:
    """Return the checkpoint of a local folder, or of a hub id after fetching what is missing.

    Reads settings and the header of the weights, imports no torch. Without network a hub id is
    looked up in the local hub cache.

    Raises:
        TeacherError: nothing there, damaged, or a kind of checkpoint that is not supported.
    """
    folder, commit = _find_folder(id_or_path, revision)
    text, vision = _read_config(folder)
    image = _read_image_settings(folder)

    embed_dim, text_dim = vision["hidden_size"], text["projection_size"]
    if embed_dim != text_dim:
        raise TeacherError(
            f"{folder} has image embeddings of width {embed_dim} and text embeddings of width "
            f"{text_dim}; a teacher needs one width (vision hidden_size = text projection_size)"
        )
    size = (image["size"]["height"], image["size"]["width"])
    if size != (vision["image_size"],) * 2:
        raise TeacherError(
            f"{folder} resizes images to {size[0]} x {size[1]} (image processor) but its image "
            f"tower takes {vision['image_size']} x {vision['image_size']} (config.json); take both "
            "files from one checkpoint"
        )
    return Checkpoint(
        folder=folder,
        given=id_or_path,
        name=_safe_name(id_or_path.rstrip("/").rsplit("/", 1)[-1] if commit else folder.name),
        revision=commit,
        model_type="siglip",
        embed_dim=embed_dim,
        image_size=size,
        max_text_tokens=text["max_position_embeddings"],
        vocab_size=text["vocab_size"],
        resample=image["resample"],
        rescale_factor=image["rescale_factor"],
        image_mean=tuple(image["image_mean"]),
        image_std=tuple(image["image_std"]),
        stored_dtype=stored_dtype_of(folder),
    )


def checkpoint_identity(checkpoint: Checkpoint, *, compute_dtype: str) -> dict[str, Any]:
    """Return every fact that decides an embedding, as JSON values; equal dicts, equal embeddings.

    Hashes the files of the weights and of the tokenizer (remembered by path, size and mtime).
    Not among the facts: versions, paths and devices, which are provenance.
    """
    if compute_dtype not in COMPUTE_DTYPES:
        raise SettingError(f"dtype {compute_dtype!r} is not one of {', '.join(COMPUTE_DTYPES)}")
    text, vision = _read_config(checkpoint.folder)
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
        "image_size": list(checkpoint.image_size),
        "image_resize": "squash",
        "image_resample": RESAMPLE_NAMES[checkpoint.resample],
        "image_resampler": "pillow",
        "image_rescale_factor": checkpoint.rescale_factor,
        "image_mean": list(checkpoint.image_mean),
        "image_std": list(checkpoint.image_std),
        "compute_dtype": compute_dtype,
        **{f"text_config.{name}": value for name, value in text.items()},
        **{f"vision_config.{name}": value for name, value in vision.items()},
    }


def logit_scale_and_bias(checkpoint: Checkpoint) -> tuple[float, float]:
    """Return the stored parameters as they are: the scale is a *logarithm*, about 4.75; bias -16.8.

    A logit is ``exp(logit_scale) * cosine + logit_bias``. Reads a few bytes, loads no model.
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
            if header[name]["dtype"] == "BF16":  # the upper half of a float32
                number = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
            else:
                number = np.frombuffer(raw, {"F16": "<f2"}.get(header[name]["dtype"], "<f4"))
            values[name] = float(number[0])
    missing = sorted({"logit_scale", "logit_bias"} - values.keys())
    if missing:
        raise TeacherError(
            f"{checkpoint.folder} holds no {' and no '.join(missing)} among its weights"
        )
    return values["logit_scale"], values["logit_bias"]


def _find_folder(id_or_path: str, revision: str | None) -> tuple[Path, str | None]:
    """Return the local folder, and the commit where it comes from the hub."""
    folder = Path(os.path.expanduser(id_or_path))
    if folder.is_dir():
        if revision is not None:
            raise TeacherError(f"{folder} is a local folder, which has no revision {revision!r}")
        return folder.resolve(), None
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", id_or_path):
        raise TeacherError(
            f"{id_or_path} is neither a folder nor a hub id such as "
            "google/siglip2-so400m-patch14-224"
        )
    import huggingface_hub

    hub: Any = huggingface_hub  # its types are partly unknown
    request: Any = {"revision": revision, "allow_patterns": _HUB_FILES}
    try:
        found: str = hub.snapshot_download(id_or_path, **request)
    except Exception as error:  # network, proxy, missing repository: the hub has many
        try:
            found = hub.snapshot_download(id_or_path, local_files_only=True, **request)
        except Exception:
            raise TeacherError(
                f"{id_or_path} is not a folder here, nor could it be fetched from the hub or found "
                f"in the local hub cache: {first_line(error)}"
            ) from error
    return Path(found), Path(found).name  # .../snapshots/<commit>


def _safe_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-") or "teacher"


def _read_config(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (text, vision) settings, complete; refuse what is not a fixed-resolution SigLIP."""
    path = folder / "config.json"
    config = read_json(path)
    model_type = config.get("model_type")
    if model_type == "siglip2":
        raise TeacherError(
            f"{folder} is a NaFlex checkpoint (model_type siglip2); those are not supported yet, "
            "take one of fixed resolution such as google/siglip2-so400m-patch14-224"
        )
    if model_type != "siglip":
        raise TeacherError(f"{folder} has model_type {model_type!r}; a teacher needs 'siglip'")
    text = _with_defaults(config.get("text_config"), TEXT_DEFAULTS)
    vision = _with_defaults(config.get("vision_config"), VISION_DEFAULTS)
    if text["projection_size"] is None:
        text["projection_size"] = text["hidden_size"]
    for section, settings, defaults in (
        ("text_config", text, TEXT_DEFAULTS | {"projection_size": 0}),
        ("vision_config", vision, VISION_DEFAULTS),
    ):
        for name, value in settings.items():
            if type(value) is not type(defaults[name]):
                raise TeacherError(f"{path} has {section}.{name} {value!r}, which is not supported")
    if not vision["vision_use_head"]:
        raise TeacherError(f"{path} has vision_config.vision_use_head false: no pooled embedding")
    return text, vision


def _read_image_settings(folder: Path) -> dict[str, Any]:
    """Return the image processor's settings, complete; refuse what we would not reproduce."""
    path = folder / "processor_config.json"  # transformers 5 nests them here and prefers that
    found = read_json(path).get("image_processor") if path.is_file() else None
    if found is None:
        path = folder / "preprocessor_config.json"
        found = read_json(path)
    image = _with_defaults(found, IMAGE_PROCESSOR_DEFAULTS)
    kind = found.get("image_processor_type") or found.get("feature_extractor_type")
    numbers = [image["rescale_factor"]]
    for name in ("image_mean", "image_std"):
        numbers += (
            image[name] if isinstance(image[name], list) and len(image[name]) == 3 else [None]
        )
    reasons = [
        (kind is not None and kind not in _IMAGE_PROCESSORS, f"image_processor_type {kind!r}"),
        (not image["do_resize"], "do_resize false"),
        (not image["do_rescale"], "do_rescale false"),
        (not image["do_normalize"], "do_normalize false"),
        (bool(found.get("do_center_crop")), "do_center_crop true"),
        (bool(found.get("do_pad")), "do_pad true"),
        (image["resample"] not in RESAMPLE_NAMES, f"resample {image['resample']!r}"),
        (
            not isinstance(image["size"], dict)
            or sorted(cast("dict[str, Any]", image["size"])) != ["height", "width"],
            f"size {image['size']!r}",
        ),
        (
            not all(isinstance(number, int | float) for number in numbers),
            f"rescale_factor, image_mean, image_std {numbers}",
        ),
    ]
    for is_so, what in reasons:
        if is_so:
            raise TeacherError(
                f"{path} has {what}, which is not supported; SigLIP's image processor squashes to "
                "size {height, width}, rescales and normalises"
            )
    return image


def _with_defaults(found: Any, defaults: dict[str, Any]) -> dict[str, Any]:
    given = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    return {
        name: default if given.get(name) is None else given[name]
        for name, default in defaults.items()
    }
