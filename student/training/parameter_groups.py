"""Which parameters are trained, and at which share of the learning rate.

The depth of a parameter in a tower of L layers: 0 for the embeddings, i + 1 for layer i, L + 1 for what
follows the layers. Scale, bias and maps are in no tower.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ...errors import SettingError
from ...siglip import text_tower, vision_tower
from ..config import TrainConfig
from .distiller import Distiller

TowerName = Literal["image", "text"]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a parameter is."""

    tower: TowerName
    depth: int
    num_layers: int


def freeze(distiller: Distiller, config: TrainConfig) -> None:
    """Stop the gradient of the layers that config.freeze_image and config.freeze_text name.

    Raises:
        SettingError: a tower has fewer layers.
    """
    frozen = {"image": config.freeze_image, "text": config.freeze_text}
    for tower, module in _towers(distiller):
        layers, num_layers = frozen[tower], len(module.encoder.layers)
        if layers is not None and layers > num_layers:
            raise SettingError(
                f"freeze_{tower} must be 0 to {num_layers}, the layers of the {tower} tower, got {layers}"
            )
    for parameter, place in _places(distiller):
        layers = frozen[place.tower]
        if layers is not None and (place.depth <= layers or layers == place.num_layers):
            parameter.requires_grad_(False)


def make_groups(distiller: Distiller, config: TrainConfig) -> list[dict[str, Any]]:
    """Return the parameter groups of the optimizer: params, weight_decay and peak_lr.

    Matrices of the towers decay; scale, bias, maps, vectors and frozen parameters do not.
    """
    assert config.lr is not None and config.weight_decay is not None
    of_tower = {"image": config.image_lr or config.lr, "text": config.text_lr or config.lr}
    places = {id(parameter): place for parameter, place in _places(distiller)}
    of_patches = [] if distiller.patch_head is None else list(distiller.patch_head.parameters())
    maps = {id(p) for p in (*distiller.maps(), *of_patches)}
    head = {id(p) for p in (*distiller.head(), *of_patches)}
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for parameter in distiller.parameters():
        if not parameter.requires_grad:
            continue
        own, place = id(parameter), places.get(id(parameter))
        rate = config.projection_lr if own in maps else config.lr
        if place is not None:
            rate = of_tower[place.tower]
            rate *= (config.layer_decay or 1.0) ** (place.num_layers + 1 - place.depth)
        decays = parameter.ndim > 1 and own not in head
        groups.setdefault((rate, config.weight_decay if decays else 0.0), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "peak_lr": rate}
        for (rate, decay), parameters in groups.items()
    ]


def _towers(distiller: Distiller) -> Iterator[tuple[TowerName, Any]]:
    if distiller.has_image:
        yield "image", vision_tower(distiller.model)
    if distiller.has_text:
        yield "text", text_tower(distiller.model)


def _places(distiller: Distiller) -> Iterator[tuple[Tensor, _Place]]:
    """Yield every parameter of the towers with its place."""
    for tower, module in _towers(distiller):
        layers = module.encoder.layers
        depths = [module.embeddings, *layers]
        depth_of = {
            id(parameter): depth
            for depth, part in enumerate(depths)
            for parameter in itertools.chain(part.parameters())
        }
        for parameter in module.parameters():
            depth = depth_of.get(id(parameter), len(layers) + 1)
            yield parameter, _Place(tower, depth, len(layers))
