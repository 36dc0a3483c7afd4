"""The published SigLIP 2 checkpoints by name, with the sizes of their towers, without network."""

from typing import NamedTuple

from .config import TEXT_DEFAULTS, VISION_DEFAULTS, ModelType, TowerSettings


class TowerSize(NamedTuple):
    """The sizes of one tower, in the order of config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int


class PublishedSize(NamedTuple):
    """The sizes of one checkpoint."""

    vision: TowerSize
    text: TowerSize
    patch_size: int
    image_size: int | None
    """Height and width in pixels; None for NaFlex, which takes up to NAFLEX_PATCHES patches."""


NAFLEX_PATCHES = 256
"""Most patches of a view in the published NaFlex processors."""

_BASE, _LARGE = TowerSize(768, 3072, 12, 12), TowerSize(1024, 4096, 24, 16)
_SO400M, _GIANT_OPT = TowerSize(1152, 4304, 27, 16), TowerSize(1536, 6144, 40, 16)

_OWNER, _FAMILY = "google/", "siglip2-"

PUBLISHED: dict[str, PublishedSize] = {
    f"{name}-patch{patch_size}-{image_size or 'naflex'}": PublishedSize(
        vision, text, patch_size, image_size
    )
    for name, vision, text, patch_size, image_sizes in (
        ("base", _BASE, _BASE, 32, (256,)),
        ("base", _BASE, _BASE, 16, (224, 256, 384, 512, None)),
        ("large", _LARGE, _LARGE, 16, (256, 384, 512)),
        ("so400m", _SO400M, _SO400M, 14, (224, 384)),
        ("so400m", _SO400M, _SO400M, 16, (256, 384, 512, None)),
        ("giant-opt", _GIANT_OPT, _SO400M, 16, (256, 384)),
    )
    for image_size in image_sizes
}
"""Checkpoints by the part of their names after ``google/siglip2-``.

Source: the configs of google/siglip2-* on the Hugging Face hub; the list of them in the hub's blog,
siglip2.md."""


def published_towers(name: str) -> tuple[str, TowerSettings] | None:
    """Return the hub id of a published checkpoint and the settings of its towers, or None.

    Args:
        name: ``google/siglip2-so400m-patch14-384``, or without ``google/``, or without ``siglip2-`` too.
    """
    short = name.removeprefix(_OWNER).removeprefix(_FAMILY)
    size = PUBLISHED.get(short)
    if size is None:
        return None
    model_type: ModelType = "siglip2" if size.image_size is None else "siglip"
    extent = (
        {"num_patches": NAFLEX_PATCHES}
        if size.image_size is None
        else {"image_size": size.image_size}
    )
    towers = TowerSettings(
        model_type=model_type,
        text=TEXT_DEFAULTS
        | size.text._asdict()
        | {"vocab_size": 256_000, "projection_size": size.vision.hidden_size},
        vision=VISION_DEFAULTS[model_type]
        | size.vision._asdict()
        | {"patch_size": size.patch_size}
        | extent,
    )
    return f"{_OWNER}{_FAMILY}{short}", towers
