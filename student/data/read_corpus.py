"""Reading the training corpus of a cache.

Shape letters in this file: N = images, ascending by row    C = captions, those of one image together
"""

import shlex
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ...errors import DamagedCacheError, TrainError
from ...siglip import Checkpoint
from ...store.cache import Cache
from ...store.format import layout
from ...store.format.layout import MODALITIES
from ...store.format.teacher_record import TeacherRecord
from ...store.targets.targets import Targets
from .corpus import Corpus, find_ascending, sorted_pairs, starts_of
from .same_texts import cleaning_for, one_text_of
from .split import SplitPolicy, held_out, number_pictures
from .weigh_captions import weight_of_caption


def read_corpus(
    cache: Cache,
    teacher: str | None,
    policy: SplitPolicy | None,
    *,
    student: Checkpoint | None = None,
    caption_weights: Mapping[str, float] | None = None,
    allow_partial: bool = False,
) -> Corpus:
    """Return the training corpus: images with a target, and captions whose text has one.

    Rejected and uncommitted rows are left out. Memory at the peak is about 100 bytes an image, 90 a
    caption and 24 a text; the result takes 65, 8 and 8.

    Args:
        cache: the cache.
        teacher: name of the teacher; None: the only one.
        policy: which images are held out; None: none.
        student: checkpoint whose text tower reads the texts; its cleaning may make more of them equal.
        caption_weights: weights with which captions are drawn, by ``kind:NAME`` and ``language:NAME``.
        allow_partial: accept an unfinished cache and use what is committed.

    Raises:
        TrainError: the cache is unfinished and not allow_partial, or no image has a target.
        SettingError: there is no such teacher, kind or language, or no key matches the pattern of held-out
            keys.
        DamagedCacheError: a committed unit lacks hashes of its pictures.
    """
    record = cache.teacher(teacher)
    if not allow_partial:
        _refuse_unfinished(cache, record)
    rows_N, sha256_N, size_N2 = _read_pictures(cache, record.name)
    if len(rows_N) == 0:
        raise TrainError(
            f"{cache.root} has no image with a target by {record.name}; "
            f"run {_build_command(cache, record)}"
        )
    picture_N = number_pictures(sha256_N)
    targets = cache.text_targets(record.name)
    one_text = one_text_of(cache, targets, cleaning_for(record, student))
    captions = _read_captions(cache, rows_N, targets, one_text, caption_weights or {})
    return Corpus(
        rows_N=rows_N,
        sha256_N=sha256_N,
        size_N2=size_N2,
        picture_N=picture_N,
        is_val_N=np.zeros(len(rows_N), np.bool_)
        if policy is None
        else held_out(cache, policy, rows_N, sha256_N, picture_N),
        one_text=one_text,
        **captions,
    )


def has_same_picture(
    cache: Cache, teacher: str, corpus: Corpus, *, allow_partial: bool
) -> NDArray[np.bool_]:
    """Return which images of a corpus another teacher has a target of, for the same bytes, (N,).

    Raises:
        TrainError: the teacher is unfinished and not allow_partial.
    """
    if not allow_partial:
        _refuse_unfinished(cache, cache.teacher(teacher))
    rows, sha256, _ = _read_pictures(cache, teacher)
    at_N, is_there_N = find_ascending(rows, corpus.rows_N)
    is_there_N[is_there_N] = (sha256[at_N[is_there_N]] == corpus.sha256_N[is_there_N]).all(axis=1)
    return is_there_N


def _refuse_unfinished(cache: Cache, record: TeacherRecord) -> None:
    commits = cache.commits(record.name)
    open_units = {
        modality: [
            u.number
            for u in cache.manifest.units(modality)
            if (modality, u.number) not in commits.units
        ]
        for modality in MODALITIES
    }
    if not any(open_units.values()):
        return
    missing = " and ".join(
        f"{len(open_units[m]):,} of {sum(1 for _ in cache.manifest.units(m)):,} {m} units"
        for m in MODALITIES
    )
    raise TrainError(
        f"{cache.root} is unfinished: {record.name} has not embedded {missing}; finish it with "
        f"{_build_command(cache, record)} (and the options it was started with), or train on what is "
        "there with --allow-partial"
    )


