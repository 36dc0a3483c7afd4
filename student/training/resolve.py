"""Resolving the settings of a training: defaults are filled in, contradictions are refused."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...cores import decoders_beside_training
from ...errors import SettingError
from ...siglip import (
    BOTH,
    Checkpoint,
    NaflexRecipe,
    file_sha256,
    files_sha256,
    resolve_checkpoint,
    resolve_device,
    weight_files,
    with_max_num_patches,
)
from ...store.cache import Cache, open_cache
from ...store.format import layout
from ...store.format.kept_pixels import KeptPixels
from ...store.format.teacher_record import TeacherRecord
from ...store.io.download_cache import copies_of
from ..config import TrainConfig, images_read
from ..data.corpus import Corpus, unseen_text_rows
from ..data.kept_pixels import choose_pixels
from ..data.read_corpus import read_corpus
from ..data.select_images import select_images
from ..data.split import SplitPolicy, split_policy
from ..export.metadata import identity_sha256
from ..launch import Launch
from ..selection import parse_selection
from ..terms import active_terms
from .other_tower import check_other_tower
from .resolve_teachers import (
    RunTeacher,
    further_facts,
    missing_lines,
    resolve_teachers,
    teacher_weights,
    term_weights,
)


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """The resolved settings, with the cache and the checkpoint that they name."""

    given: TrainConfig
    """Settings as the user gave them."""

    config: TrainConfig
    cache: Cache
    teachers: list[RunTeacher]
    """The first one has a target of every image, and is the one of the evaluation."""

    corpus: Corpus
    """The whole corpus; train and val are its parts."""

    train: Corpus
    val: Corpus
    checkpoint: Checkpoint
    device: str
    compute_dtype: str
    projection: Literal["learned", "pca", "none"]
    num_workers: int
    """Decoding processes of this rank."""

    kept: KeptPixels | None
    """Kept pixels to read; None: the corpus is read."""

    notes: tuple[str, ...]
    """What to know before the first step: why kept pixels are not read although there are some, which images
    were selected, and what lacks data."""

    @property
    def steps(self) -> int:
        """Number of optimizer steps."""
        assert self.config.steps is not None
        return self.config.steps

    @property
    def save_every(self) -> int:
        """Steps between checkpoints."""
        return self.config.save_every or max(10, min(1000, self.steps // 20))

    @property
    def teacher(self) -> TeacherRecord:
        """The first teacher."""
        return self.teachers[0].record

    @property
    def teacher_scale(self) -> float:
        """The first teacher's, exponentiated."""
        return self.teachers[0].scale

    @property
    def teacher_bias(self) -> float:
        """The first teacher's."""
        return self.teachers[0].bias

    @property
    def weights(self) -> Mapping[str, float]:
        """Weight of each term of the first teacher."""
        return self.teachers[0].weights

    @property
    def unseen_text_rows(self) -> NDArray[np.int64]:
        """Captions of the train split that can be drawn and that no held-out image has, ascending."""
        return unseen_text_rows(self.train, self.val)

    @property
    def is_pulled(self) -> bool:
        """Whether a term pulls the student towards the first teacher's space, with a map or without."""
        is_one_tower = self.config.towers != "both"
        return is_one_tower or any(term.needs_map for term in active_terms(self.weights))

    @property
    def has_patches(self) -> bool:
        """Whether a term needs patch targets."""
        return any(term.needs_patches for term in active_terms(self.weights))

    def fingerprint(self) -> dict[str, Any]:
        """Return hashes and counts of cache, teacher and student; a run resumes only with the same."""
        return {
            "catalog": self.cache.manifest.latest.digest,
            "teacher": identity_sha256(self.teacher),
            **further_facts(self.teachers),
            "images with a target": self.corpus.num_images,
            "captions with a target": self.corpus.num_captions,
            **({} if self.config.select == "all" else {"selected images": _sha256_of(self.train)}),
            **self._patch_facts(),
            **self._map_facts(),
            "student": _student_sha256(self.checkpoint, is_new=self.config.from_scratch),
        }

    def _map_facts(self) -> dict[str, Any]:
        """Return what a PCA map depends on besides the captions, where there are none."""
        if self.projection != "pca" or self.train.num_captioned:
            return {}
        texts = self.cache.text_targets(self.teacher.name)
        return {"texts with a target": len(texts.available_rows())}

    def _patch_facts(self) -> dict[str, Any]:
        if not self.has_patches:
            return {}
        chunk = layout.matrix_chunk(layout.patch_basis(self.teacher.name))
        return {"map of patch targets": self.teacher.files[chunk]["sha256"]}


