"""A new student: a checkpoint with fewer tokens, layers or pixels, or narrower, as a folder to train.

Order of the cuts: vocabulary, layers, patch and image size, width.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...errors import ExportError, SettingError
from ...siglip import (
    SquashRecipe,
    load_model,
    load_trainable,
    read_text_settings,
    resolve_checkpoint,
    weight_files,
)
from ...siglip.files import read_json, save_weights, write_json
from ...version import __version__
from ..data.random_draws import LARGEST_SEED
from ..export.atomic_folder import MARK, replaced_atomically
from ..export.image_processor import processor_class_to_name, write_image_processor
from ..export.provenance import base_model_of, license_of
from ..export.tokenizer import write_tokenizer
from . import weights as cuts
from .shape import shape_of
from .sizes import size_lines, sizes
from .vocabulary import cut_vocabulary, whole_ids
from .vocabulary_texts import Texts, vocabulary_texts

_START = {"logit_scale": float(np.log(10)), "logit_bias": -10.0}
"""Constants of new weights. Source: arXiv:2303.15343, section 3.2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewStudentConfig:
    """Settings of a new student."""

    model: str
    """Hub id or folder of a SigLIP 2 checkpoint of two towers."""

    out: Path
    """Folder to write; an earlier one is replaced."""

    vocabulary: Sequence[str] = ()
    """Caches, text files and languages whose tokens are kept; empty: all tokens are kept."""

    vision_layers: str | None = None
    """Number of layers, spread evenly, or positions such as ``0,2,5``; None: all."""

    text_layers: str | None = None
    """As vision_layers."""

    image_size: int | None = None
    """Height and width in pixels; None: unchanged."""

    patch_size: int | None = None
    """Height and width of a patch in pixels; None: unchanged."""

    width: int | None = None
    """Width of both towers, a multiple of the width of a head; None: unchanged."""

    init: Literal["selected", "random"] = "selected"
    """selected: weights of the larger model. random: new weights."""

    seed: int = 0
    """Random seed of new weights."""

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingError(f"{name.replace('_', ' ')} must be at least 1, got {value}")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise SettingError(f"seed must be 0 to {LARGEST_SEED}, got {self.seed}")
        if self.init not in ("selected", "random"):
            raise SettingError(f"init must be one of selected, random, got {self.init!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewStudent:
    """Result: sizes before and after."""

    found: dict[str, Any]
    lines: list[str]


def new_student(config: NewStudentConfig) -> NewStudent:
    """Write a smaller student, whole or not at all; it trains, exports and loads like any other.

    Raises:
        SettingError: a setting does not fit the checkpoint, or ``out`` is no earlier student.
        CheckpointError: the checkpoint cannot be read, or is not supported.
        DiskFullError: the disk is full; ``out`` is unchanged.
    """
    from safetensors.torch import load_file

    checkpoint = resolve_checkpoint(config.model)
    if read_text_settings(checkpoint.folder).is_siglip1:
        raise SettingError(
            f"{checkpoint.given} is a SigLIP 1 checkpoint; name a SigLIP 2 checkpoint"
        )
    base_model, license = base_model_of(checkpoint), license_of(checkpoint)
    before = sizes(
        str(checkpoint.folder)
    )  # before ``out``, which may be the same folder, is replaced
    shape = shape_of(
        checkpoint,
        text_layers=config.text_layers,
        vision_layers=config.vision_layers,
        patch_size=config.patch_size,
        image_size=config.image_size,
        width=config.width,
    )
    sources = [vocabulary_texts(given) for given in config.vocabulary]
    with replaced_atomically(config.out) as folder:
        weights: dict[str, Any] = {}
        for path in weight_files(checkpoint.folder):
            weights |= load_file(path)
        special = write_tokenizer(
            checkpoint, folder, processor_class=processor_class_to_name(checkpoint, checkpoint)
        )
        if sources:
            weights, special = _cut_vocabulary(folder, sources, weights, special)
        weights = shape.cut(weights)
        num_tokens = len(weights[cuts.TOKENS])
        write_json(folder / "config.json", shape.config(checkpoint, num_tokens, special))
        if shape.image_size is not None and isinstance(checkpoint.image, SquashRecipe):
            size = (shape.image_size, shape.image_size)
            recipe = replace(checkpoint.image, size=size)
            checkpoint = replace(checkpoint, image_recipe=recipe)
        write_image_processor(folder, checkpoint, processor_class_to_name(checkpoint, checkpoint))
        if config.init == "random":
            weights = _new_weights(folder, config.seed)
        save_weights(folder / "model.safetensors", weights)
        mark = {
            "written_by": f"siglip2-cache {__version__}",
            "base_model": base_model,
            "license": license,
        }
        write_json(folder / MARK, mark)
        load_model(resolve_checkpoint(str(folder)), device="cpu", compute_dtype="float32")
    after = sizes(str(config.out))
    lines = [*size_lines(before, after), f"wrote {config.out}"]
    if config.init == "random":
        lines.append(
            "its weights are new: the default --lr of train, 1e-5, is for pretrained ones; start at 1e-3"
        )
    return NewStudent(found={"before": before, "after": after}, lines=lines)


def _cut_vocabulary(
    folder: Path, sources: list[Texts], weights: dict[str, Any], special: dict[str, int]
) -> tuple[dict[str, Any], dict[str, int]]:
    """Write the smaller tokenizer; return weights and special ids that fit it."""
    path = folder / "tokenizer.json"
    spec = read_json(path)

    def texts() -> Iterator[str]:
        return chain.from_iterable(source() for source in sources)

    cut, old_ids = cut_vocabulary(spec, texts())
    for before, after in zip(whole_ids(spec, texts()), whole_ids(cut, texts()), strict=True):
        if before != [old_ids[ids].tolist() for ids in after]:
            raise ExportError(
                "the cut vocabulary gives other tokens for a text that it was cut to; leave out --vocabulary"
            )
    path.write_text(json.dumps(cut, ensure_ascii=False) + "\n", encoding="utf-8")
    new_id = {int(old): new for new, old in enumerate(old_ids)}
    return cuts.keep_tokens(weights, old_ids), {name: new_id[i] for name, i in special.items()}


def _new_weights(folder: Path, seed: int) -> dict[str, Any]:
    import torch

    settings = resolve_checkpoint(str(folder), has_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights = load_trainable(settings, towers="both", is_new=True).state_dict()
    return {**weights, **{name: torch.tensor([value]) for name, value in _START.items()}}
