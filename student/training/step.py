"""One optimizer step's gradient: exact for the whole batch, whatever fits in a forward pass.

A batch is embedded; the processes tell each other their texts; the gradient of the loss by every
embedding is found; and a second pass, piece by piece, carries it to the parameters. Where each process
holds all in one piece, the first pass is the second, too, and nothing is computed twice.

    Source: gradient caching, Gao et al. 2021, Scaling Deep Contrastive Learning Batch Size under
    Memory Limited Setup, arXiv:2101.06983.

Shape letters in this file:
    N = this process's images, M = texts of all processes, D = the student's width, E = the teacher's.
"""

import contextlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..config import Term
from ..data.batch import Batch
from ..distributed import Ranks
from ..losses.objective import Columns, Counts, Objective, Rows
from .distiller import Distiller, Embedded, Gradient, Piece


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLoss:
    """What a batch came to, over all processes; the gradients are in the parameters."""

    total: float
    values: Mapping[Term, float]
    """Each term, not weighed."""

    floors: Mapping[Term, float]
    """What no student can go below, of the terms whose targets are probabilities."""

    gradient_norms: Mapping[Term, float]
    """Of each weighed term, by the unit rows of all images."""

    counts: Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Knowledge:
    """What the loss of one batch needs beside the student's embeddings."""

    known_2P: Tensor
    """int64 (image, text) of pairs known to match."""

    bank: Columns | None
    """Of the bank term."""


class Gradients:
    """Computes the gradient of batches."""

    def __init__(
        self,
        distiller: Distiller,
        objective: Objective,
        ranks: Ranks,
        *,
        micro_batch_size: int | None,
        map_ED: Tensor | None = None,
    ) -> None:
        """Prepare; with several processes the parameters of the first become those of all.

        Args:
            distiller: on its device.
            objective: the loss.
            ranks: this process among the others.
            micro_batch_size: images, and texts, of one piece; None: all in one.
            map_ED: the fixed map from the teacher's width to the student's, where there is one.
        """
        self._distiller, self._objective, self._ranks = distiller, objective, ranks
        self._micro_batch_size, self._map_ED = micro_batch_size, map_ED
        self._module: nn.Module = distiller
        if ranks.world_size > 1:
            ddp = nn.parallel.DistributedDataParallel
            # Named so since torch 2.13, where the older name warns. Buffers are positions, all the same.
            is_new = "forward_sync_buffers" in inspect.signature(ddp).parameters
            sync: Any = {"forward_sync_buffers" if is_new else "broadcast_buffers": False}
            self._module = ddp(distiller, gradient_as_bucket_view=True, **sync)

    def compute(self, batch: Batch, knowledge: Knowledge) -> StepLoss:
        """Add the gradient of a batch's loss to the parameters'; return the loss.

        Raises:
            Whatever a forward pass raises; the gradients are then of no use.
        """
        pieces = split_batch(batch, self._micro_batch_size)
        loss = _BatchLoss(
            self._distiller, self._objective, self._ranks, batch, knowledge, self._map_ED
        )
        if self._is_one_piece(pieces):

            def backward(found: Embedded) -> Gradient:
                return loss.gradient(_detached(found))

            self._module(pieces[0], backward).backward()
            return loss.result()
        states, embedded = self._embed_without_graph(pieces)
        whole = loss.gradient(_concatenated(embedded))
        for i, piece in enumerate(pieces):
            is_last = i + 1 == len(pieces)
            share = _share(whole, embedded, i, is_last=is_last)
            with states[i].restored(), self._no_sync(not is_last):

                def give(_: Embedded, share: Gradient = share) -> Gradient:
                    return share

                self._module(piece, give).backward()
        return loss.result()

    def fit_map(self, batch: Batch, knowledge: Knowledge) -> StepLoss:
        """Take a batch in to the learned map's fit; return the loss it had before. No gradients."""
        pieces = split_batch(batch, self._micro_batch_size)
        _, embedded = self._embed_without_graph(pieces)
        loss = _BatchLoss(
            self._distiller, self._objective, self._ranks, batch, knowledge, self._map_ED
        )
        found = _concatenated(embedded)
        loss.gradient(found)
        loss.fit_map(found)
        return loss.result()

    def _is_one_piece(self, pieces: Sequence[Piece]) -> bool:
        """Return whether every process has all in one piece: if only some went the short way, DDP's own
        messages would meet the loss's, and all wait for ever."""
        if self._ranks.world_size == 1:
            return len(pieces) == 1
        further = torch.tensor(len(pieces) - 1, device=self._distiller.device)
        return int(self._ranks.sum(further)) == 0

    def _embed_without_graph(
        self, pieces: Sequence[Piece]
    ) -> tuple[list["RandomState"], list[Embedded]]:
        states: list[RandomState] = []
        embedded: list[Embedded] = []
        with torch.no_grad():
            for piece in pieces:
                states.append(RandomState(self._distiller.device))
                embedded.append(self._distiller.embed(piece))
        return states, embedded

    def _no_sync(self, is_wanted: bool) -> contextlib.AbstractContextManager[Any]:
        if is_wanted and isinstance(self._module, nn.parallel.DistributedDataParallel):
            return self._module.no_sync()
        return contextlib.nullcontext()