def resolve(config: TrainConfig, launch: Launch, device: str) -> Resolved:
    """Open the cache and the student's checkpoint, and fill in the settings.

    Args:
        config: settings as the user gave them.
        launch: this process among the others.
        device: result of device_of.

    Raises:
        CacheError: settings, cache and checkpoint do not fit together.
    """
    cache = open_cache(
        config.cache,
        corpus_roots=config.corpus_roots,
        copies=copies_of(config.cache_dir, config.cache_limit),
    )
    teachers = teacher_weights(config, cache)
    teacher = cache.teacher(next(iter(teachers)))
    checkpoint = resolve_checkpoint(
        config.student,
        revision=config.revision,
        has_weights=not config.from_scratch,
        needed=BOTH if config.towers == "both" else (config.towers,),
    )
    if config.max_num_patches is not None:
        checkpoint = with_max_num_patches(checkpoint, config.max_num_patches)
    policy = split_policy(config.val_share, config.val_keys) or SplitPolicy()
    corpus = read_corpus(
        cache,
        teacher.name,
        policy,
        student=checkpoint if config.towers != "image" else None,
        caption_weights=config.caption_weights,
        allow_partial=config.allow_partial,
    )
    kept, kept_note = None, None
    if config.towers != "text":
        kept, kept_note = choose_pixels(cache, corpus, checkpoint, config.pixels)
    train, selection_note = _select(corpus.select(~corpus.is_val_N), cache, teacher.name, config)
    run_teachers = resolve_teachers(config, cache, teachers, train)
    first = run_teachers[0]
    projection = _projection(config, checkpoint, run_teachers)
    dtype = config.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
    full = replace(
        config,
        teacher=teacher.name if teachers == {teacher.name: 1} else teachers,
        projection=projection,
        weights=term_weights(config, first.scale),
        teacher_scale=first.scale if len(teachers) == 1 else None,
        teacher_bias=first.bias if len(teachers) == 1 else None,
        steps=_steps(config, train),
        epochs=None,
        lr=config.lr or (1e-3 if config.from_scratch else 1e-5),
        weight_decay=_value_or(config.weight_decay, 1e-4 if config.from_scratch else 0.0),
        max_num_patches=(
            None if config.towers == "text" else getattr(checkpoint.image, "max_num_patches", None)
        ),
        dtype=dtype,
        pixels="kept" if kept is not None else "auto" if config.towers == "text" else "corpus",
        val_share=policy.val_share if policy.val_keys is None else None,
    )
    if full.patch_dropout is not None and isinstance(checkpoint.image, NaflexRecipe):
        raise SettingError(
            f"patch_dropout goes with students of fixed resolution, and {config.student} is NaFlex; "
            "--max-num-patches limits its patches"
        )
    _refuse_no_data(full, run_teachers, train)
    notes = (
        kept_note,
        selection_note,
        _no_captions_note(full, train),
        *missing_lines(run_teachers),
    )
    if config.captions_per_image > 1 and train.drawable_counts.max(initial=0) < 2:
        weighed = " of a weight above 0" if config.caption_weights else ""
        raise SettingError(
            f"captions_per_image {config.captions_per_image} needs images of several captions, and those to "
            f"train on of {config.cache} have at most one{weighed}; leave it out"
        )
    check_other_tower(config, teacher, projection)
    return Resolved(
        given=config,
        config=full,
        cache=cache,
        teachers=run_teachers,
        corpus=corpus,
        train=train,
        val=corpus.select(corpus.is_val_N),
        checkpoint=checkpoint,
        device=device,
        compute_dtype=dtype,
        projection=projection,
        num_workers=_num_workers(config, launch),
        kept=kept,
        notes=tuple(filter(None, notes)),
    )


def device_of(config: TrainConfig, launch: Launch) -> str:
    """Return the device of this process; with several processes on a machine, cuda gives each its own GPU.

    Raises:
        SettingError: there is no such device, or not one for each process.
    """
    device = resolve_device(config.device)
    count = launch.local_world_size
    if count == 1 or not device.startswith("cuda"):
        return device
    import torch

    num_gpus = torch.cuda.device_count()
    if num_gpus == 1:  # batch systems show each process another one
        return "cuda:0"
    if device != "cuda":
        raise SettingError(
            f"device {device} is one GPU, but {count} processes train on this machine; use cuda, which gives "
            "each its own"
        )
    if count > num_gpus:
        raise SettingError(
            f"{count} processes train on this machine, which has {num_gpus} GPUs; start at most {num_gpus}"
        )
    return f"cuda:{launch.local_rank}"


def _select(
    train: Corpus, cache: Cache, teacher: str, config: TrainConfig
) -> tuple[Corpus, str | None]:
    """Return the images of the train split that are used, and a line about them."""
    selection = parse_selection(config.select)
    if selection.kind == "learnability":
        read = images_read(config)
        return train, (
            f"select learnability: of each {read:,} images read, {config.global_batch_size:,} are trained "
            f"on; an epoch has {train.num_images * config.views_per_step // read:,} steps, and each costs "
            f"the forward pass of {config.super_batch} times as many images besides"
        )
    is_used_N, note = select_images(train, cache, teacher, selection)
    return train if note is None else train.select(is_used_N), note


