"""One batch, and how it is filled: images that cannot be used are skipped, the others packed.

Shape letters in this file:
    N = images of this rank that could be used    M = different texts of the global batch
    V = views of each image in a step             L = tokens    E = width of the teacher
    C = captions drawn for an image
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...images.image import DecodedBatch
from ...siglip import Checkpoint, NaflexRecipe
from .sampler import GlobalBatch, Sampler


@dataclass(frozen=True, slots=True)
class PatchCells:
    """Patch targets of some images, on the CPU."""

    values_NCP: Tensor
    """(N, C, P) float16: the cells of each view in row order, then zeros."""

    grids_N2: NDArray[np.int64]
    """(N, 2) rows and columns of cells of each view."""

    def part(self, images: slice | NDArray[np.bool_]) -> "PatchCells":
        """Return those of some of the images."""
        chosen = images if isinstance(images, slice) else torch.from_numpy(images)
        return PatchCells(self.values_NCP[chosen], self.grids_N2[images])


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTargets:
    """One teacher's targets of a batch."""

    image_NE: Tensor
    """(N, E) float16, L2-normalised: those of the views; NaN where there is none."""

    text_ME: Tensor
    """(M, E) float16, L2-normalised: those of all texts of the global batch; NaN where there is none."""

    has_image_N: NDArray[np.bool_] | None = None
    """(N,) which images have one; None: all."""

    has_text_M: NDArray[np.bool_] | None = None
    """(M,) which texts have one; None: all."""

    def pinned(self) -> "BatchTargets":
        """Return the same in pinned memory."""
        return replace(self, image_NE=self.image_NE.pin_memory(), text_ME=self.text_ME.pin_memory())

    def select(self, images_N: NDArray[np.bool_], texts_M: NDArray[np.bool_]) -> "BatchTargets":
        """Return those of some images and texts."""
        return BatchTargets(
            image_NE=self.image_NE[torch.from_numpy(images_N)],
            text_ME=self.text_ME[torch.from_numpy(texts_M)],
            has_image_N=None if self.has_image_N is None else self.has_image_N[images_N],
            has_text_M=None if self.has_text_M is None else self.has_text_M[texts_M],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TaughtRows:
    """The images and texts of a batch that have a target by one teacher. N and M count these alone."""

    positions_N: NDArray[np.int64]
    caption_NC: NDArray[np.int64]
    text_rows_M: NDArray[np.int64]
    text_bounds: NDArray[np.int64]
    image_NE: Tensor
    text_ME: Tensor
    images: Tensor | None
    """int64 positions of these images in the batch; None: all."""

    texts: Tensor | None
    """int64 positions of these texts in the batch; None: all."""


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

    caption_NC: NDArray[np.int64]
    """(N, C) positions of each image's drawn captions in text_rows_M; -1 for none."""

    text_rows_M: NDArray[np.int64]
    """(M,) the different texts of the global batch, those of skipped images too."""

    text_bounds: NDArray[np.int64]
    """(world_size + 1,) rank r encodes texts text_bounds[r] to below text_bounds[r + 1]."""

    ids_ML: Tensor | None
    """(own M, L) int64 token ids of this rank's texts; None if only the image tower is trained."""

    targets: list[BatchTargets]
    """Those of each teacher."""

    patches: PatchCells | None = None
    """The patch targets of these views; None unless a term needs them."""

    skipped: list[tuple[str, str]]
    """Key and reason of each skipped image of this rank."""

    wait_s: float = 0.0
    """Seconds that the training waited for this batch."""

    read_targets_s: float = 0.0
    """Seconds spent reading its targets."""

    def taught(self, teacher: int) -> TaughtRows:
        """Return the images and texts that have a target by a teacher, counted from 0."""
        targets = self.targets[teacher]
        images, texts = (
            None if has is None else np.flatnonzero(has)
            for has in (targets.has_image_N, targets.has_text_M)
        )
        positions_N, caption_NC = self.positions_N, self.caption_NC
        text_rows_M, text_bounds = self.text_rows_M, self.text_bounds
        if images is not None:
            positions_N, caption_NC = positions_N[images], caption_NC[images]
        if texts is not None and targets.has_text_M is not None:
            caption_NC, text_bounds = among(targets.has_text_M, caption_NC, text_bounds)
            text_rows_M = text_rows_M[texts]
        return TaughtRows(
            positions_N=positions_N,
            caption_NC=caption_NC,
            text_rows_M=text_rows_M,
            text_bounds=text_bounds,
            image_NE=targets.image_NE if images is None else targets.image_NE[images],
            text_ME=targets.text_ME if texts is None else targets.text_ME[texts],
            images=None if images is None else torch.from_numpy(images),
            texts=None if texts is None else torch.from_numpy(texts),
        )


def among(
    kept_M: NDArray[np.bool_], caption_NC: NDArray[np.int64], text_bounds: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return captions and bounds as positions among the texts that are kept; -1 for a caption that is not."""
    before_M = np.concatenate([[0], np.cumsum(kept_M)])
    is_kept_NC = (caption_NC >= 0) & np.append(kept_M, False)[caption_NC]
    return np.where(is_kept_NC, before_M[caption_NC], -1), before_M[text_bounds]


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
