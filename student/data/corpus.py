"""The training corpus in memory: images of a cache that a teacher has embedded, and their captions.

Shape letters in this file:
    N = images, ascending by row    C = captions, those of one image together    M = texts    K = pairs
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .split import repeats


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Images that have a target by one teacher, and those of their captions whose text has one."""

    rows_N: NDArray[np.int64]
    """(N,) rows of the cache, ascending."""

    sha256_N: NDArray[np.uint8]
    """(N, 32) SHA-256 of the bytes that the teacher saw."""

    size_N2: NDArray[np.int32]
    """(N, 2) width and height of the upright image that the teacher saw; 0 where they are not known."""

    picture_N: NDArray[np.int64]
    """(N,) equal if and only if the SHA-256 is; a number that means nothing else."""

    is_val_N: NDArray[np.bool_]
    """(N,) whether the image is held out."""

    caption_start: NDArray[np.int64]
    """(N + 1,) captions caption_start[i] to below caption_start[i + 1] are those of image i."""

    caption_text_row: NDArray[np.int64]
    """(C,) text_row of each caption, replaced by one_text; an image has each text once."""

    caption_weight: NDArray[np.float64] | None = None
    """(C,) weight of each caption where captions are drawn; None: all equal."""

    langs: tuple[str | None, ...]
    """Languages of the cache's captions, sorted; None, of those without one, last."""

    one_text: NDArray[np.int64]
    """(T,) for each text_row of the cache the text_row of the text it equals after cleaning ("A dog",
    "a dog")."""

    def __len__(self) -> int:
        return len(self.rows_N)

    @property
    def num_images(self) -> int:
        """N, the number of images."""
        return len(self.rows_N)

    @property
    def num_captions(self) -> int:
        """C, over all images."""
        return len(self.caption_text_row)

    @property
    def caption_counts(self) -> NDArray[np.int64]:
        """(N,) captions of each image."""
        return np.diff(self.caption_start)

    @property
    def drawable_counts(self) -> NDArray[np.int64]:
        """(N,) captions of each image that can be drawn, those of a weight above 0."""
        if self.caption_weight is None:
            return self.caption_counts
        num_before = starts_of((self.caption_weight > 0).astype(np.int64))
        return np.diff(num_before[self.caption_start])

    @property
    def num_captioned(self) -> int:
        """Number of images with a caption that can be drawn."""
        return int(np.count_nonzero(self.drawable_counts))

    @cached_property
    def text_rows(self) -> NDArray[np.int64]:
        """All text_rows that are captions, ascending, each once."""
        return np.unique(self.caption_text_row)

    @property
    def drawable_text_rows(self) -> NDArray[np.int64]:
        """All text_rows that are captions of a weight above 0, ascending, each once."""
        if self.caption_weight is None:
            return self.text_rows
        return np.unique(self.caption_text_row[self.caption_weight > 0])

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
            size_N2=self.size_N2[mask_N],
            picture_N=self.picture_N[mask_N],
            is_val_N=self.is_val_N[mask_N],
            caption_start=starts_of(counts_N[mask_N]),
            caption_text_row=self.caption_text_row[keep_C],
            caption_weight=None if self.caption_weight is None else self.caption_weight[keep_C],
            langs=self.langs,
            one_text=self.one_text,
        )

    def matching_pairs(
        self, positions_N: NDArray[np.int64], text_rows_M: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return which of some images and texts match.

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
        column_K, is_there_K = find_ascending(text_rows_M[order_M], texts[at_K])
        image_K, column_K = image_K[is_there_K], order_M[column_K[is_there_K]]
        order_K = np.lexsort((column_K, image_K))
        return np.stack([image_K[order_K], column_K[order_K]])

    @cached_property
    def _texts_of_pictures(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(pictures + 1,) starts, and the text_rows of each picture, each once."""
        picture_C = np.repeat(self.picture_N, self.caption_counts)
        order_C, is_again_C = sorted_pairs(picture_C, self.caption_text_row)
        order_C = order_C[~is_again_C]
        num_pictures = int(self.picture_N.max(initial=-1)) + 1
        counts = np.bincount(picture_C[order_C], minlength=num_pictures)
        return starts_of(counts), self.caption_text_row[order_C]


def unseen_text_rows(train: Corpus, held_out: Corpus) -> NDArray[np.int64]:
    """Return the drawable text_rows of a corpus that are no captions of held-out images, ascending."""
    return np.setdiff1d(train.drawable_text_rows, held_out.text_rows, assume_unique=True)


def starts_of(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the start of each of consecutive runs of these lengths, and the end of the last."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def expand_ranges(
    first: NDArray[np.int64], end: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the values of all ranges in order: (number of the range, value)."""
    counts = end - first
    which = np.repeat(np.arange(len(counts)), counts)
    return which, np.arange(len(which)) - np.repeat(starts_of(counts)[:-1] - first, counts)


def sorted_pairs(
    first_C: NDArray[np.int64], second_C: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the stable order of pairs, and for each in that order whether it equals the one before.

    Sorting one combined key takes a fifth of the time of a lexsort, since the firsts are nearly sorted.
    """
    key_C = first_C * (second_C.max(initial=0) + 1) + second_C  # below 2**63: 1e9 rows, 9e9 texts
    order_C = np.argsort(key_C, kind="stable")
    return order_C, repeats(key_C[order_C][:, None])


def find_ascending(
    ascending: NDArray[np.int64], wanted: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the position of each value among ascending ones, and whether it is there."""
    if len(ascending) == 0:
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.bool_)
    at = np.searchsorted(ascending, wanted).clip(max=len(ascending) - 1)
    return at, ascending[at] == wanted
