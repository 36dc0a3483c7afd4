"""config.json: the complete settings of both towers, and which values are not supported."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from ..errors import CheckpointError
from .files import read_json

ModelType = Literal["siglip", "siglip2"]

# Defaults of fields that a config.json may omit. Only fields that change an embedding: token ids are not
# used here, and their defaults are wrong for SigLIP 2.
# Source: Siglip{,2}TextConfig and Siglip{,2}VisionConfig of transformers 5.23; a test compares them
# with the installed version.
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
_VISION_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "vision_use_head": True,
}
VISION_DEFAULTS: dict[ModelType, dict[str, Any]] = {
    "siglip": {**_VISION_DEFAULTS, "image_size": 224},
    "siglip2": {**_VISION_DEFAULTS, "num_patches": 256},
}


_IMAGE_TOWERS: dict[Any, ModelType] = {
    "siglip_vision_model": "siglip",
    "siglip2_vision_model": "siglip2",
}
"""The model_type of an image tower alone, and that of the model with both towers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerSettings:
    """The settings in config.json that determine an embedding."""

    model_type: ModelType
    """``siglip``: fixed resolution; ``siglip2``: NaFlex. SigLIP 2 is released in both forms."""

    text: dict[str, Any]
    """All fields of TEXT_DEFAULTS, projection_size filled in."""

    vision: dict[str, Any]
    """All fields of VISION_DEFAULTS for this model_type."""

    has_text: bool = True
    """False for an image tower alone, whose text settings are meaningless."""


def read_towers(folder: Path, *, allow_image_tower: bool = False) -> TowerSettings:
    """Return the settings of both towers, or of an image tower alone if that is allowed.

    Raises:
        CheckpointError: there is no config.json, or the model is not supported.
    """
    path = folder / "config.json"
    config = read_json(path)
    model_type = config.get("model_type")
    has_text = not (allow_image_tower and model_type in _IMAGE_TOWERS)
    if not has_text:
        model_type, config = _IMAGE_TOWERS[model_type], {"vision_config": config}
    if model_type in _IMAGE_TOWERS:
        raise CheckpointError(
            f"{folder} is an image tower alone (model_type {model_type!r}), without tokenizer and text "
            "tower, which are needed here; name the whole checkpoint that it is part of (train "
            "--towers image takes an image tower alone)"
        )
    if model_type not in ("siglip", "siglip2"):
        raise CheckpointError(
            f"{folder} has model_type {model_type!r}; supported are 'siglip' and, for NaFlex, 'siglip2'"
        )
    text_defaults, vision_defaults = TEXT_DEFAULTS, VISION_DEFAULTS[model_type]
    text = with_defaults(config.get("text_config"), text_defaults)
    vision = with_defaults(config.get("vision_config"), vision_defaults)
    if text["projection_size"] is None:
        text["projection_size"] = text["hidden_size"]
    for section, settings, defaults in (
        ("text_config", text, text_defaults | {"projection_size": 0}),
        ("vision_config", vision, vision_defaults),
    ):
        for name, value in settings.items():
            if type(value) is not type(defaults[name]):
                raise CheckpointError(
                    f"{path} has {section}.{name} {value!r}, which is not supported"
                )
    if vision["num_channels"] != 3:
        raise CheckpointError(
            f"{path} has vision_config.num_channels {vision['num_channels']}; images are RGB"
        )
    if not vision["vision_use_head"]:
        raise CheckpointError(
            f"{path} has vision_config.vision_use_head false: no pooled embedding"
        )
    num_patches = vision.get("num_patches", 1)
    if num_patches < 1 or math.isqrt(num_patches) ** 2 != num_patches:
        raise CheckpointError(
            f"{path} has vision_config.num_patches {num_patches}, which is not a square number: position "
            "embeddings form a square grid"
        )
    return TowerSettings(model_type=model_type, text=text, vision=vision, has_text=has_text)


def with_defaults(found: Any, defaults: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of ``defaults``, replaced by the values in ``found`` that are not null."""
    given = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    return {
        name: default if given.get(name) is None else given[name]
        for name, default in defaults.items()
    }
