"""What there is to learn from: the images of a cache that a teacher has embedded, and their captions.

Shape letters in this file:
    N = images, ascending by row    C = captions, those of one image together    M = texts    K = pairs
"""

import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath

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
from .same_texts import cleaning_for, one_text_of
from .split import SplitPolicy, held_out, number_pictures, repeats


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Images that have a target by one teacher, and those of their captions whose text has one."""

    rows_N: NDArray[np.int64]
    """(N,) rows of the cache, ascending."""

    sha256_N: NDArray[np.uint8]
    """(N, 32) SHA-256 of the bytes that the teacher saw."""

    picture_N: NDArray[np.int64]
    """(N,) equal if and only if the SHA-256 is; a number that means nothing else."""

    is_val_N: NDArray[np.bool_]
    """(N,) whether the image is held out."""

    caption_start: NDArray[np.int64]
    """(N + 1,) captions caption_start[i] to below caption_start[i + 1] are those of image i."""

    caption_text_row: NDArray[np.int64]
    """(C,) text_row of each caption, as one_text has it; none stands twice with one image."""

    caption_lang: NDArray[np.int32]
    """(C,) positions in langs."""

    langs: tuple[str | None, ...]
    """Languages of the cache's captions, sorted; None, of those without one, last."""

    one_text: NDArray[np.int64]
    """(T,) for each text_row of the cache the one that stands for it: texts that are equal after
    cleaning ("A dog", "a dog") are one text."""

    def __len__(self) -> int:
        return len(self.rows_N)

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.rows_N)

    @property
    def num_captions(self) -> int:
        """C: how often an image goes with a text."""
        return len(self.caption_text_row)

    @property
    def caption_counts(self) -> NDArray[np.int64]:
        """(N,) captions of each image."""
        return np.diff(self.caption_start)

    @property
    def num_captioned(self) -> int:
        """Images that have a caption."""
        return int(np.count_nonzero(self.caption_counts))

    @cached_property
    def text_rows(self) -> NDArray[np.int64]:
        """Every text_row that is a caption here, ascending, each once."""
        return np.unique(self.caption_text_row)

    def select(self, mask_N: NDArray[np.bool_]) -> "Corpus":
        """Return the images where a mask is true, e.g. ``corpus.select(~corpus.is_val_N)``."""
        if mask_N.shape != self.rows_N.shape or mask_N.dtype != np.bool_:
            raise ValueError(
                f"mask must be bool of shape {self.rows_N.shape}, got {mask_N.dtype} {mask_N.shape}"
            )
        counts_N = self.caption_counts
        keep_C = np.repeat(mask_N, counts_N)
        return Corpus(
            rows_N=self.rows_N[mask_N],
            sha256_N=self.sha256_N[mask_N],
            picture_N=self.picture_N[mask_N],
            is_val_N=self.is_val_N[mask_N],
            caption_start=starts_of(counts_N[mask_N]),
            caption_text_row=self.caption_text_row[keep_C],
            caption_lang=self.caption_lang[keep_C],
            langs=self.langs,
            one_text=self.one_text,
        )

    def known_pairs(
        self, positions_N: NDArray[np.int64], text_rows_M: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return which of some images and some texts are known to match.

        A text matches an image if it is a caption of it, or of any image here of the same bytes.

        Args:
            positions_N: positions in this corpus, in any order, repeats allowed.
            text_rows_M: texts, in any order, each once.

        Returns:
            (2, K): positions in positions_N and in text_rows_M, ascending by the first, then by the
            second.
        """
        start, texts = self._texts_of_pictures
        picture_N = self.picture_N[positions_N]
        image_K, at_K = expand_ranges(start[picture_N], start[picture_N + 1])
        order_M = np.argsort(text_rows_M, kind="stable")
        column_K, is_there_K = _find(text_rows_M[order_M], texts[at_K])
        image_K, column_K = image_K[is_there_K], order_M[column_K[is_there_K]]
        order_K = np.lexsort((column_K, image_K))
        return np.stack([image_K[order_K], column_K[order_K]])

    @cached_property
    def _texts_of_pictures(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(pictures + 1,) starts and the texts of each picture, each once."""
        picture_C = np.repeat(self.picture_N, self.caption_counts)
        order_C, is_again_C = _sorted_pairs(picture_C, self.caption_text_row)
        order_C = order_C[~is_again_C]
        num_pictures = int(self.picture_N.max(initial=-1)) + 1
        counts = np.bincount(picture_C[order_C], minlength=num_pictures)
        return starts_of(counts), self.caption_text_row[order_C]


def read_corpus(
    cache: Cache,
    teacher: str | None,
    policy: SplitPolicy | None,
    *,
    student: Checkpoint | None = None,
    allow_partial: bool = False,
) -> Corpus:
    """Return what a student can learn from: images with a target, captions whose text has one.

    Rows that were rejected or are not committed are not among them. Takes some 100 bytes of memory
    an image, 90 a caption and 24 a text, at its peak; what is returned takes 57, 12 and 8.

    Args:
        cache: the cache.
        teacher: name of the teacher; None is the only one.
        policy: which images are held out; None: none.
        student: whose text tower will be run on the texts, and may find more of them equal.
        allow_partial: take what is committed of an unfinished cache.

    Raises:
        TrainError: the cache is unfinished and that is not allowed, or no image has a target.
        SettingError: no such teacher, or no key is like the pattern of what is held out.
        DamagedCacheError: the pictures of a committed unit are not recorded as they should be.
    """
    record = cache.teacher(teacher)
    if not allow_partial:
        _refuse_unfinished(cache, record)
    rows_N, sha256_N = _read_pictures(cache, record.name)
    if len(rows_N) == 0:
        raise TrainError(
            f"{cache.root} has no image with a target by {record.name}; "
            f"{_build_command(cache, record)} makes them"
        )
    picture_N = number_pictures(sha256_N)
    targets = cache.text_targets(record.name)
    one_text = one_text_of(cache, targets, cleaning_for(record, student))
    start, text_row_C, lang_C, langs = _read_captions(cache, rows_N, targets, one_text)
    return Corpus(
        rows_N=rows_N,
        sha256_N=sha256_N,
        picture_N=picture_N,
        is_val_N=np.zeros(len(rows_N), np.bool_)
        if policy is None
        else held_out(cache, policy, rows_N, sha256_N, picture_N),
        caption_start=start,
        caption_text_row=text_row_C,
        caption_lang=lang_C,
        langs=langs,
        one_text=one_text,
    )


def starts_of(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each of consecutive runs of these lengths starts, and where the last ends."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def expand_ranges(
    first: NDArray[np.int64], end: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the members of ranges one after the other: which range each is of, and its value."""
    counts = end - first
    which = np.repeat(np.arange(len(counts)), counts)
    return which, np.arange(len(which)) - np.repeat(starts_of(counts)[:-1] - first, counts)


# -- reading


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
        f"{cache.root} is unfinished: {record.name} has yet to embed {missing}; finish it with "
        f"{_build_command(cache, record)} (and the options it was begun with), or train on what "
        "there is with --allow-partial"
    )


def _build_command(cache: Cache, record: TeacherRecord) -> str:
    """Return the command that finishes a cache, without the options that its corpus needed."""
    sources = [f"{s.name}={s.location}" if s.name else s.location for s in cache.sources.values()]
    words = ["siglip2-cache", "build", *sources, str(cache.root), "--teacher", record.source]
    if record.revision is not None:
        words += ["--revision", record.revision]
    if record.name != PurePath(record.source).name:
        words += ["--teacher-name", record.name]
    return shlex.join(words)


def _read_pictures(cache: Cache, teacher: str) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Return the rows that have a target, ascending, and the SHA-256 of each, (N, 32)."""
    targets = cache.image_targets(teacher)
    rows: list[NDArray[np.int64]] = []
    digests: list[NDArray[np.uint8]] = []
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
    none = np.empty((0, 32), np.uint8)
    return np.concatenate([np.empty(0, np.int64), *rows]), np.concatenate([none, *digests])


def _read_captions(
    cache: Cache, rows_N: NDArray[np.int64], targets: Targets, one_text: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32], tuple[str | None, ...]]:
    """Return the starts of each image's captions, their texts and languages, the languages' names."""
    names = cache.captions().select(pl.col("lang").drop_nulls().unique()).collect()["lang"]
    known = sorted(names.to_list())
    code = pl.col("lang").cast(pl.Enum(known)).to_physical().cast(pl.Int32).fill_null(len(known))
    captions = cache.captions().select("row", "text_row", code).collect()
    row_C, text_C = captions["row"].to_numpy(), one_text[captions["text_row"].to_numpy()]
    position_C, is_used_C = _find(rows_N, row_C)
    is_used_C &= targets.available(text_C)
    by_text_C, is_again_C = _sorted_pairs(row_C, text_C)
    is_used_C[by_text_C[is_again_C]] = False
    position_C, text_C = position_C[is_used_C], text_C[is_used_C]
    lang_C = captions["lang"].to_numpy()
    langs = (*known, None) if (lang_C == len(known)).any() else tuple(known)
    lang_C = lang_C[is_used_C]
    order_C = np.argsort(position_C, kind="stable")
    counts_N = np.bincount(position_C, minlength=len(rows_N))
    return starts_of(counts_N), text_C[order_C], lang_C[order_C], langs


def _sorted_pairs(
    first_C: NDArray[np.int64], second_C: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the stable order of pairs, and of each in that order whether the one before is equal.

    One key of both, for the first are nearly sorted already: a fifth of the time of a lexsort.
    """
    key_C = first_C * (second_C.max(initial=0) + 1) + second_C  # below 2**63: 1e9 rows, 9e9 texts
    order_C = np.argsort(key_C, kind="stable")
    return order_C, repeats(key_C[order_C][:, None])


def _find(
    ascending: NDArray[np.int64], wanted: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return where each value stands among ascending ones, and whether it does stand there."""
    if len(ascending) == 0:
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.bool_)
    at = np.searchsorted(ascending, wanted).clip(max=len(ascending) - 1)
    return at, ascending[at] == wanted
