"""Image recipes: what the image processor of a checkpoint does with an image.

A recipe describes the pixels that a model takes; images/ produces them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ..errors import CheckpointError, SettingError
from .config import ModelType, TowerSettings, with_defaults
from .files import read_json

# Defaults of fields that a preprocessor_config.json may omit.
# Source: SiglipImageProcessorPil and Siglip2ImageProcessorPil of transformers 5.23; a test compares
# them with the installed version.
_PROCESSOR_DEFAULTS: dict[str, Any] = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
_CONVERTS_RGB: dict[ModelType, bool] = {"siglip": True, "siglip2": False}
"""Default of do_convert_rgb if the field is omitted; null means false."""

PROCESSOR_DEFAULTS: dict[ModelType, dict[str, Any]] = {
    "siglip": {
        **_PROCESSOR_DEFAULTS,
        "resample": 3,
        "size": {"height": 224, "width": 224},
    },
    "siglip2": {**_PROCESSOR_DEFAULTS, "resample": 2, "patch_size": 16, "max_num_patches": 256},
}
_PROCESSORS: dict[ModelType, set[str]] = {
    "siglip": {
        "SiglipImageProcessor",
        "SiglipImageProcessorFast",
        "SiglipImageProcessorPil",
        "SiglipFeatureExtractor",
    },
    "siglip2": {
        "Siglip2ImageProcessor",
        "Siglip2ImageProcessorFast",
        "Siglip2ImageProcessorPil",
    },
}
_PROCESSOR_STEPS: dict[ModelType, str] = {
    "siglip": "the SigLIP processor squashes to size {height, width}, rescales and normalises",
    "siglip2": "the NaFlex processor resizes to a grid of patches, rescales and normalises",
}

RESAMPLE_NAMES = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""Names of the filters of PIL.Image.Resampling by number."""

LARGEST_MAX_NUM_PATCHES = 65_536
"""Limit against typos: 50 MB of pixels a view. Published checkpoints were trained with up to 1024."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SquashRecipe:
    """Views are squashed to one size: checkpoints of fixed resolution."""

    on_white: bool = False
    """Whether a transparent colour (GIF, tRNS of PNG) becomes white: do_convert_rgb."""

    size: tuple[int, int]
    """Height and width in pixels."""

    resample: int
    """Filter for resizing, a number of PIL.Image.Resampling."""

    @property
    def view_shape(self) -> tuple[int, ...]:
        """The shape of a view, (H, W, 3) uint8 RGB."""
        return (*self.size, 3)

    def identity(self) -> dict[str, Any]:
        """Return its part of the identity of a teacher, as JSON values."""
        return {
            "image_size": list(self.size),
            "image_resize": "squash",
            "image_resample": RESAMPLE_NAMES[self.resample],
            **_transparency(self.on_white),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class NaflexRecipe:
    """Views nearly keep their aspect ratio: each becomes a grid of as many patches as allowed."""

    on_white: bool = False
    """Whether a transparent colour (GIF, tRNS of PNG) becomes white: do_convert_rgb."""

    patch_size: int
    """Height and width of a patch in pixels."""

    max_num_patches: int
    """Most patches of a view."""

    resample: int
    """Filter for resizing, a number of PIL.Image.Resampling."""

    @property
    def view_shape(self) -> tuple[int, ...]:
        """The shape of a view, (max_num_patches, patch_size * patch_size * 3) uint8.

        A patch is its RGB pixels in row order; after the last patch there are zeros.
        """
        return (self.max_num_patches, self.patch_size * self.patch_size * 3)

    def identity(self) -> dict[str, Any]:
        """Return its part of the identity of a teacher, as JSON values."""
        return {
            "image_patch_size": self.patch_size,
            "image_max_num_patches": self.max_num_patches,
            "image_resize": "patch grid",
            "image_resample": RESAMPLE_NAMES[self.resample],
            **_transparency(self.on_white),
        }


ImageRecipe = SquashRecipe | NaflexRecipe

TRANSPARENCY = "image_transparency"
"""Name of the field in an identity; without it, in records of earlier releases, it is ``ignored``."""


def shows_on_white(identity: Mapping[str, Any]) -> bool:
    """Return whether a transparent colour became white for a recorded teacher."""
    return identity.get(TRANSPARENCY) == _transparency(True)[TRANSPARENCY]


def _transparency(on_white: bool) -> dict[str, str]:
    return {TRANSPARENCY: "on white" if on_white else "ignored"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSettings:
    """The settings of an image processor."""

    recipe: ImageRecipe
    rescale_factor: float
    """Factor for uint8 pixels before mean and std are applied, 1/255."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def read_image_settings(folder: Path, towers: TowerSettings) -> ImageSettings:
    """Return the settings of the image processor of a checkpoint.

    Raises:
        CheckpointError: they are not supported, or do not match the image tower.
    """
    path, image = _read_processor(folder, towers.model_type)
    recipe = (
        _squash_recipe(folder, image, towers.vision)
        if towers.model_type == "siglip"
        else _naflex_recipe(path, image, towers.vision)
    )
    return ImageSettings(
        recipe=recipe,
        rescale_factor=image["rescale_factor"],
        mean=tuple(image["image_mean"]),
        std=tuple(image["image_std"]),
    )


