"""DRRho: contrastive losses in which the teacher's cosine of a pair is taken off the student's.

A negative that the teacher finds near the own pair too weighs less. Source: DRRho-CLIP, Wei et al. 2025,
arXiv:2505.06699, and its code, in the form without moving averages (docs/reference/objectives.md).

Shape letters in this file:
    P = rows, each an own pair of this process, M = columns, C = rows of one chunk, E = the teacher's width,
    Q = pairs of a key and a value
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...siglip import to_device, unit_rows
from .objective import LossInputs, Objective, TermValue
from .pair_labels import MarkedPairs
from .pairwise_sum import ChunkSums, check_counts, compute_dtype, pairwise_sum, softplus

EPSILON = 1e-4
"""Added to the mean of a row. Source: the published training script."""


def drrho(inputs: LossInputs, objective: Objective) -> TermValue:
    """Return the mean of log(eps + mean of exp(d)) over drawn pairs, by image and by text, averaged.

    d is the shifted logit of a negative less that of the own pair. The pairs of an image count 1 together.
    The mean is divided by the scale, as the published loss is multiplied by its temperature.
    """
    image_GD, teacher_GE = inputs.all_images()
    texts, device = inputs.texts, inputs.image_ND.device
    assert texts.caption_GC is not None
    row_P, column_P = texts.drawn_pairs()
    is_drawn_GC = texts.caption_GC >= 0
    same_text = _values_of(column_P, texts.caption_GC[is_drawn_GC], is_drawn_GC.nonzero()[:, 0])
    column = to_device(column_P, device)
    labels = ShiftedLabels(
        teacher_row_PE=texts.teacher_text_ME[column],
        teacher_column_ME=teacher_GE,
        own_P=row_P + inputs.first_image,
        ignored=MarkedPairs(*same_text, (len(row_P), len(image_GD))),
        weight_P=_weights(row_P),
        scale=objective.drrho_scale,
        form="softmax",
    )
    by_text = pairwise_sum(texts.text[column], image_GD, labels, scale=labels.scale, bias=0)
    by_image = _by_image(inputs, objective, "softmax")
    mean = (by_image + by_text.loss_sum) / (2 * max(1, inputs.counts.num_captioned))
    return TermValue(mean / objective.drrho_scale)


def drrho_sigmoid(inputs: LossInputs, objective: Objective) -> TermValue:
    """Return SigLIP's loss of shifted logits plus the log odds of the own text, over captioned images."""
    return TermValue(_by_image(inputs, objective, "sigmoid") / max(1, inputs.counts.num_captioned))


def _by_image(
    inputs: LossInputs, objective: Objective, form: Literal["softmax", "sigmoid"]
) -> Tensor:
    texts = inputs.texts
    row_P, column_P = texts.drawn_pairs()
    matching = _values_of(row_P, *texts.matching_2P)
    row = to_device(row_P, inputs.image_ND.device)
    labels = ShiftedLabels(
        teacher_row_PE=inputs.teacher_image_NE[row],
        teacher_column_ME=texts.teacher_text_ME,
        own_P=column_P,
        ignored=MarkedPairs(*matching, (len(row_P), len(texts.text))),
        weight_P=_weights(row_P),
        scale=objective.drrho_scale,
        form=form,
    )
    rows = inputs.image_ND[row]
    return pairwise_sum(rows, texts.text, labels, scale=labels.scale, bias=0).loss_sum


def _weights(row_P: Tensor) -> Tensor:
    """Return 1 divided by the drawn captions of each pair's image, (P,), on the host."""
    return 1 / torch.bincount(row_P)[row_P].double() if len(row_P) else row_P.double()