def _build_command(cache: Cache, record: TeacherRecord) -> str:
    """Return the command that finishes a cache, without the options of its corpus."""
    if record.is_imported:
        words = ["siglip2-cache", "import", record.source, str(cache.root)]
        return shlex.join([*words, "--teacher-name", record.name])
    sources = [f"{s.name}={s.location}" if s.name else s.location for s in cache.sources.values()]
    words = ["siglip2-cache", "build", *sources, str(cache.root), "--teacher", record.source]
    if record.revision is not None:
        words += ["--revision", record.revision]
    if record.name != PurePath(record.source).name:
        words += ["--teacher-name", record.name]
    return shlex.join(words)


def _read_pictures(
    cache: Cache, teacher: str
) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.int32]]:
    """Return the rows that have a target, ascending, their SHA-256 (N, 32), and their sizes (N, 2)."""
    targets = cache.image_targets(teacher)
    rows: list[NDArray[np.int64]] = []
    digests: list[NDArray[np.uint8]] = []
    sizes: list[NDArray[np.int32]] = []
    for unit in sorted(cache.commits(teacher).units_of("image")):
        frame = cache.seen(teacher, unit)
        frame = frame.filter(pl.Series(targets.available(frame["row"].to_numpy())))
        if frame["sha256"].null_count():
            row = frame.filter(pl.col("sha256").is_null())["row"][0]
            raise DamagedCacheError(
                f"{cache.files.where(layout.images_part(teacher, unit))} lacks the hash of row {row}, "
                "which has a target; run siglip2-cache verify"
            )
        rows.append(frame["row"].to_numpy().astype(np.int64))
        digests.append(np.frombuffer(b"".join(frame["sha256"]), np.uint8).reshape(-1, 32))
        sizes.append(frame.select(pl.col("width", "height").fill_null(0)).to_numpy())
    return (
        np.concatenate([np.empty(0, np.int64), *rows]),
        np.concatenate([np.empty((0, 32), np.uint8), *digests]),
        np.concatenate([np.empty((0, 2), np.int32), *sizes]),
    )


def _read_captions(
    cache: Cache,
    rows_N: NDArray[np.int64],
    targets: Targets,
    one_text: NDArray[np.int64],
    weights: Mapping[str, float],
) -> dict[str, Any]:
    """Return the fields of a Corpus about captions."""
    table = cache.captions()
    langs = table.select(pl.col("lang").unique().sort(nulls_last=True)).collect()["lang"].to_list()
    weight = weight_of_caption(table, weights).alias("weight") if weights else pl.lit(1.0)
    captions = table.select("row", "text_row", weight.alias("weight")).collect()
    weight_C = captions["weight"].to_numpy(writable=True)
    row_C, text_C = captions["row"].to_numpy(), one_text[captions["text_row"].to_numpy()]
    position_C, is_used_C = find_ascending(rows_N, row_C)
    is_used_C &= targets.available(text_C)
    by_text_C, is_again_C = sorted_pairs(row_C, text_C)
    is_used_C[by_text_C[is_again_C]] = False
    if weights:
        # A text that an image has as several kinds or languages has the largest of their weights.
        starts = np.flatnonzero(~is_again_C)
        weight_C[by_text_C[starts]] = np.maximum.reduceat(weight_C[by_text_C], starts)
    position_C, text_C = position_C[is_used_C], text_C[is_used_C]
    order_C = np.argsort(position_C, kind="stable")
    return {
        "caption_start": starts_of(np.bincount(position_C, minlength=len(rows_N))),
        "caption_text_row": text_C[order_C],
        "caption_weight": weight_C[is_used_C][order_C] if weights else None,
        "langs": tuple(langs),
    }
