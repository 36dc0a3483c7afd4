"""The shape of a smaller student: layers, patches, pixels and width, checked against the larger model."""

from dataclasses import dataclass
from typing import Any

from ...errors import SettingError
from ...siglip import Checkpoint
from ...siglip.config import TowerSettings, read_towers
from ...siglip.files import read_json
from . import weights as cuts


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What is kept of a checkpoint; None: unchanged."""

    layers: dict[str, list[int]]
    """Positions of the layers kept of ``text_model`` and ``vision_model``."""

    towers: dict[str, dict[str, int]]
    """Settings of both towers before."""

    patch_size: int | None
    image_size: int | None
    grid: int | None
    """Rows and columns of patches, where their number changes."""

    width: int | None

    def cut(self, weights: dict[str, Any]) -> dict[str, Any]:
        """Return the weights of this shape."""
        for tower, layers in self.layers.items():
            weights = cuts.keep_layers(weights, tower, layers)
        if self.patch_size is not None:
            weights = cuts.resize_patches(weights, self.patch_size)
        if self.grid is not None:
            weights = cuts.resize_positions(weights, self.grid)
        if self.width is not None:
            heads = {tower: found["num_attention_heads"] for tower, found in self.towers.items()}
            mlp = {tower: self._mlp(tower) for tower in self.towers}
            weights = cuts.narrow(weights, width=self.width, num_heads=heads, mlp=mlp)
        return weights

    def _mlp(self, tower: str) -> int:
        found = self.towers[tower]
        return round(found["intermediate_size"] * (self.width or 0) / found["hidden_size"])

    def config(
        self, checkpoint: Checkpoint, num_tokens: int, special: dict[str, int]
    ) -> dict[str, Any]:
        """Return config.json.

        Args:
            checkpoint: the larger model.
            num_tokens: rows of the token embedding.
            special: ids of the special tokens, for text_config.
        """
        config = read_json(checkpoint.folder / "config.json")
        text: dict[str, Any] = {"vocab_size": num_tokens, **special}
        vision: dict[str, Any] = {}
        for name in ("image_size", "patch_size"):
            if getattr(self, name) is not None:
                vision[name] = getattr(self, name)
        for tower, changed in (("text_model", text), ("vision_model", vision)):
            changed["num_hidden_layers"] = len(self.layers[tower])
            if self.width is not None:
                found = self.towers[tower]
                head = found["hidden_size"] // found["num_attention_heads"]
                changed |= {
                    "hidden_size": self.width,
                    "num_attention_heads": self.width // head,
                    "intermediate_size": self._mlp(tower),
                }
        if self.width is not None:
            text["projection_size"] = self.width
        return {
            **config,
            "text_config": {**config.get("text_config", {}), **text},
            "vision_config": {**config.get("vision_config", {}), **vision},
        }


def shape_of(
    checkpoint: Checkpoint,
    *,
    text_layers: str | None,
    vision_layers: str | None,
    patch_size: int | None,
    image_size: int | None,
    width: int | None,
) -> Shape:
    """Return what is kept; arguments as in NewStudentConfig.

    Raises:
        SettingError: a setting does not fit the checkpoint.
    """
    found = read_towers(checkpoint.folder)
    towers = {"text_model": found.text, "vision_model": found.vision}
    given = {"text_model": text_layers, "vision_model": vision_layers}
    layers = {
        tower: _layers(given[tower], towers[tower]["num_hidden_layers"], tower) for tower in towers
    }
    if width is not None:
        _check_width(width, towers)
    return Shape(
        layers=layers,
        towers=towers,
        patch_size=patch_size,
        image_size=image_size,
        grid=_new_grid(checkpoint, found, patch_size, image_size),
        width=width,
    )


def _new_grid(
    checkpoint: Checkpoint, found: TowerSettings, patch_size: int | None, image_size: int | None
) -> int | None:
    if patch_size is None and image_size is None:
        return None
    if found.model_type == "siglip2":
        raise SettingError(
            f"{checkpoint.given} is a NaFlex checkpoint, which takes images of any size; leave out "
            "--image-size and --patch-size, and train with --max-num-patches"
        )
    patch = patch_size or found.vision["patch_size"]
    image = image_size or found.vision["image_size"]
    if image < patch:
        raise SettingError(f"image size {image} is smaller than a patch of {patch} pixels")
    grid = image // patch
    return None if grid == found.vision["image_size"] // found.vision["patch_size"] else grid


def _layers(given: str | None, num_all: int, tower: str) -> list[int]:
    name = f"{tower.removesuffix('_model')} layers"
    if given is None:
        return list(range(num_all))
    try:
        numbers = [int(number) for number in given.split(",")]
    except ValueError:
        raise SettingError(
            f"{name} must be a number such as 6, or positions such as 0,2,5, got {given!r}"
        ) from None
    if len(numbers) == 1:
        if not 1 <= numbers[0] <= num_all:
            raise SettingError(f"{name} must be 1 to {num_all}, got {given}")
        return cuts.evenly(numbers[0], num_all)
    if numbers != sorted(set(numbers)) or not 0 <= numbers[0] <= numbers[-1] < num_all:
        raise SettingError(
            f"{name} must be ascending positions from 0 to {num_all - 1}, each once, got {given}"
        )
    return numbers


def _check_width(width: int, towers: dict[str, dict[str, int]]) -> None:
    for tower, found in towers.items():
        whole = found["hidden_size"]
        head = whole // found["num_attention_heads"]
        if whole != towers["vision_model"]["hidden_size"]:
            raise SettingError(
                "width needs towers of one width; leave out --width for this checkpoint"
            )
        if width % head or width > whole:
            raise SettingError(
                f"width must be a multiple of {head}, the width of a head of the {tower.split('_')[0]} "
                f"tower, up to {whole}, got {width}"
            )
