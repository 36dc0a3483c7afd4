"""The loss of one batch over all processes, as a function of its embeddings.

Shape letters in this file:
    N = this process's images, M = texts of all processes, D = the student's width, E = the teacher's.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.batch import Batch
from ..distributed import Ranks
from ..losses.objective import BankImages, Counts, LossInputs, Objective, TextColumns
from ..terms import loss_terms
from .distiller import Distiller, Embedded, EmbeddingGradient


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLoss:
    """The loss of a batch over all processes, by term."""

    total: float
    values: Mapping[str, float]
    """Each term, without its weight."""

    floors: Mapping[str, float]
    """Lowest possible value of each term whose targets are probabilities: the teacher's entropy."""

    gradient_norms: Mapping[str, float]
    """Norm of each weighted term's gradient by the unit rows of all images; of all texts, without an image
    tower."""

    counts: Counts

    @property
    def is_finite(self) -> bool:
        """Return whether every term is a finite number."""
        return all(map(math.isfinite, self.values.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLabels:
    """What the loss of one batch needs besides its embeddings."""

    matching_2P: Tensor
    """int64 (image, text) of pairs that match, drawn or not."""

    bank: TextColumns | None
    """Texts of the bank term; None: there is no such term."""

    image_bank: BankImages | None = None
    """Images of the image_bank term; None: there is no such term."""


class BatchLoss:
    """The loss of one batch, computed once its embeddings are known."""

    def __init__(
        self,
        distiller: Distiller,
        objective: Objective,
        ranks: Ranks,
        batch: Batch,
        labels: BatchLabels,
        map_ED: Tensor | None,
    ) -> None:
        self._distiller, self._objective, self._ranks = distiller, objective, ranks
        self._batch, self._labels, self._map_ED = batch, labels, map_ED
        self._result: StepLoss | None = None

    def result(self) -> StepLoss:
        """Return the loss that gradient() computed."""
        assert self._result is not None
        return self._result

    def gradient(self, embedded: Embedded) -> EmbeddingGradient:
        """Return the gradient by this process's embeddings and by the head, times world_size.

        Args:
            embedded: all images and texts of this process, without a graph.
        """
        distiller, ranks = self._distiller, self._ranks
        with torch.enable_grad():
            image_ND, text_MD = self._own_images(embedded), self._all_texts(embedded)
            leaves = [
                rows.requires_grad_()
                for rows, is_trained in (
                    (image_ND, distiller.has_image),
                    (text_MD, distiller.has_text),
                )
                if is_trained
            ]
            head = distiller.head()
            rows = self._rows(image_ND, text_MD)
            values = self._objective.values(rows)
            gradients = [torch.zeros_like(leaf) for leaf in (*leaves, *head)]
            squares: list[Tensor] = []
            for term, value in values.items():
                weighted = value.value * self._objective.weights[term]
                by_term = self._gradient(term, weighted, [*leaves, *head], rows)
                squares.append(self._square(by_term[0], leaves[0]))
                for total, part in zip(gradients, by_term, strict=True):
                    if part is not None:
                        total += part
        self._result = self._summed(values, squares, rows.counts)
        by_text = None
        if distiller.has_text:
            by_text = ranks.sum(gradients[len(leaves) - 1])[self._own_texts] * ranks.world_size
        by_head = gradients[len(leaves) :]
        return EmbeddingGradient(
            image_ND=gradients[0] * ranks.world_size if distiller.has_image else None,
            text_MD=by_text,
            head=[gradient * ranks.world_size for gradient in by_head],
            is_last=True,
        )

    def fit_map(self, embedded: Embedded) -> None:
        """Fit the learned map to these embeddings and all before."""
        batch, images, texts = self._batch, None, None
        if embedded.image_ND is not None:
            images = embedded.image_ND.detach(), self._teacher(batch.teacher_image_NE)
        if embedded.text_MD is not None:
            own_ME = self._teacher(batch.teacher_text_ME)[self._own_texts]
            texts = embedded.text_MD.detach(), own_ME
        self._distiller.fit_maps(images, texts, self._ranks)

    def _gradient(
        self, term: str, value: Tensor, by: Sequence[Tensor], rows: LossInputs
    ) -> list[Tensor | None]:
        """Return the gradient of a term by some tensors, the first of which is ``rows.image_ND`` if trained.

        It includes the terms of other processes in which this process's images are columns.
        """
        if rows.image_GD is None or not self._distiller.has_image:
            return _gradient(value, by)
        by_image, *others, by_all = _gradient(value, [*by, rows.image_GD])
        if not loss_terms()[term].needs_all_images:
            return [by_image, *others]
        summed_GD = self._ranks.sum(torch.zeros_like(rows.image_GD) if by_all is None else by_all)
        own_ND = summed_GD[rows.first_image : rows.first_image + len(rows.image_ND)]
        return [own_ND if by_image is None else by_image + own_ND, *others]

    @property
    def _own_texts(self) -> slice:
        bounds = self._batch.text_bounds
        return slice(int(bounds[self._ranks.rank]), int(bounds[self._ranks.rank + 1]))

    def _own_images(self, embedded: Embedded) -> Tensor:
        """Return (N, D): this process's images; the teacher's where there is no image tower."""
        if embedded.image_ND is None:
            return self._targets(self._teacher(self._batch.teacher_image_NE))
        return embedded.image_ND

    def _all_texts(self, embedded: Embedded) -> Tensor:
        """Return (M, D): the texts of all processes; the teacher's where there is no text tower."""
        if not self._distiller.has_text:
            return self._targets(self._teacher(self._batch.teacher_text_ME))
        assert embedded.text_MD is not None
        counts = np.diff(self._batch.text_bounds).tolist()
        return self._ranks.gather_rows(embedded.text_MD, counts)

    def _rows(self, image_ND: Tensor, text_MD: Tensor) -> LossInputs:
        batch, distiller, device = self._batch, self._distiller, image_ND.device
        teacher_image_NE = self._teacher(batch.teacher_image_NE)
        teacher_text_ME = self._teacher(batch.teacher_text_ME)
        scale, bias = distiller.scale_and_bias
        own = self._own_texts
        caption_N = torch.from_numpy(batch.caption_N).to(device)
        bank, image_bank = self._labels.bank, self._labels.image_bank
        has_bank = bank is not None or image_bank is not None
        texts = TextColumns(
            # The teacher's images are in the space that the map leads to.
            text=text_MD if distiller.has_image else distiller.map_texts(text_MD),
            caption_N=caption_N,
            matching_2P=self._labels.matching_2P,
            teacher_text_ME=teacher_text_ME,
        )
        image_GD = teacher_image_GE = None
        ignores_similar, num_images = self._objective.ignore_similar is not None, list[int]()
        if ignores_similar or self._objective.needs_all_images:
            num_images = self._num_images_by_rank()
            teacher_image_GE = self._ranks.gather_rows(teacher_image_NE, num_images)
        if ignores_similar:
            texts = self._with_all_captions(texts, num_images)
            bank = None if bank is None else self._with_all_captions(bank, num_images)
        if self._objective.needs_all_images:
            all_GD = self._ranks.gather_rows(image_ND.detach(), num_images)
            image_GD = all_GD.clone().requires_grad_(distiller.has_image)
        return LossInputs(
            image_ND=image_ND,
            mapped_image_NE=distiller.map_images(image_ND) if distiller.has_image else None,
            mapped_text_E=distiller.map_texts(text_MD[own]) if distiller.has_text else None,
            teacher_image_NE=teacher_image_NE,
            target_image_NE=self._targets(teacher_image_NE),
            target_text_E=self._targets(teacher_text_ME[own]) if distiller.has_text else None,
            texts=texts,
            bank=bank,
            image_bank=image_bank,
            counts=self._counts(teacher_image_NE, texts),
            scale=scale.exp(),
            bias=bias,
            bank_scale=distiller.bank_scale.exp() if has_bank else None,
            bank_bias=distiller.bank_bias if has_bank else None,
            own_texts=own,
            image_GD=image_GD,
            teacher_image_GE=teacher_image_GE,
            first_image=sum(num_images[: self._ranks.rank]),
        )

    def _teacher(self, rows: Tensor) -> Tensor:
        """Return rows of the teacher on the device, in the student's dtype."""
        dtype = self._distiller.scale_and_bias[0].dtype
        return rows.to(self._distiller.device, non_blocking=True).to(dtype)

    def _targets(self, rows: Tensor) -> Tensor:
        """Return rows of the teacher mapped by the fixed map, if there is one."""
        return rows if self._map_ED is None else rows @ self._map_ED.to(rows)

    def _num_images_by_rank(self) -> list[int]:
        own = torch.zeros(self._ranks.world_size, dtype=torch.int64, device=self._distiller.device)
        own[self._ranks.rank] = len(self._batch.caption_N)
        return self._ranks.sum(own).tolist()

    def _with_all_captions(self, columns: TextColumns, num_images: list[int]) -> TextColumns:
        caption_G = self._ranks.gather_rows(columns.caption_N, num_images)
        return replace(columns, caption_G=caption_G)

    def _counts(self, teacher_image_NE: Tensor, texts: TextColumns) -> Counts:
        """Return counts over all processes; skipped images are not counted."""
        batch, bank = self._batch, self._labels.bank
        num_captioned = int((batch.caption_N >= 0).sum())
        if self._ranks.world_size == 1 and bank is None and self._objective.positives.kind == "all":
            # All known on the host: reading them from the device would wait for the forward pass.
            return Counts(
                num_images=len(batch.caption_N),
                num_captioned=num_captioned,
                num_texts=int(batch.text_bounds[-1]),
                caption_weight=float(num_captioned),
            )
        weights = [
            self._objective.caption_weights(teacher_image_NE, columns).sum()
            for columns in (texts, bank)
            if columns is not None
        ]
        counts = weights[0].new_tensor([len(batch.caption_N), num_captioned])
        summed = self._ranks.sum(_double(torch.cat([counts, torch.stack(weights)]))).tolist()
        num_images, num_captioned, *caption_weights = summed
        return Counts(
            num_images=int(num_images),
            num_captioned=int(num_captioned),
            num_texts=int(batch.text_bounds[-1]),
            caption_weight=caption_weights[0],
            bank_caption_weight=caption_weights[1] if bank is not None else 0.0,
        )

    def _square(self, by_rows: Tensor | None, rows: Tensor) -> Tensor:
        """Return this process's share of the squared norm of a gradient by all images, or all texts."""
        found = torch.zeros_like(rows) if by_rows is None else by_rows.detach().clone()
        if not self._distiller.has_image:  # each process has a part of the gradient by every text
            found = self._ranks.sum(found)[self._own_texts]
        return found.square().sum()

    def _summed(
        self, values: Mapping[str, Any], squares: Sequence[Tensor], counts: Counts
    ) -> StepLoss:
        zero = self._distiller.scale_and_bias[0].new_zeros(())
        parts = [each.value.detach() for each in values.values()]
        parts += [zero if each.floor is None else each.floor for each in values.values()]
        summed = self._ranks.sum(_double(torch.stack([*parts, *squares]))).tolist()
        n = len(values)
        terms = list(values)
        by_value = dict(zip(terms, summed[:n], strict=True))
        floors = dict(zip(terms, summed[n : 2 * n], strict=True))
        weights = self._objective.weights
        return StepLoss(
            total=sum(weights[term] * value for term, value in by_value.items()),
            values=by_value,
            floors={t: floors[t] for t in terms if values[t].floor is not None},
            gradient_norms={t: s**0.5 for t, s in zip(terms, summed[2 * n :], strict=True)},
            counts=counts,
        )


def _gradient(value: Tensor, by: Sequence[Tensor]) -> list[Tensor | None]:
    """Return the gradient of a term by some tensors; None for each that it does not depend on."""
    if not value.requires_grad:  # a process without a captioned image
        return [None] * len(by)
    return list(torch.autograd.grad(value, list(by), retain_graph=True, allow_unused=True))


def _double(values: Tensor) -> Tensor:
    """Return values in float64, where the device has it: mps does not."""
    return values if values.device.type == "mps" else values.double()
