"""The targets of one teacher for the images of a corpus, some of which may lack one.

Shape letters in this file: I = images of the corpus    N = images of a batch    M = its texts
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import TrainError
from ...store.cache import Cache
from ...store.format.row_encoding import row_scales
from ...store.targets.targets import Targets
from .batch import BatchTargets
from .corpus import Corpus
from .read_corpus import has_same_picture

_TILE_ROWS = 256
"""Rows that are restored at a time: 256 of 1152 float32 values, twice, are 2.4 MB and stay in the
processor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainTargets:
    """One teacher's targets, and which images of a corpus have one."""

    images: Targets
    texts: Targets
    has_image_I: NDArray[np.bool_] | None
    """(I,); None: all images and all captions of the corpus have a target."""

    num_missing_texts: int = 0
    """Number of captions' texts without a target."""

    @property
    def num_missing(self) -> int:
        """Number of images without a target."""
        return 0 if self.has_image_I is None else int(np.count_nonzero(~self.has_image_I))

    def image_rows(self, corpus: Corpus) -> NDArray[np.int64]:
        """Return the rows of a corpus that have a target."""
        return corpus.rows_N if self.has_image_I is None else corpus.rows_N[self.has_image_I]

    def read(
        self,
        positions_N: NDArray[np.int64],
        rows_N: NDArray[np.int64],
        views_N: NDArray[np.int64],
        text_rows_M: NDArray[np.int64],
    ) -> BatchTargets:
        """Return the targets of a batch.

        Args:
            positions_N: its images, as positions in the corpus.
            rows_N: the same as rows of the cache.
            views_N: view of each.
            text_rows_M: its texts.
        """
        if self.has_image_I is None:
            return BatchTargets(
                image_NE=read_targets(self.images, rows_N, views_N),
                text_ME=read_targets(self.texts, text_rows_M),
            )
        has_image_N = self.has_image_I[positions_N]
        image_NE, _ = self.images.read_masked(np.where(has_image_N, rows_N, -1), views_N)
        text_ME, has_text_M = self.texts.read_masked(text_rows_M)
        return BatchTargets(
            image_NE=_tensor(image_NE),
            text_ME=_tensor(text_ME),
            has_image_N=has_image_N,
            has_text_M=has_text_M,
        )


def first_targets(cache: Cache, teacher: str | None) -> TrainTargets:
    """Return the targets of the teacher that the corpus was read for, which has them all."""
    return TrainTargets(
        images=cache.image_targets(teacher), texts=cache.text_targets(teacher), has_image_I=None
    )


def further_targets(
    cache: Cache, teacher: str, corpus: Corpus, *, allow_partial: bool = False
) -> TrainTargets:
    """Return the targets of another teacher for the same corpus.

    An image lacks one if the teacher rejected it, or saw other bytes than the first did.

    Raises:
        TrainError: the teacher has no target of the corpus, or is unfinished and not allow_partial.
    """
    has_image_I = has_same_picture(cache, teacher, corpus, allow_partial=allow_partial)
    if not has_image_I.any():
        raise TrainError(
            f"teacher {teacher} has no target of the {corpus.num_images:,} images to train on; leave it "
            "out, or name it first"
        )
    texts = cache.text_targets(teacher)
    num_missing_texts = int(np.count_nonzero(~texts.available(corpus.text_rows)))
    is_whole = bool(has_image_I.all()) and not num_missing_texts
    return TrainTargets(
        images=cache.image_targets(teacher),
        texts=texts,
        has_image_I=None if is_whole else has_image_I,
        num_missing_texts=num_missing_texts,
    )


def read_targets(
    targets: Targets, rows_N: NDArray[np.int64], views_N: NDArray[np.int64] | None = None
) -> Tensor:
    """Return targets as ``targets.read`` does, (N, E) float16; int8 rows are restored by torch.

    It takes three fifths of the time of numpy. A value amid two of float16 may become the other one.
    """
    if targets.rotation is None:
        return _tensor(targets.read(rows_N, views_N))
    stored_NS = targets.read_rows(rows_N, views_N)
    rotation_DD, E = torch.from_numpy(targets.rotation), targets.shape[-1]
    scale_N1, stored = torch.from_numpy(row_scales(stored_NS))[:, None], torch.from_numpy(stored_NS)
    found_NE = torch.empty(len(stored), E, dtype=torch.float16)
    room = torch.empty(2, min(_TILE_ROWS, len(stored)), E)
    for first in range(0, len(stored), _TILE_ROWS):
        tile = slice(first, first + _TILE_ROWS)
        steps_TE, values_TE = room[:, : len(found_NE[tile])]
        steps_TE.copy_(stored[tile, :E])
        D = len(rotation_DD)
        torch.mm(steps_TE.view(-1, D), rotation_DD, out=values_TE.view(-1, D))
        found_NE[tile] = values_TE.mul_(scale_N1[tile])
    return found_NE


def _tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))