def check_max_num_patches(value: int) -> None:
    """Check a limit for the patches of a view.

    Raises:
        SettingError: it is not 1 to LARGEST_MAX_NUM_PATCHES.
    """
    if not 1 <= value <= LARGEST_MAX_NUM_PATCHES:
        raise SettingError(f"max num patches must be 1 to {LARGEST_MAX_NUM_PATCHES:,}, got {value}")


def _squash_recipe(folder: Path, image: dict[str, Any], vision: dict[str, Any]) -> SquashRecipe:
    size = (image["size"]["height"], image["size"]["width"])
    if size != (vision["image_size"],) * 2:
        raise CheckpointError(
            f"{folder} resizes images to {size[0]} x {size[1]} (image processor) but its image "
            f"tower takes {vision['image_size']} x {vision['image_size']} (config.json); take both "
            "files from one checkpoint"
        )
    return SquashRecipe(
        size=size, resample=image["resample"], on_white=bool(image["do_convert_rgb"])
    )


def _naflex_recipe(path: Path, image: dict[str, Any], vision: dict[str, Any]) -> NaflexRecipe:
    if image["patch_size"] != vision["patch_size"]:
        raise CheckpointError(
            f"{path} cuts images into patches of {image['patch_size']} pixels but the image tower "
            f"takes patches of {vision['patch_size']} (config.json); take both files from one "
            "checkpoint"
        )
    limit = image["max_num_patches"]
    if not isinstance(limit, int) or not 1 <= limit <= LARGEST_MAX_NUM_PATCHES:
        raise CheckpointError(f"{path} has max_num_patches {limit!r}, which is not supported")
    return NaflexRecipe(
        patch_size=image["patch_size"],
        max_num_patches=limit,
        resample=image["resample"],
        on_white=bool(image["do_convert_rgb"]),
    )


def _read_processor(folder: Path, model_type: ModelType) -> tuple[Path, dict[str, Any]]:
    """Return the file of the image processor and its complete settings, which must be supported."""
    path = folder / "processor_config.json"  # transformers 5 prefers the settings in this file
    found = read_json(path).get("image_processor") if path.is_file() else None
    if found is None:
        path = folder / "preprocessor_config.json"
        found = read_json(path)
    image = with_defaults(found, PROCESSOR_DEFAULTS[model_type])
    image["do_convert_rgb"] = found.get("do_convert_rgb", _CONVERTS_RGB[model_type])
    kind = found.get("image_processor_type") or found.get("feature_extractor_type")
    numbers = [image["rescale_factor"]]
    for name in ("image_mean", "image_std"):
        numbers += (
            image[name] if isinstance(image[name], list) and len(image[name]) == 3 else [None]
        )
    size = image.get("size", {"height": 0, "width": 0})
    reasons = [
        (
            kind is not None and kind not in _PROCESSORS[model_type],
            f"image_processor_type {kind!r}",
        ),
        (not image["do_resize"], "do_resize false"),
        (not image["do_rescale"], "do_rescale false"),
        (not image["do_normalize"], "do_normalize false"),
        (bool(found.get("do_center_crop")), "do_center_crop true"),
        (bool(found.get("do_pad")), "do_pad true"),
        (image["resample"] not in RESAMPLE_NAMES, f"resample {image['resample']!r}"),
        (
            not isinstance(size, dict)
            or sorted(cast("dict[str, Any]", size)) != ["height", "width"],
            f"size {size!r}",
        ),
        (
            not all(isinstance(number, int | float) for number in numbers),
            f"rescale_factor, image_mean, image_std {numbers}",
        ),
    ]
    for is_so, what in reasons:
        if is_so:
            raise CheckpointError(
                f"{path} has {what}, which is not supported; {_PROCESSOR_STEPS[model_type]}"
            )
    return path, image


def view_pixels(recipe: ImageRecipe) -> int:
    """Return the pixels of a side of a view; for NaFlex those of a square of all its patches."""
    if isinstance(recipe, SquashRecipe):
        return max(recipe.size)
    return math.ceil(math.sqrt(recipe.max_num_patches) * recipe.patch_size)
