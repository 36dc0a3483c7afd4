"""config.json: the complete settings of both towers, and which values are not supported."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from ..errors import CheckpointError
from .files import read_json

ModelType = Literal["siglip", "siglip2"]
Tower = Literal["image", "text"]

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


_ALONE: dict[Any, tuple[ModelType, Tower]] = {
    "siglip_vision_model": ("siglip", "image"),
    "siglip2_vision_model": ("siglip2", "image"),
    "siglip_text_model": ("siglip", "text"),
    "siglip2_text_model": ("siglip2", "text"),
}
"""The model_type of a tower alone: that of the model with both towers, and which tower it is."""

_SECTIONS: dict[Tower, str] = {"image": "vision_config", "text": "text_config"}
BOTH: tuple[Tower, ...] = ("image", "text")


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerSettings:
    """The settings in config.json that determine an embedding."""

    model_type: ModelType
    """``siglip``: fixed resolution; ``siglip2``: NaFlex. SigLIP 2 is released in both forms."""

    text: dict[str, Any]
    """All fields of TEXT_DEFAULTS, projection_size filled in."""

    vision: dict[str, Any]
    """All fields of VISION_DEFAULTS for this model_type."""

    has_image: bool = True
    """False for a text tower alone, whose vision settings are meaningless."""

    has_text: bool = True
    """False for an image tower alone, whose text settings are meaningless."""


def read_towers(folder: Path, *, needed: Collection[Tower] = BOTH) -> TowerSettings:
    """Return the settings of the towers of a checkpoint.

    Args:
        folder: has config.json.
        needed: towers that it must have; a checkpoint of the other one alone is refused.

    Raises:
        CheckpointError: there is no config.json, or the model is not supported.
    """
    path = folder / "config.json"
    config = read_json(path)
    model_type = config.get("model_type")
    has = dict.fromkeys(BOTH, True)
    if model_type in _ALONE:
        whole_type, tower = _ALONE[model_type]
        has = {each: each == tower for each in BOTH}
        if not all(has[each] for each in needed):
            raise CheckpointError(_alone_words(folder, model_type, tower))
        model_type, config = whole_type, {_SECTIONS[tower]: config}
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
    return TowerSettings(
        model_type=model_type,
        text=text,
        vision=vision,
        has_image=has["image"],
        has_text=has["text"],
    )


def _alone_words(folder: Path, model_type: Any, tower: Tower) -> str:
    lacks = {
        "image": "tokenizer and text tower, which are",
        "text": "an image tower, which is",
    }[tower]
    return (
        f"{folder} is {'an' if tower == 'image' else 'a'} {tower} tower alone (model_type {model_type!r}), "
        f"without {lacks} needed here; name the whole checkpoint that it is part of (train --towers "
        f"{tower} takes {'an' if tower == 'image' else 'a'} {tower} tower alone)"
    )


def with_defaults(found: Any, defaults: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of ``defaults``, replaced by the values in ``found`` that are not null."""
    given = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    return {
        name: default if given.get(name) is None else given[name]
        for name, default in defaults.items()
    }
