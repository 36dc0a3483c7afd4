"""One batch, and how it is filled: images that cannot be used are skipped, the others packed.

Shape letters in this file:
    N = images of this rank that could be used    M = different texts of the global batch
    V = views of each image in a step             L = tokens    E = width of the teacher
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...images.image import DecodedBatch
from ...siglip import Checkpoint, NaflexRecipe
from .sampler import GlobalBatch, Sampler


@dataclass(slots=True, kw_only=True)
class Batch:
    """One rank's part of a global batch.

    Tensors are on the CPU. Token ids and targets are pinned if the device is CUDA; pixels are not: the
    trainer pins those of a micro-batch at a time.
    """

    step: int
    epoch: int

    positions_N: NDArray[np.int64]
    """(N,) positions in the corpus, without skipped images. N is 0 if all are skipped."""

    views_N: NDArray[np.int64]
    """(N,) view of each image."""

    pixels_N: Tensor | None
    """(N, *view_shape) uint8 of the student's own recipe: (N, H, W, 3), or patches for NaFlex; None if only
    the text tower is trained."""

    grids_N2: NDArray[np.int64] | None
    """(N, 2) rows and columns of patches; None for a student of fixed resolution."""

    caption_N: NDArray[np.int64]
    """(N,) position of each image's drawn caption in text_rows_M; -1 for none."""

    text_rows_M: NDArray[np.int64]
    """(M,) the different texts of the global batch, those of skipped images too."""

    text_bounds: NDArray[np.int64]
    """(world_size + 1,) rank r encodes texts text_bounds[r] to below text_bounds[r + 1]."""

    ids_ML: Tensor | None
    """(own M, L) int64 token ids of this rank's texts; None if only the image tower is trained."""

    teacher_image_NE: Tensor
    """(N, E) float16, L2-normalised: the targets of these views."""

    teacher_text_ME: Tensor
    """(M, E) float16, L2-normalised: those of all texts of the global batch."""

    skipped: list[tuple[str, str]]
    """Key and reason of each skipped image of this rank."""

    wait_s: float = 0.0
    """Seconds that the training waited for this batch."""

    read_targets_s: float = 0.0
    """Seconds spent reading its targets."""


class FillingBatch:
    """A batch whose images are being decoded; usable ones are packed in order of arrival."""

    def __init__(self, global_batch: GlobalBatch, sampler: Sampler, checkpoint: Checkpoint) -> None:
        self.global_batch = global_batch
        self._V, self._num_views = sampler.views_per_step, sampler.images_per_rank
        shape = (self._num_views, *checkpoint.image.view_shape)
        self.pixels = torch.empty(shape, dtype=torch.uint8)
        self._grids: list[NDArray[np.int64]] | None = (
            [] if isinstance(checkpoint.image, NaflexRecipe) else None
        )
        self.is_used = np.zeros(self._num_views, np.bool_)
        self.faults: dict[int, str] = {}
        """Reason by position in the corpus."""
        self._own = global_batch.positions_N[sampler.rank_slice]
        self.num_seen = 0
        self._num_used = 0

    @property
    def is_full(self) -> bool:
        """Whether all images have arrived."""
        return self.num_seen == self._num_views

    @property
    def grids(self) -> NDArray[np.int64] | None:
        """(N, 2) rows and columns of patches; None for a student of fixed resolution."""
        return None if self._grids is None else np.concatenate(self._grids)

    def add(self, piece: DecodedBatch, faults: list[str | None]) -> None:
        """Pack the images of a decoded piece that have no fault; record the faults of the others."""
        pixels, grids = piece.flat_views()
        is_used = np.repeat([fault is None for fault in faults], self._V)
        at = self.num_seen
        self.is_used[at : at + len(is_used)] = is_used
        for i, fault in enumerate(faults):
            if fault is not None:
                self.faults[int(self._own[at + i * self._V])] = fault
        num = int(is_used.sum())
        room = self.pixels[self._num_used : self._num_used + num].numpy()
        room[:] = pixels if num == len(pixels) else pixels[is_used]
        if self._grids is not None:
            self._grids.append(grids[is_used])
        self.num_seen += len(is_used)
        self._num_used += num
