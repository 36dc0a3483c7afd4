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
from ...store.targets.targets import Targets
from .batch import BatchTargets
from .corpus import Corpus
from .read_corpus import has_same_picture


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainTargets:
    """One teacher's targets, and which images of a corpus have one."""

    images: Targets
    texts: Targets
    has_image_I: NDArray[np.bool_] | None
    """(I,); None: all images and all captions of the corpus have a target."""

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
            image_NE, text_ME = self.images.read(rows_N, views_N), self.texts.read(text_rows_M)
            return BatchTargets(image_NE=_tensor(image_NE), text_ME=_tensor(text_ME))
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
    is_whole = bool(has_image_I.all()) and bool(texts.available(corpus.text_rows).all())
    return TrainTargets(
        images=cache.image_targets(teacher),
        texts=texts,
        has_image_I=None if is_whole else has_image_I,
    )


def _tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))
