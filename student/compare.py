"""``siglip2-cache eval``: a model beside the teacher of a cache, on images that were held out."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..errors import CheckpointError, SettingError, first_line
from ..siglip import (
    Checkpoint,
    load_model,
    resolve_checkpoint,
    resolve_compute_dtype,
    resolve_device,
)
from ..store.cache import Cache, open_cache
from .corpus import read_corpus
from .evaluate import (
    Embeddings,
    Gallery,
    choose_gallery,
    evaluate,
    student_embeddings,
    table_lines,
    teacher_embeddings,
)
from .gallery import SPLITS, Split
from .split import SplitPolicy

NOTES = "siglip2_cache.json"
"""What a training left beside the model: how it held images out."""

PROJECTION = "projection.safetensors"
"""The map P to the teacher's space, where one was trained: a tensor map_ED, in the model's folder or
beside it, where a training leaves it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """Settings of one evaluation."""

    model: str
    """Hub id or folder of a SigLIP or SigLIP 2 checkpoint, such as a training's RUN/model."""

    cache: Path
    teacher: str | None = None
    """Name in the cache; None is the only one."""

    split: Split = "val"
    """Which images: held out, the others, or all."""

    val_share: float | None = None
    """Share of the pictures that is held out; None: as the model was trained, else the default."""

    val_keys: str | None = None
    """Pattern of the keys that are held out; None: as the model was trained."""

    samples: int = 10_000
    """Images at most, a seeded choice."""

    seed: int = 0
    """Of that choice, and of the pairs that calibration takes for other ones."""

    device: str = "auto"
    dtype: str = "auto"
    """Of the forward pass; auto: bfloat16 on cuda, else as the weights are stored."""

    batch_size: int = 32
    """Images, and texts, in one forward pass."""

    decode_workers: int | None = None
    """Decoding processes; 0: none; None: one a core, 16 at most."""

    corpus_roots: Mapping[str, str] = field(default_factory=dict[str, str])
    """Old folder to new folder, where the corpus has moved."""

    allow_partial: bool = False
    """Take what is committed of an unfinished cache."""

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise SettingError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}")
        for name, least in (("samples", 1), ("batch_size", 1), ("seed", 0), ("decode_workers", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                words = name.replace("_", " ")
                raise SettingError(f"{words} must be at least {least}, got {value}")
        if self.val_share is not None and self.val_keys is not None:
            raise SettingError("val share and val keys exclude each other: leave one out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What an evaluation found."""

    found: dict[str, Any]
    """Everything, as JSON values."""

    lines: list[str]
    """The same for people, shorter."""


def compare(config: EvalConfig) -> Comparison:
    """Evaluate a model beside the teacher of a cache.

    Raises:
        SettingError, TrainError, CheckpointError: what is wrong, in one line.
    """
    cache = open_cache(config.cache, corpus_roots=config.corpus_roots)
    record = cache.teacher(config.teacher)
    checkpoint = resolve_checkpoint(config.model)
    policy = _split_policy(config, checkpoint)
    map_ED = read_projection(checkpoint, record.embed_dim)
    corpus = read_corpus(cache, record.name, policy, allow_partial=config.allow_partial)
    gallery = choose_gallery(
        cache, corpus, split=config.split, max_images=config.samples, seed=config.seed
    )
    teacher = teacher_embeddings(cache, record.name, gallery.rows_N, gallery.text_rows_M)
    student = _embed(config, checkpoint, cache, gallery)
    columns = {
        "teacher": evaluate(teacher, teacher, gallery, seed=config.seed),
        "model": evaluate(student, teacher, gallery, map_ED=map_ED, seed=config.seed),
    }
    found = {"gallery": gallery_numbers(gallery, policy), "columns": columns}
    lines = [
        f"model      {student.name}: {checkpoint.given}",
        f"teacher    {record.name}, from {cache.root}",
        *gallery_lines(gallery, policy),
        *_fault_lines(cache, student),
        "",
        *table_lines(columns),
    ]
    return Comparison(found=found, lines=lines)


def gallery_numbers(gallery: Gallery, policy: SplitPolicy) -> dict[str, Any]:
    """Return what was evaluated, as JSON values."""
    return {
        "split": gallery.split,
        "val_share": policy.val_share if policy.val_keys is None else None,
        "val_keys": policy.val_keys,
        "split_images": gallery.num_split_images,
        "images": len(gallery.rows_N),
        "captions": gallery.num_captions,
        "captions_in_train": gallery.num_texts_in_train,
        "prompts": len(gallery.prompt_Q),
    }


def gallery_lines(gallery: Gallery, policy: SplitPolicy) -> list[str]:
    """Return what was evaluated, for people."""
    how = (
        f"share {policy.val_share:g}" if policy.val_keys is None else f"keys like {policy.val_keys}"
    )
    held_out = "" if gallery.split == "all" else f" (held out: {how})"
    also = (
        ""
        if gallery.num_texts_in_train is None
        else f", {gallery.num_texts_in_train:,} of which also stand in train"
    )
    return [
        f"images     {len(gallery.rows_N):,} of {gallery.num_split_images:,} of split "
        f"{gallery.split}{held_out}",
        f"texts      {gallery.num_captions:,} unique captions{also}; {len(gallery.prompt_Q):,} prompts",
    ]


def read_projection(checkpoint: Checkpoint, teacher_dim: int) -> NDArray[np.float32] | None:
    """Return the map to the teacher's space that a training left beside a model, (E, D), or None.

    Raises:
        CheckpointError: it is damaged, or leads elsewhere.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = checkpoint.folder / PROJECTION
    if not path.is_file() and (checkpoint.folder / NOTES).is_file():
        path = checkpoint.folder.parent / PROJECTION
    if not path.is_file():
        return None
    try:
        map_ED = load_file(path)["map_ED"].astype(np.float32)
    except (SafetensorError, KeyError, OSError) as error:
        raise CheckpointError(f"{path} holds no tensor map_ED: {first_line(error)}") from error
    if map_ED.shape != (teacher_dim, checkpoint.embed_dim):
        raise CheckpointError(
            f"{path} maps to width {map_ED.shape[0]} from {map_ED.shape[-1]}, but the teacher has "
            f"{teacher_dim} and the model {checkpoint.embed_dim}; it was trained with another teacher"
        )
    return map_ED


def _split_policy(config: EvalConfig, checkpoint: Checkpoint) -> SplitPolicy:
    """Return what is asked for; else how the model was trained, so that val was not learned from."""
    if config.val_keys is not None:
        return SplitPolicy(val_keys=config.val_keys)
    if config.val_share is not None:
        return SplitPolicy(val_share=config.val_share)
    path = checkpoint.folder / NOTES
    if not path.is_file():
        return SplitPolicy()
    try:
        split = json.loads(path.read_text("utf-8")).get("split", {})
        known = {name: split[name] for name in ("val_share", "val_keys") if name in split}
        return SplitPolicy(**known)
    except (ValueError, AttributeError, TypeError, OSError) as error:
        raise CheckpointError(
            f"{path} does not say how images were held out ({first_line(error)}); say so with "
            "--val-share or --val-keys"
        ) from error


def _embed(
    config: EvalConfig, checkpoint: Checkpoint, cache: Cache, gallery: Gallery
) -> Embeddings:
    device = resolve_device(config.device)
    dtype = resolve_compute_dtype(checkpoint, device, config.dtype)
    return student_embeddings(
        load_model(checkpoint, device=device, compute_dtype=dtype),
        checkpoint,
        cache,
        gallery.rows_N,
        gallery.text_rows_M,
        device=device,
        compute_dtype=dtype,
        batch_size=config.batch_size,
        num_workers=_num_workers(config),
        sha256_N=gallery.sha256_N,
    )


def _num_workers(config: EvalConfig) -> int:
    return min(os.cpu_count() or 1, 16) if config.decode_workers is None else config.decode_workers


def _fault_lines(cache: Cache, student: Embeddings) -> list[str]:
    if not student.faults:
        return []
    row, reason = next(iter(student.faults.items()))
    key = cache.samples().filter(pl.col("row") == row).collect()["key"][0]
    count = len(student.faults)
    return [f"missing    {count:,} images, which never hit; {key!r} for instance: {reason}"]