class RandomState:
    """torch's random state, so that a second pass draws the same (dropout)."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restored(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which it is as it was; afterwards it is as before the context."""
        devices = [self._device] if self._cuda is not None else []
        context = torch.random.fork_rng(devices)
        return _entered(context, self)

    def set(self) -> None:
        """Make it torch's state."""
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)


@contextlib.contextmanager
def _entered(context: Any, state: RandomState) -> Any:
    with context:
        state.set()
        yield


def split_batch(batch: Batch, micro_batch_size: int | None) -> list[Piece]:
    """Return the images and texts of a batch in pieces of at most that many of each."""
    N = len(batch.pixels_N)
    M = 0 if batch.ids_ML is None else len(batch.ids_ML)
    size = micro_batch_size or max(N, M, 1)
    grids = None
    if batch.grids_N2 is not None:
        grids = [(int(rows), int(columns)) for rows, columns in batch.grids_N2]
    return [
        Piece(
            pixels_N=batch.pixels_N[start : start + size],
            grids=None if grids is None else grids[start : start + size],
            ids_ML=None if batch.ids_ML is None else batch.ids_ML[start : start + size],
        )
        for start in range(0, max(N, M, 1), size)
    ]


class _BatchLoss:
    """The loss of one batch as a function of its embeddings."""

    def __init__(
        self,
        distiller: Distiller,
        objective: Objective,
        ranks: Ranks,
        batch: Batch,
        knowledge: Knowledge,
        map_ED: Tensor | None,
    ) -> None:
        self._distiller, self._objective, self._ranks = distiller, objective, ranks
        self._batch, self._knowledge, self._map_ED = batch, knowledge, map_ED
        self._result: StepLoss | None = None

    def result(self) -> StepLoss:
        """Return what gradient computed."""
        assert self._result is not None
        return self._result

    def gradient(self, found: Embedded) -> Gradient:
        """Return the gradient by all embeddings of this process and by the head, times world_size.

        Args:
            found: without graph.
        """
        distiller, ranks = self._distiller, self._ranks
        with torch.enable_grad():
            image_ND = found.image_ND.requires_grad_()
            text_MD = self._all_texts(found)
            leaves: list[Tensor] = [image_ND]
            if distiller.has_text:
                leaves.append(text_MD.requires_grad_())
            head = distiller.head()
            rows = self._rows(image_ND, text_MD)
            values = self._objective.values(rows)
            gradients = [torch.zeros_like(leaf) for leaf in (*leaves, *head)]
            squares: list[Tensor] = []
            for term, value in values.items():
                weighed = value.value * self._objective.weights[term]
                by_term = _gradient(weighed, [*leaves, *head])
                squares.append(_square(by_term[0], image_ND))
                for total, part in zip(gradients, by_term, strict=True):
                    if part is not None:
                        total += part
        self._result = self._summed(values, squares, rows.counts)
        by_text = None
        if distiller.has_text:
            by_text = ranks.sum(gradients[1])[self._own_texts] * ranks.world_size
        by_head = gradients[len(leaves) :]
        return Gradient(
            image_ND=gradients[0] * ranks.world_size,
            text_MD=by_text,
            head=[gradient * ranks.world_size for gradient in by_head],
            touches_all=True,
        )

    def fit_map(self, found: Embedded) -> None:
        """Fit the learned map to these embeddings and all before."""
        batch, texts = self._batch, None
        images = found.image_ND.detach(), self._teacher(batch.teacher_image_NE)
        if found.text_MD is not None:
            own_ME = self._teacher(batch.teacher_text_ME)[self._own_texts]
            texts = found.text_MD.detach(), own_ME
        self._distiller.fit_maps(images, texts, self._ranks)

    @property
    def _own_texts(self) -> slice:
        bounds = self._batch.text_bounds
        return slice(int(bounds[self._ranks.rank]), int(bounds[self._ranks.rank + 1]))

    def _all_texts(self, found: Embedded) -> Tensor:
        """Return (M, D): the texts of all processes; the teacher's where there is no text tower."""
        if not self._distiller.has_text:
            return self._targets(self._teacher(self._batch.teacher_text_ME))
        assert found.text_MD is not None
        counts = np.diff(self._batch.text_bounds).tolist()
        return self._ranks.gather_rows(found.text_MD, counts)

    def _rows(self, image_ND: Tensor, text_MD: Tensor) -> Rows:
        batch, distiller, device = self._batch, self._distiller, image_ND.device
        teacher_image_NE = self._teacher(batch.teacher_image_NE)
        teacher_text_ME = self._teacher(batch.teacher_text_ME)
        scale, bias = distiller.scale_and_bias
        own = self._own_texts
        caption_N = torch.from_numpy(batch.caption_N).to(device)
        has_bank = self._knowledge.bank is not None
        return Rows(
            image_ND=image_ND,
            mapped_image_NE=distiller.map_images(image_ND),
            mapped_text_E=distiller.map_texts(text_MD[own]) if distiller.has_text else None,
            teacher_image_NE=teacher_image_NE,
            target_image_NE=self._targets(teacher_image_NE),
            target_text_E=self._targets(teacher_text_ME[own]) if distiller.has_text else None,
            texts=Columns(
                text=text_MD,
                caption_N=caption_N,
                known_2P=self._knowledge.known_2P,
                teacher_text_ME=teacher_text_ME,
            ),
            bank=self._knowledge.bank,
            counts=self._counts(),
            scale=scale.exp(),
            bias=bias,
            bank_scale=distiller.bank_scale.exp() if has_bank else None,
            bank_bias=distiller.bank_bias if has_bank else None,
        )

    def _teacher(self, rows: Tensor) -> Tensor:
        """Return rows of the teacher on the device, in the student's dtype."""
        dtype = self._distiller.scale_and_bias[0].dtype
        return rows.to(self._distiller.device, non_blocking=True).to(dtype)

    def _targets(self, rows: Tensor) -> Tensor:
        """Return rows of the teacher through the fixed map."""
        return rows if self._map_ED is None else rows @ self._map_ED.to(rows)

    def _counts(self) -> Counts:
        """Return counts over all processes; images that could not be used are in none."""
        batch, bank = self._batch, self._knowledge.bank
        own = [len(batch.caption_N), int((batch.caption_N >= 0).sum())]
        own.append(0 if bank is None else int((bank.caption_N >= 0).sum()))
        summed = self._ranks.sum(torch.tensor(own, device=self._distiller.device)).tolist()
        num_images, num_captioned, num_bank = (int(count) for count in summed)
        return Counts(
            num_images=num_images,
            num_captioned=num_captioned,
            num_texts=int(batch.text_bounds[-1]),
            num_bank_captioned=num_bank,
        )

    def _summed(
        self, values: Mapping[Term, Any], squares: Sequence[Tensor], counts: Counts
    ) -> StepLoss:
        zero = self._distiller.scale_and_bias[0].new_zeros(())
        parts = [each.value.detach() for each in values.values()]
        parts += [zero if each.floor is None else each.floor for each in values.values()]
        stacked = torch.stack([*parts, *squares])
        if stacked.device.type != "mps":  # which has no float64
            stacked = stacked.double()
        found = self._ranks.sum(stacked).tolist()
        n = len(values)
        terms = list(values)
        by_value = dict(zip(terms, found[:n], strict=True))
        floors = dict(zip(terms, found[n : 2 * n], strict=True))
        weights = self._objective.weights
        return StepLoss(
            total=sum(weights[term] * value for term, value in by_value.items()),
            values=by_value,
            floors={t: floors[t] for t in terms if values[t].floor is not None},
            gradient_norms={t: s**0.5 for t, s in zip(terms, found[2 * n :], strict=True)},
            counts=counts,
        )


