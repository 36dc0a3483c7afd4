"""The gradient of one optimizer step: exact for the whole batch, whatever fits in a forward pass.

1. Embed the batch, a micro-batch at a time, without a graph.
2. Exchange texts between the processes; compute the gradient of the loss by every embedding (batch_loss.py).
3. Run each micro-batch again with a graph and carry that gradient to the parameters.

If the batch is one micro-batch in every process, steps 1 and 3 are one forward pass. Several processes
first try a new size of micro-batches for two steps, without messages: out_of_memory.py says why.

Source: gradient caching, Gao et al. 2021, Scaling Deep Contrastive Learning Batch Size under Memory Limited
Setup, arXiv:2101.06983.
"""

import contextlib
import inspect
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..data.batch import Batch
from ..distributed import Ranks
from ..losses.objective import Objective
from .batch_loss import BatchLabels, BatchLoss, DeviceLoss
from .distiller import Distiller, Embedded, EmbeddingGradient, MicroBatch
from .out_of_memory import memory_checked
from .piece_feed import PieceFeed

_TRIED_STEPS = 2
"""AdamW's moments come with the first step, so that the second needs as much memory as all later ones."""


class GradientCache:
    """Computes the gradient of batches."""

    def __init__(
        self,
        distiller: Distiller,
        objectives: Sequence[Objective],
        ranks: Ranks,
        *,
        micro_batch_size: int | None,
        map_ED: Tensor | None = None,
        padded_size: tuple[int, int] | None = None,
    ) -> None:
        """Wrap the distiller in DDP if there are several processes; rank 0's parameters go to all.

        Args:
            distiller: on its device.
            objectives: the loss, of each teacher.
            ranks: this process among the others.
            micro_batch_size: images, and texts, of one micro-batch; None: all in one.
            map_ED: fixed map from the teacher's width to the student's; None: there is none.
            padded_size: (images, texts) that every micro-batch is padded to, for compiled layers; None: no
                padding.
        """
        self._distiller, self._objectives, self._ranks = distiller, objectives, ranks
        self.micro_batch_size = micro_batch_size
        self._map_ED = None if map_ED is None else map_ED.to(distiller.device)
        self._padded_size = padded_size
        self._feed = PieceFeed(distiller.device)
        self._num_tried = 0
        self._module: nn.Module = distiller
        if ranks.world_size > 1:
            ddp = nn.parallel.DistributedDataParallel
            # torch 2.13 renamed the option and warns about the old name. Buffers are positions: all equal.
            is_new = "forward_sync_buffers" in inspect.signature(ddp).parameters
            sync: Any = {"forward_sync_buffers" if is_new else "broadcast_buffers": False}
            self._module = ddp(distiller, gradient_as_bucket_view=True, **sync)

    def shrink(self, micro_batch_size: int) -> None:
        """Take smaller micro-batches from now on, and drop the gradients of a step that did not fit."""
        self.micro_batch_size = micro_batch_size
        if self._padded_size is not None:
            images, texts = self._padded_size
            self._padded_size = min(images, micro_batch_size), min(texts, micro_batch_size)
        self._num_tried = 0
        self._module.zero_grad(set_to_none=True)

    def embed(self, batch: Batch) -> tuple[Embedded, bool]:
        """Return the rows of a batch without a graph, and whether another pass would give the same.

        Raises:
            DoesNotFit: a micro-batch is too large.
        """
        before = RandomState(self._distiller.device)
        micro_batches = split_batch(batch, self.micro_batch_size, self._padded_size)
        _, embedded = self._embed_without_graph(micro_batches)
        return _concatenated(embedded), before.is_current()

    def compute(
        self, batch: Batch, labels: Sequence[BatchLabels], embedded: Embedded | None = None
    ) -> DeviceLoss:
        """Add the gradient of a batch's loss to the parameters'; return the loss, without waiting for it.

        The gradients are unusable if this raises; shrink() drops them.

        Args:
            batch: of this process.
            labels: what its loss needs besides, of each teacher.
            embedded: its rows, if they are known, which saves the pass without a graph; None: they are not.

        Raises:
            DoesNotFit: a micro-batch is too large.
        """
        micro_batches = split_batch(batch, self.micro_batch_size, self._padded_size)
        if self._ranks.world_size > 1 and self._num_tried < _TRIED_STEPS:
            self._try_passes(micro_batches[0])
            self._num_tried += 1
        loss = self._loss_of(batch, labels, len(micro_batches))
        # If only some took the short way, DDP's messages would meet the loss's, and all would wait for ever.
        if loss.is_one_micro_batch:
            with memory_checked(self._ranks) as fits:

                def backward(embedded: Embedded) -> EmbeddingGradient:
                    fits()
                    return loss.gradient(_detached(embedded))

                [micro_batch] = self._feed.pieces(micro_batches)
                self._module(micro_batch, backward).backward()
            return loss.result()
        if embedded is None:
            states, parts = self._embed_without_graph(micro_batches)
            whole = loss.gradient(_concatenated(parts))
        else:
            states = [RandomState(self._distiller.device) for _ in micro_batches]
            whole = loss.gradient(_detached(embedded))
        with memory_checked(self._ranks) as fits:
            for i, micro_batch in enumerate(self._feed.pieces(micro_batches)):
                is_last = i + 1 == len(micro_batches)
                part = _part_of_gradient(whole, micro_batches, i, is_last=is_last)
                # Any forward pass of DDP may send messages, and processes have more or fewer pieces.
                module = self._module if is_last else self._distiller
                if is_last:
                    fits()
                with states[i].restored():

                    def give(_: Embedded, part: EmbeddingGradient = part) -> EmbeddingGradient:
                        return part

                    total = module(micro_batch, give)
                    if total.requires_grad:  # not with rows of a frozen tower alone
                        total.backward()
        return loss.result()

    def fit_map(self, batch: Batch, labels: Sequence[BatchLabels]) -> DeviceLoss:
        """Fit the learned maps to this batch and all before; return the loss before the fit.

        Computes no gradient. A batch whose loss is not finite is left out of the fit.

        Raises:
            DoesNotFit: a micro-batch is too large.
        """
        micro_batches = split_batch(batch, self.micro_batch_size, self._padded_size)
        _, embedded_parts = self._embed_without_graph(micro_batches)
        loss = self._loss_of(batch, labels, len(micro_batches))
        embedded = _concatenated(embedded_parts)
        loss.gradient(embedded)
        if loss.result().is_finite.item():
            loss.fit_map(embedded)
        return loss.result()

    def _try_passes(self, micro_batch: MicroBatch) -> None:
        """Run the largest micro-batch forward and backward without a message, and drop the gradients.

        While gradients are sent, processes wait for each other, and one without memory ends the run.

        Raises:
            DoesNotFit: it is too large in one of the processes.
        """
        state = RandomState(self._distiller.device)
        with memory_checked(self._ranks) as fits:
            with state.restored():
                for piece in self._feed.pieces([micro_batch]):
                    total = self._distiller(piece, _zero_gradient)
                    if total.requires_grad:  # not without rows, or of a frozen tower alone
                        total.backward()
            fits()
        self._module.zero_grad(set_to_none=True)

    def _loss_of(
        self, batch: Batch, labels: Sequence[BatchLabels], num_micro_batches: int
    ) -> BatchLoss:
        return BatchLoss(
            self._distiller,
            self._objectives,
            self._ranks,
            batch,
            labels,
            self._map_ED,
            num_micro_batches=num_micro_batches,
        )

    def _embed_without_graph(
        self, micro_batches: Sequence[MicroBatch]
    ) -> tuple[list["RandomState"], list[Embedded]]:
        states: list[RandomState] = []
        embedded: list[Embedded] = []
        with torch.no_grad(), memory_checked(self._ranks) as fits:
            for micro_batch in self._feed.pieces(micro_batches):
                states.append(RandomState(self._distiller.device))
                embedded.append(self._distiller.embed(micro_batch))
            fits()
        return states, embedded


