"""One teacher's part of the loss of a batch: what its terms are computed from, and their gradients.

Shape letters in this file:
    N = this process's images, M = texts of all processes, D = the student's width, E = the teacher's. Rows
    without a target by the teacher are in none of its terms, and N and M do not count them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...siglip import to_device
from ..data.batch import Batch
from ..distributed import Ranks
from ..losses.objective import BankImages, Counts, LossInputs, Objective, TextColumns
from ..terms import loss_terms
from .distiller import Distiller, Embedded


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLabels:
    """What one teacher's part of the loss of a batch needs besides its embeddings."""

    matching_2P: Tensor
    """int64 (image, text) of pairs that match, drawn or not, on the host."""

    bank: TextColumns | None
    """Texts of the bank term; None: there is no such term."""

    image_bank: BankImages | None = None
    """Images of the image_bank term; None: there is no such term."""


class TeacherPart:
    """The terms of one teacher."""

    def __init__(
        self,
        distiller: Distiller,
        objective: Objective,
        ranks: Ranks,
        batch: Batch,
        labels: BatchLabels,
        map_ED: Tensor | None,
        *,
        teacher: int,
    ) -> None:
        """Take the rows of a batch that the teacher has a target of.

        Args:
            distiller: what is trained.
            objective: its terms.
            ranks: this process among the others.
            batch: of this process.
            labels: of the rows that have a target.
            map_ED: fixed map from the teacher's width to the student's; None: there is none.
            teacher: number of the teacher, from 0.
        """
        self._distiller, self._objective, self._ranks = distiller, objective, ranks
        self._labels, self._map_ED, self._teacher = labels, map_ED, teacher
        self._taught = batch.taught(teacher)
        self.counts_by_rank: Sequence[tuple[int, int]] = [self.own_counts]
        """own_counts of all processes; set before inputs() is called."""

    @property
    def own_counts(self) -> tuple[int, int]:
        """Images of this process, and how many of them have a caption."""
        caption_NC = self._taught.caption_NC
        return len(caption_NC), int((caption_NC >= 0).any(axis=1).sum())

    def target_images(self) -> Tensor:
        """Return the targets of the images, mapped by the fixed map, if there is one."""
        return self._targets(self._on_device(self._taught.image_NE))

    def target_texts(self) -> Tensor:
        """Return the same of the texts of all processes."""
        return self._targets(self._on_device(self._taught.text_ME))

    def fit_map(self, embedded: Embedded, own_texts: slice) -> None:
        """Fit the learned map to these embeddings and all before.

        Args:
            embedded: all images and texts of this process.
            own_texts: these texts among those of all processes, with a target or not.
        """
        taught, images, texts = self._taught, None, None
        if embedded.image_ND is not None:
            rows_ND = self._taught_images(embedded.image_ND.detach())
            images = rows_ND, self._on_device(taught.image_NE)
        if embedded.text_MD is not None:
            rows_MD, own_ME = embedded.text_MD.detach(), self._on_device(taught.text_ME)[self._own]
            if taught.texts is not None:
                is_own = (taught.texts >= own_texts.start) & (taught.texts < own_texts.stop)
                rows_MD = rows_MD[to_device(taught.texts[is_own] - own_texts.start, rows_MD.device)]
            texts = rows_MD, own_ME
        self._distiller.fit_maps(images, texts, self._ranks, self._teacher)

    def gradient(
        self, term: str, value: Tensor, by: Sequence[Tensor], rows: LossInputs
    ) -> list[Tensor | None]:
        """Return the gradient of a term by some tensors, the first of which is that of all images if trained.

        It includes the terms of other processes in which this process's images are columns.
        """
        if rows.image_GD is None or not self._distiller.has_image:
            return _gradient(value, by)
        by_image, *others, by_all = _gradient(value, [*by, rows.image_GD])
        if not loss_terms()[term].needs_all_images:
            return [by_image, *others]
        summed_GD = self._ranks.sum(torch.zeros_like(rows.image_GD) if by_all is None else by_all)
        own_ND = summed_GD[rows.first_image : rows.first_image + len(rows.image_ND)]
        if self._taught.images is not None:
            images = to_device(self._taught.images, own_ND.device)
            own_ND = torch.zeros_like(by[0]).index_copy_(0, images, own_ND)
        return [own_ND if by_image is None else by_image + own_ND, *others]

    def inputs(self, image_ND: Tensor, text_MD: Tensor) -> LossInputs:
        """Return what the terms are computed from.

        Args:
            image_ND: the student's rows of all images of this process.
            text_MD: the student's rows of all texts of all processes.
        """
        taught, distiller = self._taught, self._distiller
        image_ND = self._taught_images(image_ND)
        if taught.texts is not None:
            text_MD = text_MD[to_device(taught.texts, image_ND.device)]
        teacher_image_NE = self._on_device(taught.image_NE)
        teacher_text_ME = self._on_device(taught.text_ME)
        scale, bias = distiller.scale_and_bias
        own, num_images = self._own, [images for images, _ in self.counts_by_rank]
        caption_NC = torch.from_numpy(taught.caption_NC)
        bank, image_bank = self._labels.bank, self._labels.image_bank
        bank_logit = None
        if bank is not None or image_bank is not None:
            bank_logit = distiller.bank_logit(self._teacher)
        texts = TextColumns(
            # The teacher's images are in the space that the map leads to.
            text=text_MD if distiller.has_image else self._mapped_texts(text_MD),
            caption_NC=caption_NC,
            matching_2P=self._labels.matching_2P,
            teacher_text_ME=teacher_text_ME,
        )
        image_GD = teacher_image_GE = None
        if self._objective.ignore_similar is not None or self._objective.needs_all_images:
            teacher_image_GE = self._ranks.gather_rows(teacher_image_NE, num_images)
            texts = self._with_all_captions(texts, num_images)
            bank = None if bank is None else self._with_all_captions(bank, num_images)
        if self._objective.needs_all_images:
            all_GD = self._ranks.gather_rows(image_ND.detach(), num_images)
            image_GD = all_GD.clone().requires_grad_(distiller.has_image)
        return LossInputs(
            image_ND=image_ND,
            mapped_image_NE=distiller.map_images(image_ND, self._teacher)
            if distiller.has_image
            else None,
            mapped_text_E=self._mapped_texts(text_MD[own]) if distiller.has_text else None,
            teacher_image_NE=teacher_image_NE,
            target_image_NE=self._targets(teacher_image_NE),
            target_text_E=self._targets(teacher_text_ME[own]) if distiller.has_text else None,
            texts=texts,
            bank=bank,
            image_bank=image_bank,
            counts=self._counts(teacher_image_NE, texts),
            scale=scale.exp(),
            bias=bias,
            bank_scale=None if bank_logit is None else bank_logit[0].exp(),
            bank_bias=None if bank_logit is None else bank_logit[1],
            own_texts=own,
            image_GD=image_GD,
            teacher_image_GE=teacher_image_GE,
            first_image=sum(num_images[: self._ranks.rank]),
        )

    @property
    def _own(self) -> slice:
        """This process's texts that have a target, among those of all processes."""
        bounds = self._taught.text_bounds
        return slice(int(bounds[self._ranks.rank]), int(bounds[self._ranks.rank + 1]))

    def _taught_images(self, rows: Tensor) -> Tensor:
        images = self._taught.images
        return rows if images is None else rows[to_device(images, rows.device)]

    def _mapped_texts(self, rows: Tensor) -> Tensor:
        return self._distiller.map_texts(rows, self._teacher)

    def _on_device(self, rows: Tensor) -> Tensor:
        """Return rows of the teacher on the device, in the student's dtype."""
        dtype = self._distiller.scale_and_bias[0].dtype
        return to_device(rows, self._distiller.device).to(dtype)

    def _targets(self, rows: Tensor) -> Tensor:
        """Return rows of the teacher mapped by the fixed map, if there is one."""
        return rows if self._map_ED is None else rows @ self._map_ED.to(rows)

    def _with_all_captions(self, columns: TextColumns, num_images: list[int]) -> TextColumns:
        caption_GC = self._ranks.gather_rows(columns.caption_NC, num_images)
        return replace(columns, caption_GC=caption_GC)

    def _counts(self, teacher_image_NE: Tensor, texts: TextColumns) -> Counts:
        """Return counts over all processes; skipped images are not counted."""
        columns = [texts] if self._labels.bank is None else [texts, self._labels.bank]
        weights = torch.stack(
            [self._objective.caption_weights(teacher_image_NE, each)[0].sum() for each in columns]
        )
        caption_weight, *bank_weight = self._ranks.sum(in_double(weights))
        return Counts(
            num_images=sum(images for images, _ in self.counts_by_rank),
            num_captioned=sum(captioned for _, captioned in self.counts_by_rank),
            num_texts=int(self._taught.text_bounds[-1]),
            caption_weight=caption_weight,
            bank_caption_weight=bank_weight[0] if bank_weight else None,
        )


def _gradient(value: Tensor, by: Sequence[Tensor]) -> list[Tensor | None]:
    """Return the gradient of a term by some tensors; None for each that it does not depend on."""
    if not value.requires_grad:  # a process without a captioned image
        return [None] * len(by)
    return list(torch.autograd.grad(value, list(by), retain_graph=True, allow_unused=True))


def in_double(values: Tensor) -> Tensor:
    """Return values in float64, where the device has it: mps does not."""
    return values if values.device.type == "mps" else values.double()