def _gradient(value: Tensor, by: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Return the gradient of a term's share; None for what it does not depend on, if on anything."""
    if not value.requires_grad:  # a process without a captioned image
        return (None,) * len(by)
    found = torch.autograd.grad(value, list(by), retain_graph=True, allow_unused=True)
    return cast("tuple[Tensor | None, ...]", found)


def _square(by_image: Tensor | None, image_ND: Tensor) -> Tensor:
    if by_image is None:
        return image_ND.new_zeros(())
    return by_image.detach().square().sum()


def _detached(found: Embedded) -> Embedded:
    text = None if found.text_MD is None else found.text_MD.detach()
    return Embedded(image_ND=found.image_ND.detach(), text_MD=text)


def _concatenated(embedded: Sequence[Embedded]) -> Embedded:
    texts = [each.text_MD for each in embedded if each.text_MD is not None]
    return Embedded(
        image_ND=torch.cat([each.image_ND for each in embedded]),
        text_MD=torch.cat(texts) if texts else None,
    )


def _share(whole: Gradient, embedded: Sequence[Embedded], i: int, *, is_last: bool) -> Gradient:
    """Return the part of a gradient that belongs to piece i; the head's goes with the last."""
    images = [len(each.image_ND) for each in embedded]
    texts = [0 if each.text_MD is None else len(each.text_MD) for each in embedded]
    first, first_text = sum(images[:i]), sum(texts[:i])
    by_text = whole.text_MD
    return replace(
        whole,
        image_ND=whole.image_ND[first : first + images[i]],
        text_MD=None if by_text is None else by_text[first_text : first_text + texts[i]],
        head=whole.head if is_last else (),
        touches_all=whole.touches_all and is_last,
    )