def _sha256_of(train: Corpus) -> str:
    return hashlib.sha256(train.rows_N.tobytes()).hexdigest()


def _projection(
    config: TrainConfig,
    checkpoint: Checkpoint,
    teachers: list[RunTeacher],
) -> Literal["learned", "pca", "none"]:
    """Return the map between the widths."""
    terms = [term for each in teachers for term in active_terms(each.weights)]
    needs_one = config.towers != "both" or any(term.needs_map for term in terms)
    if config.projection == "none" and needs_one and len(teachers) > 1:
        raise SettingError(
            f"projection none goes with one teacher, and there are {len(teachers)}, each with a space of its "
            "own; use learned, or only terms without a map, such as --weight cosine=0"
        )
    teacher = teachers[0].record
    is_equal = checkpoint.embed_dim == teacher.embed_dim
    widths = f"the student's {checkpoint.embed_dim}, the teacher's {teacher.embed_dim}"
    if config.projection == "none" and needs_one and not is_equal:
        raise SettingError(
            f"projection none needs equal widths ({widths}), or towers both with only the soft and the "
            "contrastive term; use learned or pca, or --weight cosine=0"
        )
    is_pca = config.projection == "pca" or (config.towers == "image" and not is_equal)
    if is_pca and checkpoint.embed_dim > teacher.embed_dim:
        instead = "train both towers" if config.towers == "image" else "take projection learned"
        raise SettingError(
            f"a PCA map makes rows narrower, and the student is wider than the teacher ({widths}); "
            f"{instead}, or a narrower student"
        )
    if config.projection != "auto":
        return config.projection
    if config.towers != "both" and is_equal:
        return "none"
    if config.towers == "image":
        return "pca"
    return "learned" if needs_one else "none"


def _steps(config: TrainConfig, train: Corpus) -> int:
    if config.steps is not None:
        return config.steps
    epochs = 1.0 if config.epochs is None else config.epochs
    return max(1, round(epochs * (train.num_images * config.views_per_step // images_read(config))))


def _refuse_no_data(config: TrainConfig, teachers: list[RunTeacher], train: Corpus) -> None:
    """Refuse a training in which no term has any data.

    Raises:
        SettingError: no caption can be drawn, and every term with a weight needs them, or texts are trained.
    """
    if train.num_captioned:
        return
    lack = f"{config.cache} has no caption in its train split"
    if train.num_captions:
        lack = f"caption_weights is 0 for every caption in the train split of {config.cache}"
    if config.towers == "text":
        raise SettingError(f"{lack}, and towers text learns from captions")
    if parse_selection(config.select).kind == "learnability":
        raise SettingError(f"{lack}, and select learnability chooses among captions; leave it out")
    if all(term.needs_captions for each in teachers for term in active_terms(each.weights)):
        raise SettingError(
            f"{lack}, so only the cosine term has data, and its weight is 0; use --weight cosine=1"
        )


def refuse_empty_bank(resolved: Resolved) -> None:
    """Refuse a text bank of the first teacher that would be empty.

    Raises:
        SettingError: there are no captions, or all are of held-out images too.
    """
    if not resolved.teachers[0].has_text_bank:
        return
    captions = resolved.train.drawable_text_rows
    if not len(captions):
        raise SettingError(
            "weights.bank needs captions, and the train split has none; leave it out"
        )
    if not len(resolved.unseen_text_rows):
        raise SettingError(
            f"weights.bank needs captions that no held-out image has, and of the {len(captions):,} different "
            "ones of the train split none is left; leave the term out, or hold out others by --val-keys"
        )


def _no_captions_note(config: TrainConfig, train: Corpus) -> str | None:
    """Return what a student of two towers becomes without captions; None: there are some."""
    if config.towers != "both" or train.num_captioned:
        return None
    weighed = " of a weight above 0" if config.caption_weights else ""
    return (
        f"no image to train on has a caption{weighed}, so the text tower learns nothing and no longer fits "
        "the image tower; --towers image trains the image tower alone, and --teacher-text TEACHER adds the "
        "teacher's"
    )


def _num_workers(config: TrainConfig, launch: Launch) -> int:
    if config.decode_workers is not None:
        return config.decode_workers
    return decoders_beside_training(launch.local_world_size)


def _student_sha256(checkpoint: Checkpoint, *, is_new: bool) -> str:
    if is_new:
        return file_sha256(checkpoint.folder / "config.json")
    return files_sha256(weight_files(checkpoint.folder))


def _value_or(value: float | None, default: float) -> float:
    return default if value is None else value
