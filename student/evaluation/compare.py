"""Evaluation of a model beside the teacher of a cache: what ``siglip2-cache eval`` runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ...cores import decoders_for, num_cores
from ...errors import SettingError
from ...images.image import ImageRef
from ...progress import TaskProgress
from ...siglip import (
    Checkpoint,
    load_model,
    logit_scale_and_bias,
    resolve_checkpoint,
    resolve_compute_dtype,
    resolve_device,
)
from ...store.cache import Cache, open_cache
from ...store.format.teacher_record import TeacherRecord
from ...store.io.location import Location
from ..data.corpus import Corpus
from ..data.read_corpus import read_corpus
from ..data.split import SplitPolicy, held_out, split_policy
from ..export.metadata import PROJECTION, ModelMetadata, read_metadata, read_projection
from .embeddings import Embeddings, student_embeddings, teacher_embeddings
from .eval_set import SPLITS, CacheEvalSet, Split, choose_eval_set
from .evaluate import evaluate, in_student_space
from .pictures import picture_refs, read_texts
from .report import INTERVALS, eval_set_lines, eval_set_numbers, table_lines


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """Settings of one evaluation."""

    model: str
    """Hub id or folder of a SigLIP or SigLIP 2 checkpoint, such as a training's RUN/model."""

    cache: Location
    teacher: str | None = None
    """Name of the teacher in the cache; None: the only one."""

    split: Split = "val"
    """Images to evaluate on: held out, the others, or all."""

    val_share: float | None = None
    """Share of the pictures that is held out; None: as in the model's training, else the default."""

    val_keys: str | None = None
    """Pattern of the keys that are held out; None: as in the model's training."""

    samples: int = 10_000
    """Most images; more are sampled at random."""

    seed: int = 0
    """Random seed of that sample, and of the random pairs of the calibration error."""

    device: str = "auto"
    dtype: str = "auto"
    """Dtype of the forward pass; auto: bfloat16 on cuda, else that of the stored weights."""

    batch_size: int = 32
    """Images, and texts, in one forward pass."""

    decode_workers: int | None = None
    """Decoding processes; 0: decode in this process; None: one a core, at most 16."""

    corpus_roots: Mapping[str, str] = field(default_factory=dict[str, str])
    """Old folder to new folder, where the corpus has moved."""

    allow_partial: bool = False
    """Accept an unfinished cache and use what is committed."""

    pixels: Literal["corpus", "kept"] = "corpus"
    """Images to read: the files of the corpus, or those that the cache keeps."""

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise SettingError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}")
        for name, least in (("samples", 1), ("batch_size", 1), ("seed", 0), ("decode_workers", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                words = name.replace("_", " ")
                raise SettingError(f"{words} must be at least {least}, got {value}")
        if self.val_share is not None and self.val_keys is not None:
            raise SettingError("val share and val keys exclude each other; give one of them")
        if self.split == "all" and (self.val_share, self.val_keys) != (None, None):
            raise SettingError("split all takes every image; leave out val share and val keys")

    @property
    def num_decoders(self) -> int:
        """Decoding processes."""
        return decoders_for(num_cores()) if self.decode_workers is None else self.decode_workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Result of an evaluation."""

    found: dict[str, Any]
    """All numbers, as JSON values."""

    lines: list[str]
    """The main numbers, as lines for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """How a model's embeddings are compared with the teacher's."""

    map_ED: NDArray[np.float32] | None
    """Map to the teacher's space; None: there is none."""

    is_teachers: bool
    """Whether the model's space is the teacher's, with the map or without one."""

    why: str
    """The reason, as a line for people; may be empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """A model and the teacher of a cache on the same images and texts."""

    cache: Cache
    record: TeacherRecord
    checkpoint: Checkpoint
    metadata: ModelMetadata
    policy: SplitPolicy | None
    """Which images are held out; None: every image is taken."""

    space: Space
    eval_set: CacheEvalSet
    num_unseen: int | None
    """Images that were held out of the model's training; None: unknown."""

    teacher: Embeddings
    model: Embeddings


def evaluate_model(config: EvalConfig, *, progress: TaskProgress | None = None) -> Comparison:
    """Evaluate a model beside the teacher of a cache.

    Args:
        config: what to evaluate.
        progress: shows how far it is; None: nothing is shown.

    Raises:
        SettingError, TrainError, CheckpointError: model, cache or settings cannot be used.
    """
    return compare(embed_model(config, progress=progress), seed=config.seed)


def embed_model(config: EvalConfig, *, progress: TaskProgress | None = None) -> Embedded:
    """Return the embeddings of a model and of the teacher, of the images and texts to evaluate on.

    Arguments and errors are those of evaluate_model.
    """
    cache = open_cache(config.cache, corpus_roots=config.corpus_roots)
    record = cache.teacher(config.teacher)
    checkpoint = resolve_checkpoint(config.model, needed=())
    metadata = read_metadata(checkpoint)
    policy = _split_policy(config, metadata)
    space = _space(checkpoint, record, metadata)
    corpus = _read_corpus(cache, record, policy, config, checkpoint)
    eval_set = choose_eval_set(
        cache, corpus, split=config.split, max_images=config.samples, seed=config.seed
    )
    teacher = teacher_embeddings(cache, record.name, eval_set.rows_N, eval_set.text_rows_M)
    if not checkpoint.has_image and not space.is_teachers:
        raise SettingError(
            f"{checkpoint.given} is a text tower alone, and {record.name} has no images in its space: "
            f"{space.why}; name the cache it was trained with"
        )
    model = _embed(config, checkpoint, cache, eval_set, metadata.logit, teacher, space, progress)
    return Embedded(
        cache=cache,
        record=record,
        checkpoint=checkpoint,
        metadata=metadata,
        policy=policy,
        space=space,
        eval_set=eval_set,
        num_unseen=_num_unseen(cache, corpus, eval_set, metadata),
        teacher=teacher,
        model=model,
    )


def compare(embedded: Embedded, *, seed: int) -> Comparison:
    """Return all metrics of a model and of its teacher; ``seed`` as in evaluate()."""
    teacher, model, space = embedded.teacher, embedded.model, embedded.space
    eval_set, policy, metadata = embedded.eval_set, embedded.policy, embedded.metadata
    columns = {
        "teacher": evaluate(teacher, teacher, eval_set, seed=seed),
        "model": evaluate(
            model,
            teacher,
            eval_set,
            map_ED=space.map_ED,
            is_one_space=space.is_teachers,
            seed=seed,
        ),
    }
    numbers = eval_set_numbers(eval_set, policy) | {"held_out_of_its_training": embedded.num_unseen}
    found = {"gallery": numbers, "columns": columns}
    lines = [
        f"model      {model.name}: {embedded.checkpoint.given}",
        f"teacher    {embedded.record.name}, from {embedded.cache.root}",
        *_space_lines(embedded.checkpoint, space),
        *eval_set_lines(eval_set, policy),
        _unseen_line(embedded.num_unseen, len(eval_set.rows_N), metadata),
        *_fault_lines(embedded.cache, model),
        "",
        *table_lines(columns, numbers, has_intervals=True),
        INTERVALS,
    ]
    return Comparison(found=found, lines=lines)


def eval_pictures(config: EvalConfig, cache: Cache, eval_set: CacheEvalSet) -> list[ImageRef]:
    """Return references to the images of an evaluation, in the corpus or among the kept pixels."""
    kept = cache.kept_pixels() if config.pixels == "kept" else None
    return picture_refs(cache, eval_set.rows_N, kept=kept, sha256_N=eval_set.sha256_N)


def open_eval_set(config: EvalConfig, checkpoint: Checkpoint) -> tuple[Cache, CacheEvalSet]:
    """Return the cache and the images and texts that compare would evaluate ``checkpoint`` on."""
    cache = open_cache(config.cache, corpus_roots=config.corpus_roots)
    policy = _split_policy(config, read_metadata(checkpoint))
    corpus = _read_corpus(cache, cache.teacher(config.teacher), policy, config, checkpoint)
    eval_set = choose_eval_set(
        cache, corpus, split=config.split, max_images=config.samples, seed=config.seed
    )
    return cache, eval_set


def _split_policy(config: EvalConfig, metadata: ModelMetadata) -> SplitPolicy | None:
    """Return the given policy, else that of the model's training; None: every image is taken."""
    if config.split == "all":
        return None
    return split_policy(config.val_share, config.val_keys) or metadata.split or SplitPolicy()


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
        raise SettingError(
            f"{error}, or --split all: the pattern comes from the model's training"
        ) from None


def _num_unseen(
    cache: Cache, corpus: Corpus, eval_set: CacheEvalSet, metadata: ModelMetadata
) -> int | None:
    """Return how many of the images were held out of the model's training; None: unknown."""
    if metadata.split is None:
        return None
    try:
        is_unseen_N = held_out(
            cache, metadata.split, corpus.rows_N, corpus.sha256_N, corpus.picture_N
        )
    except SettingError:  # its pattern matches no key here
        return 0
    return int(np.isin(eval_set.rows_N, corpus.rows_N[is_unseen_N]).sum())


def _unseen_line(num_unseen: int | None, num_images: int, metadata: ModelMetadata) -> str:
    if num_unseen is None or metadata.split is None:
        return "           which images the model was trained on is not recorded with it"
    left = num_images - num_unseen
    line = f"           {num_unseen:,} were held out of its training ({metadata.split.words})"
    return line + (f"; the other {left:,} may have been trained on" if left else "")


def _space(checkpoint: Checkpoint, record: TeacherRecord, metadata: ModelMetadata) -> Space:
    is_of_teacher = metadata.is_of(record)
    if is_of_teacher is False:
        why = "it was trained with another teacher; there is no map to this one's space"
        return Space(map_ED=None, is_teachers=False, why=why)
    map_ED = read_projection(checkpoint, record.embed_dim)
    widths = f"its width is {checkpoint.embed_dim}, the teacher's {record.embed_dim}"
    if map_ED is not None:
        return Space(map_ED=map_ED, is_teachers=True, why="")
    if checkpoint.embed_dim != record.embed_dim:
        return Space(map_ED=None, is_teachers=False, why=f"{widths}, and there is no map")
    if metadata.space == "own":
        why = f"its space is its own, and there is no {PROJECTION} beside it"
        return Space(map_ED=None, is_teachers=False, why=why)
    why = (
        ""
        if is_of_teacher
        else "its space is assumed to be the teacher's, since the widths are equal"
    )
    return Space(map_ED=None, is_teachers=True, why=why)


def _embed(
    config: EvalConfig,
    checkpoint: Checkpoint,
    cache: Cache,
    eval_set: CacheEvalSet,
    logit: tuple[float, float] | None,
    teacher: Embeddings,
    space: Space,
    progress: TaskProgress | None,
) -> Embeddings:
    """Return the model's embeddings; those of a tower that it lacks are the teacher's."""
    images_ND = texts_MD = None
    if space.is_teachers and not checkpoint.has_image:
        images_ND = in_student_space(teacher.images_ND, space.map_ED)
    if space.is_teachers and not checkpoint.has_text:
        texts_MD = in_student_space(teacher.texts_MD, space.map_ED)
    if checkpoint.has_image and checkpoint.has_text:
        logit = logit_scale_and_bias(checkpoint)  # a model in bfloat16 has them rounded
    device = resolve_device(config.device)
    dtype = resolve_compute_dtype(checkpoint, device, config.dtype)
    return student_embeddings(
        load_model(checkpoint, device=device, compute_dtype=dtype),
        checkpoint,
        eval_pictures(config, cache, eval_set),
        read_texts(cache, eval_set.text_rows_M),
        device=device,
        compute_dtype=dtype,
        batch_size=config.batch_size,
        num_workers=config.num_decoders,
        sha256_N=eval_set.sha256_N,
        images_ND=images_ND,
        texts_MD=texts_MD,
        logit=logit,
        progress=progress,
    )


def _space_lines(checkpoint: Checkpoint, space: Space) -> list[str]:
    facts = [space.why] if space.why else []
    if not checkpoint.has_text:
        whose = "the teacher's" if space.is_teachers else "none"
        facts.insert(0, f"an image tower alone; its texts: {whose}")
    if not checkpoint.has_image:
        facts.insert(0, "a text tower alone; its images: the teacher's")
    return [f"           {'; '.join(facts)}"] if facts else []


def _fault_lines(cache: Cache, student: Embeddings) -> list[str]:
    if not student.faults:
        return []
    row, reason = next(iter(student.faults.items()))
    key = cache.samples().filter(pl.col("row") == row).collect()["key"][0]
    count = len(student.faults)
    return [f"missing    {count:,} images, counted as misses (first: {key!r}, {reason})"]
