"""``siglip2-cache eval``: a model beside the teacher of a cache, on images that were held out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ...cores import decoders_for, num_cores
from ...errors import SettingError
from ...siglip import (
    Checkpoint,
    load_model,
    resolve_checkpoint,
    resolve_compute_dtype,
    resolve_device,
)
from ...store.cache import Cache, open_cache
from ...store.format.teacher_record import TeacherRecord
from ...store.io.location import Location
from ..data.corpus import Corpus, read_corpus
from ..data.split import SplitPolicy, held_out, split_policy
from ..export.metadata import Notes, read_notes, read_projection
from .eval_set import SPLITS, Split
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
        if self.split == "all" and (self.val_share, self.val_keys) != (None, None):
            raise SettingError(
                "split all takes every image: leave out val share and val keys, which choose"
            )


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
    space = _space(checkpoint, record, notes)
    corpus = _read_corpus(cache, record, policy, config, checkpoint)
    gallery = choose_gallery(
        cache, corpus, split=config.split, max_images=config.samples, seed=config.seed
    )
    teacher = teacher_embeddings(cache, record.name, gallery.rows_N, gallery.text_rows_M)
    texts_MD = None
    if not checkpoint.has_text and space.is_teachers:
        texts_MD = map_texts(teacher, space.map_ED)
    student = _embed(config, checkpoint, cache, gallery, texts_MD, notes.logit)
    columns = {
        "teacher": evaluate(teacher, teacher, gallery, seed=config.seed),
        "model": evaluate(
            student,
            teacher,
            gallery,
            map_ED=space.map_ED,
            is_one_space=space.is_teachers,
            seed=config.seed,
        ),
    }
    num_unseen = _num_unseen(cache, corpus, gallery, notes)
    numbers = gallery_numbers(gallery, policy) | {"held_out_of_its_training": num_unseen}
    found = {"gallery": numbers, "columns": columns}
    lines = [
        f"model      {student.name}: {checkpoint.given}",
        f"teacher    {record.name}, from {cache.root}",
        *_space_lines(checkpoint, space),
        *gallery_lines(gallery, policy),
        _unseen_line(num_unseen, len(gallery.rows_N), notes),
        *_fault_lines(cache, student),
        "",
        *table_lines(columns, numbers),
    ]
    return Comparison(found=found, lines=lines)


def _split_policy(config: EvalConfig, notes: Notes) -> SplitPolicy | None:
    """Return what is asked for; else how the model was trained. None: every image is taken."""
    if config.split == "all":
        return None
    return split_policy(config.val_share, config.val_keys) or notes.split or SplitPolicy()


def _read_corpus(
    cache: Cache,
    record: TeacherRecord,
    policy: SplitPolicy | None,
    config: EvalConfig,
    checkpoint: Checkpoint,
) -> Corpus:
    try:
        return read_corpus(
            cache, record.name, policy, student=checkpoint, allow_partial=config.allow_partial
        )
    except SettingError as error:
        if policy is None or policy.val_keys is None or config.val_keys is not None:
            raise
        raise SettingError(f"{error}, or --split all: the pattern is of its training") from None


def _num_unseen(cache: Cache, corpus: Corpus, gallery: Gallery, notes: Notes) -> int | None:
    """Return how many images of a gallery the model's training held out; None: that is not noted."""
    if notes.split is None:
        return None
    try:
        is_unseen_N = held_out(cache, notes.split, corpus.rows_N, corpus.sha256_N, corpus.picture_N)
    except SettingError:  # its pattern fits no key here
        return 0
    return int(np.isin(gallery.rows_N, corpus.rows_N[is_unseen_N]).sum())


def _unseen_line(num_unseen: int | None, num_images: int, notes: Notes) -> str:
    if num_unseen is None or notes.split is None:
        return "           what the model was trained on is not noted with it"
    left = num_images - num_unseen
    line = f"           {num_unseen:,} were held out of its training, by {notes.split.words}"
    return line + (f"; from the other {left:,} it may have learned" if left else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Space:
    """How a model's embeddings are compared with the teacher's."""

    map_ED: NDArray[np.float32] | None
    """To the teacher's space; None: there is none."""

    is_teachers: bool
    """Whether the model's space is the teacher's, by the map or by itself."""

    why: str
    """Why it is not, or on what that rests; empty: there is nothing to say."""


def _space(checkpoint: Checkpoint, record: TeacherRecord, notes: Notes) -> _Space:
    is_of = notes.is_of(record)
    if is_of is False:
        why = "it was trained against another teacher, no map leads to this one's space"
        return _Space(map_ED=None, is_teachers=False, why=why)
    map_ED = read_projection(checkpoint, record.embed_dim)
    widths = f"its width is {checkpoint.embed_dim}, the teacher's {record.embed_dim}"
    if map_ED is not None:
        return _Space(map_ED=map_ED, is_teachers=True, why="")
    if checkpoint.embed_dim != record.embed_dim:
        return _Space(map_ED=None, is_teachers=False, why=f"{widths}, no map leads there")
    why = "" if is_of else "its space is taken for the teacher's, whose width it has"
    return _Space(map_ED=None, is_teachers=True, why=why)


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
        num_workers=decoders_for(num_cores())
        if config.decode_workers is None
        else config.decode_workers,
        sha256_N=gallery.sha256_N,
        texts_MD=texts_MD,
        logit=logit,
    )


def _space_lines(checkpoint: Checkpoint, space: _Space) -> list[str]:
    facts = [space.why] if space.why else []
    if not checkpoint.has_text:
        whose = "the teacher's" if space.is_teachers else "none"
        facts.insert(0, f"an image tower alone; its texts are {whose}")
    return [f"           {'; '.join(facts)}"] if facts else []


def _fault_lines(cache: Cache, student: Embeddings) -> list[str]:
    if not student.faults:
        return []
    row, reason = next(iter(student.faults.items()))
    key = cache.samples().filter(pl.col("row") == row).collect()["key"][0]
    count = len(student.faults)
    return [f"missing    {count:,} images, which never hit; {key!r} for instance: {reason}"]
