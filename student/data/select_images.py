"""Selecting training images, by the teacher's score of their captions or by a list of keys.

Shape letters in this file: N = images of the train split    C = captions of a block    E = width
"""

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ...errors import SettingError
from ...store.cache import Cache
from ..selection import Selection
from .corpus import Corpus

_BLOCK = 65_536
"""Captions whose targets, and those of their images, are in memory at once."""


def select_images(
    train: Corpus, cache: Cache, teacher: str, selection: Selection
) -> tuple[NDArray[np.bool_], str | None]:
    """Return which images of the train split are used, (N,), and a line about it; None if all are.

    Every rank computes it, before ranks exchange anything: equal input gives equal choices, and ranks of a
    machine share what is read.

    Raises:
        SettingError: no image has a caption, or the list names none of them or an unknown key.
    """
    if selection.kind == "keep":
        return _with_best_captions(train, cache, teacher, selection.share)
    if selection.file is not None:
        return _of_list(train, cache, selection.file)
    return np.ones(len(train), np.bool_), None


def caption_scores(train: Corpus, cache: Cache, teacher: str) -> NDArray[np.float32]:
    """Return the teacher's mean cosine of each image and its captions, (N,); NaN without a caption.

    Images are read by their whole view. Captions of weight 0 do not count.
    """
    images, texts = cache.image_targets(teacher), cache.text_targets(teacher)
    sums_N = np.zeros(len(train))
    for first in range(0, train.num_captions, _BLOCK):
        caption_C = np.arange(first, min(first + _BLOCK, train.num_captions))
        image_C = np.searchsorted(train.caption_start, caption_C, side="right") - 1
        image_CE = images.read(train.rows_N[image_C]).astype(np.float32)
        text_CE = texts.read(train.caption_text_row[caption_C]).astype(np.float32)
        cosine_C = (image_CE * text_CE).sum(axis=1)
        if train.caption_weight is not None:
            cosine_C *= train.caption_weight[caption_C] > 0
        np.add.at(sums_N, image_C, cosine_C)
    with np.errstate(invalid="ignore"):  # 0 / 0 without a caption
        return (sums_N / train.drawable_counts).astype(np.float32)


def _with_best_captions(
    train: Corpus, cache: Cache, teacher: str, share: float
) -> tuple[NDArray[np.bool_], str]:
    scores_N = caption_scores(train, cache, teacher)
    num_captioned = int(np.isfinite(scores_N).sum())
    weighed = "" if train.caption_weight is None else " of a weight above 0"
    if not num_captioned:
        raise SettingError(
            f"select keep={share:g} needs captions{weighed}, and {cache.root} has none in its train split"
        )
    num_kept = max(1, round(share * num_captioned))
    best = np.argsort(-scores_N, kind="stable")[:num_kept]  # NaN last
    is_used_N = np.zeros(len(train), np.bool_)
    is_used_N[best] = True
    without = len(train) - num_captioned
    left_out = f"; {without:,} without a caption{weighed} are left out" if without else ""
    return is_used_N, (
        f"select keep={share:g}: {num_kept:,} of {num_captioned:,} captioned images, whose mean cosine to "
        f"their captions is at least {scores_N[best[-1]]:.3f} by the teacher{left_out}; in as many steps "
        f"each is shown {len(train) / num_kept:.3g} times as often"
    )


def _of_list(train: Corpus, cache: Cache, file: Path) -> tuple[NDArray[np.bool_], str]:
    try:
        # Not splitlines(), which also splits at characters inside keys, such as U+2028.
        keys = {line for line in file.read_text("utf-8-sig").split("\n") if line}
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(
            f"select keys={file} cannot be read ({error}); name a text file"
        ) from error
    samples = cache.samples().select("row", "key").filter(pl.col("key").is_in(list(keys))).collect()
    unknown = keys - set(samples["key"])
    if unknown:
        raise SettingError(
            f"{len(unknown):,} of {len(keys):,} keys of {file} are not in {cache.root} (such as "
            f"{min(unknown)!r}); remove them from the list"
        )
    is_used_N = np.isin(train.rows_N, samples["row"].to_numpy())
    num_used = int(is_used_N.sum())
    if not num_used:
        raise SettingError(f"{file} names no image of the train split of {cache.root}")
    return is_used_N, (
        f"select keys={file}: {num_used:,} of {len(train):,} images of the train split; in as many steps "
        f"each is shown {len(train) / num_used:.3g} times as often"
    )