def _values_of(wanted_P: Tensor, key_Q: Tensor, value_Q: Tensor) -> tuple[Tensor, Tensor]:
    """Return (position in wanted_P, value) of every pair whose key is wanted, ascending by position."""
    key_Q, order_Q = key_Q.sort(stable=True)
    first_P, end_P = (torch.searchsorted(key_Q, wanted_P, right=right) for right in (False, True))
    count_P = end_P - first_P
    position = torch.repeat_interleave(count_P)
    at = torch.arange(len(position)) - (count_P.cumsum(0) - count_P - first_P)[position]
    return position, value_Q[order_Q[at]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShiftedLabels:
    """One own column of each row; all others are negatives unless ignored."""

    teacher_row_PE: Tensor
    """Any float dtype, need not be normalised; no gradient."""

    teacher_column_ME: Tensor
    """Like teacher_row_PE."""

    own_P: Tensor
    """int64 own column of each row, on the host."""

    ignored: MarkedPairs
    """Pairs that match, own ones or not."""

    weight_P: Tensor
    """Weight of each row, on the host."""

    scale: float
    """Factor of the cosines of student and teacher."""

    form: Literal["softmax", "sigmoid"]

    @property
    def dtype(self) -> torch.dtype:
        """float64 where a teacher embedding is float64, else float32."""
        return compute_dtype(self.teacher_row_PE, self.teacher_column_ME)

    def chunk_loss(
        self, num_rows: int, num_columns: int, *, dtype: torch.dtype, chunk_size: int
    ) -> "_ShiftedChunkLoss":
        """Return the loss of chunks of rows; see Labels.

        Raises:
            ValueError: the teacher's rows or columns are not as many as the student's.
        """
        given = (len(self.teacher_row_PE), len(self.teacher_column_ME))
        check_counts(given, (num_rows, num_columns))
        device = self.teacher_row_PE.device
        return _ShiftedChunkLoss(
            unit_rows(self.teacher_row_PE.detach().to(dtype)) * self.scale,
            unit_rows(self.teacher_column_ME.detach().to(dtype)),
            to_device(self.own_P, device),
            to_device(self.weight_P.to(dtype), device),
            self.ignored.chunks(chunk_size),
            chunk_size,
            self.form,
        )


@dataclass(frozen=True, slots=True, eq=False)
class _ShiftedChunkLoss:
    scaled_row_PE: Tensor
    column_ME: Tensor
    own_P: Tensor
    weight_P: Tensor
    ignored: list[tuple[Tensor, Tensor]]
    chunk_size: int
    form: Literal["softmax", "sigmoid"]

    def __call__(self, start: int, logits_CM: Tensor, *, needs_gradient: bool) -> ChunkSums:
        chunk = slice(start, start + len(logits_CM))
        shifted_CM = logits_CM - self.scaled_row_PE[chunk] @ self.column_ME.T
        own = torch.arange(len(logits_CM), device=logits_CM.device), self.own_P[chunk]
        is_negative_CM = torch.ones_like(logits_CM, dtype=torch.bool)
        ignored = self.ignored[start // self.chunk_size]
        is_negative_CM[tuple(to_device(each, logits_CM.device) for each in ignored)] = False
        is_negative_CM[own] = False
        log_count_C1 = is_negative_CM.sum(1, keepdim=True).clamp(min=1).to(shifted_CM).log()
        of_form = self._softmax if self.form == "softmax" else self._sigmoid
        loss_C, gradient_CM = of_form(shifted_CM, own, is_negative_CM, log_count_C1)
        weight_C = self.weight_P[chunk]
        gradient = gradient_CM * weight_C[:, None] if needs_gradient else None
        return ChunkSums((loss_C * weight_C).sum(), loss_C.new_zeros(()), gradient)

    def _softmax(
        self, shifted_CM: Tensor, own: tuple[Tensor, Tensor], negative_CM: Tensor, log_count: Tensor
    ) -> tuple[Tensor, Tensor]:
        d_CM = shifted_CM - shifted_CM[own][:, None] - log_count
        d_CM = d_CM.masked_fill(~negative_CM, -torch.inf)
        log_mean_C1 = d_CM.logsumexp(1, keepdim=True)
        loss_C1 = torch.logaddexp(torch.full_like(log_mean_C1, math.log(EPSILON)), log_mean_C1)
        gradient_CM = (d_CM - loss_C1).exp()
        gradient_CM[own] = -gradient_CM.sum(1)
        return loss_C1[:, 0], gradient_CM

    def _sigmoid(
        self, shifted_CM: Tensor, own: tuple[Tensor, Tensor], negative_CM: Tensor, log_count: Tensor
    ) -> tuple[Tensor, Tensor]:
        z_CM = shifted_CM - log_count
        opposite_C = -z_CM[own]
        loss_C = (softplus(z_CM) * negative_CM).sum(1) + softplus(opposite_C)
        gradient_CM = z_CM.sigmoid() * negative_CM
        gradient_CM[own] = -opposite_C.sigmoid()
        return loss_C, gradient_CM
