"""``siglip2-cache eval``: a model beside the teacher of a cache, on images that were held out."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..errors import SettingError
from ..siglip import (
    Checkpoint,
    load_model,
    resolve_checkpoint,
    resolve_compute_dtype,
    resolve_device,
)
from ..store.cache import Cache, open_cache
from ..store.locations import Location
from .corpus import read_corpus
from .evaluate import (
    Embeddings,
    Gallery,
    choose_gallery,
    evaluate,
    gallery_lines,
    gallery_numbers,
    map_texts,
    student_embeddings,
    table_lines,
    teacher_embeddings,
)
from .gallery import SPLITS, Split
from .notes import Notes, identity_sha256, read_notes, read_projection
from .split import SplitPolicy, split_policy


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """Settings of one evaluation."""

    model: str
    """Hub id or folder of a SigLIP or SigLIP 2 checkpoint, such as a training's RUN/model."""

    cache: Location
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
    checkpoint = resolve_checkpoint(config.model, allow_image_tower=True)
    notes = read_notes(checkpoint)
    policy = _split_policy(config, notes)
    map_ED = read_projection(checkpoint, record.embed_dim, identity_sha256(record))
    corpus = read_corpus(cache, record.name, policy, allow_partial=config.allow_partial)
    gallery = choose_gallery(
        cache, corpus, split=config.split, max_images=config.samples, seed=config.seed
    )
    teacher = teacher_embeddings(cache, record.name, gallery.rows_N, gallery.text_rows_M)
    texts_MD = _texts_for_image_tower(checkpoint, teacher, map_ED)
    student = _embed(config, checkpoint, cache, gallery, texts_MD, notes.logit)
    columns = {
        "teacher": evaluate(teacher, teacher, gallery, seed=config.seed),
        "model": evaluate(student, teacher, gallery, map_ED=map_ED, seed=config.seed),
    }
    found = {"gallery": gallery_numbers(gallery, policy), "columns": columns}
    lines = [
        f"model      {student.name}: {checkpoint.given}",
        f"teacher    {record.name}, from {cache.root}",
        *_text_lines(checkpoint, texts_MD),
        *gallery_lines(gallery, policy),
        *_fault_lines(cache, student),
        "",
        *table_lines(columns),
    ]
    return Comparison(found=found, lines=lines)


def _split_policy(config: EvalConfig, notes: Notes) -> SplitPolicy:
    """Return what is asked for; else how the model was trained, so that val was not learned from."""
    return split_policy(config.val_share, config.val_keys) or notes.split or SplitPolicy()


def _texts_for_image_tower(
    checkpoint: Checkpoint, teacher: Embeddings, map_ED: NDArray[np.float32] | None
) -> NDArray[np.float32] | None:
    """Return the texts that an image tower alone was trained against; None where they are unknown."""
    is_one_space = map_ED is not None or teacher.texts_MD.shape[1] == checkpoint.embed_dim
    return map_texts(teacher, map_ED) if is_one_space and not checkpoint.has_text else None


def _embed(
    config: EvalConfig,
    checkpoint: Checkpoint,
    cache: Cache,
    gallery: Gallery,
    texts_MD: NDArray[np.float32] | None,
    logit: tuple[float, float] | None,
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
        texts_MD=texts_MD,
        logit=logit,
    )


def _text_lines(checkpoint: Checkpoint, texts_MD: NDArray[np.float32] | None) -> list[str]:
    if checkpoint.has_text:
        return []
    whose = "none: no map leads to the teacher's" if texts_MD is None else "the teacher's"
    return [f"           an image tower alone; its texts are {whose}"]


def _num_workers(config: EvalConfig) -> int:
    return min(os.cpu_count() or 1, 16) if config.decode_workers is None else config.decode_workers


def _fault_lines(cache: Cache, student: Embeddings) -> list[str]:
    if not student.faults:
        return []
    row, reason = next(iter(student.faults.items()))
    key = cache.samples().filter(pl.col("row") == row).collect()["key"][0]
    count = len(student.faults)
    return [f"missing    {count:,} images, which never hit; {key!r} for instance: {reason}"]