class RandomState:
    """torch's random state at one moment, so that a second pass drops out the same activations."""

    def __init__(self, device: torch.device) -> None:
        """Copy the state of the CPU and, on CUDA and mps, of the device."""
        self._device = device
        self._states = self._current()

    def is_current(self) -> bool:
        """Return whether no random number was drawn since."""
        return all(map(torch.equal, self._states, self._current()))

    @contextlib.contextmanager
    def restored(self) -> Generator[None]:
        """Return a context with this state; leaving it brings back the state before the context."""
        before = self._current()
        self._set(self._states)
        try:
            yield
        finally:
            self._set(before)

    def _current(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        if self._device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self._device))
        elif self._device.type == "mps":
            states.append(torch.mps.get_rng_state())
        return states

    def _set(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(states[1], self._device)
        elif self._device.type == "mps":
            torch.mps.set_rng_state(states[1])


def split_batch(
    batch: Batch, micro_batch_size: int | None, padded_size: tuple[int, int] | None = None
) -> list[MicroBatch]:
    """Return the images and texts of a batch as micro-batches of at most that many of each.

    Args:
        batch: of one process.
        micro_batch_size: None: all in one, if padded_size holds them.
        padded_size: images and texts after padding with zeros; None: no padding.
    """
    N = 0 if batch.pixels_N is None else len(batch.pixels_N)
    M = 0 if batch.ids_ML is None else len(batch.ids_ML)
    size = micro_batch_size or max(padded_size or (N, M, 1))
    grids = None
    if batch.grids_N2 is not None:
        grids = [(int(rows), int(columns)) for rows, columns in batch.grids_N2]

    def part(start: int) -> MicroBatch:
        cut = slice(start, start + size)
        pixels_N = None if batch.pixels_N is None else batch.pixels_N[cut]
        ids_ML = None if batch.ids_ML is None else batch.ids_ML[cut]
        part_grids = None if grids is None else grids[cut]
        patches = None if batch.patches is None else batch.patches.part(cut)
        num_images, num_texts = (0 if rows is None else len(rows) for rows in (pixels_N, ids_ML))
        if padded_size is not None:
            if part_grids is not None:
                part_grids = part_grids + [(1, 1)] * (padded_size[0] - num_images)
            pixels_N = None if pixels_N is None else _padded(pixels_N, padded_size[0])
            ids_ML = None if ids_ML is None else _padded(ids_ML, padded_size[1])
        return MicroBatch(
            pixels_N=pixels_N,
            grids=part_grids,
            ids_ML=ids_ML,
            num_images=num_images,
            num_texts=num_texts,
            patches=patches,
        )

    return [part(start) for start in range(0, max(N, M, 1), size)]


def _padded(rows: Tensor, size: int) -> Tensor:
    """Return rows followed by zeros, ``size`` in all; ``rows`` itself if it has as many."""
    if len(rows) >= size:
        return rows
    return torch.cat([rows, rows.new_zeros(size - len(rows), *rows.shape[1:])])


def _zero_gradient(embedded: Embedded) -> EmbeddingGradient:
    rows = (embedded.image_ND, embedded.text_MD, embedded.patch_N)
    image_ND, text_MD, patch_N = (None if each is None else torch.zeros_like(each) for each in rows)
    return EmbeddingGradient(image_ND=image_ND, text_MD=text_MD, patch_N=patch_N)


def _detached(embedded: Embedded) -> Embedded:
    image, text, patch = embedded.image_ND, embedded.text_MD, embedded.patch_N
    return Embedded(
        image_ND=None if image is None else image.detach(),
        text_MD=None if text is None else text.detach(),
        patch_N=None if patch is None else patch.detach(),
    )


def _concatenated(parts: Sequence[Embedded]) -> Embedded:
    images = [each.image_ND for each in parts if each.image_ND is not None]
    texts = [each.text_MD for each in parts if each.text_MD is not None]
    patches = [each.patch_N for each in parts if each.patch_N is not None]
    return Embedded(
        image_ND=torch.cat(images) if images else None,
        text_MD=torch.cat(texts) if texts else None,
        patch_N=torch.cat(patches) if patches else None,
    )


def _part_of_gradient(
    whole: EmbeddingGradient, micro_batches: Sequence[MicroBatch], i: int, *, is_last: bool
) -> EmbeddingGradient:
    """Return the part of a gradient that belongs to micro-batch i; the head's goes with the last."""

    def part(whole_rows: Tensor | None, counts: Sequence[int]) -> Tensor | None:
        first = sum(counts[:i])
        return None if whole_rows is None else whole_rows[first : first + counts[i]]

    num_images = [each.num_images for each in micro_batches]
    return replace(
        whole,
        image_ND=part(whole.image_ND, num_images),
        patch_N=part(whole.patch_N, num_images),
        text_MD=part(whole.text_MD, [each.num_texts for each in micro_batches]),
        head=whole.head if is_last else (),
        is_last=whole.is_last and is_last,
    )
