"""The loss of a step: its terms, weighed and added up, each divided by counts of the whole batch.

A process has the rows of its own images and the columns of all processes' texts. What it computes is
its share; the shares of all add up to the loss of the batch, gradients too.

Shape letters in this file:
    N = this process's images, M = texts of all processes, K = bank texts, D = the student's width,
    E = the teacher's width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import BankLabels, Term
from .functional import cosine_distillation_sum
from .pair_labels import AlikeTexts, HardLabels, MarkedPairs, SoftLabels
from .pairwise_bce import pairwise_sum


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Texts that this process's images meet, and what is known of them."""

    text: Tensor
    """(M, D) of the student, or (K, E or D) of the teacher."""

    caption_N: Tensor
    """int64 column of each image's drawn caption; -1 where it has none here."""

    known_2P: Tensor
    """int64 (image, column) of pairs known to match; beside the drawn caption they are ignored."""

    teacher_text_ME: Tensor
    """The teacher's rows of the same texts."""

    def hard_labels(self, num_images: int, alike: AlikeTexts | None = None) -> HardLabels:
        """Return the labels that say only which caption is whose."""
        shape = (num_images, len(self.text))
        is_captioned_N = self.caption_N >= 0
        rows = is_captioned_N.nonzero()[:, 0]
        ones = torch.ones(self.known_2P.shape[1], dtype=torch.bool, device=self.known_2P.device)
        ignore = torch.sparse_coo_tensor(self.known_2P, ones, shape, check_invariants=False)
        positive = MarkedPairs(rows, self.caption_N[is_captioned_N], shape)
        return HardLabels(positive=positive, ignore_NM=ignore, alike=alike)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Of the whole batch, all processes together."""

    num_images: int
    num_captioned: int
    num_texts: int
    num_bank_captioned: int = 0
    """Images whose drawn caption is among the columns of the bank term."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What the loss of this process's share is computed from."""

    image_ND: Tensor
    """Of the student, unit rows; a leaf with gradient."""

    mapped_image_NE: Tensor
    """The same through the learned map, else the same."""

    mapped_text_E: Tensor | None
    """Of this process's own texts, through the learned map, else as they are; None where there is no
    text tower."""

    teacher_image_NE: Tensor
    target_image_NE: Tensor
    """What mapped_image_NE is compared with: the teacher's rows, or these by PCA."""

    target_text_E: Tensor | None
    """What mapped_text_E is compared with."""

    texts: Columns
    bank: Columns | None
    counts: Counts
    scale: Tensor
    """The student's, exponential applied."""

    bias: Tensor
    bank_scale: Tensor | None = None
    bank_bias: Tensor | None = None


@dataclass(frozen=True, slots=True)
class TermValue:
    """This process's share of one term."""

    value: Tensor
    """Scalar with gradient, not weighed."""

    floor: Tensor | None = None
    """Scalar: what no student can go below; the entropy of the teacher's probabilities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Which terms there are, and what they need to know of the teacher."""

    weights: Mapping[Term, float]
    teacher_scale: float
    """Exponential applied."""

    teacher_bias: float
    bank_labels: BankLabels = "soft"
    bank_threshold: float = 0.95

    @property
    def terms(self) -> list[Term]:
        """Those of a weight above 0, in a fixed order."""
        order: tuple[Term, ...] = ("soft", "cosine", "contrastive", "bank")
        return [term for term in order if self.weights[term] > 0]

    def values(self, rows: Rows) -> dict[Term, TermValue]:
        """Return this process's share of each term."""
        compute = {
            "soft": self._soft,
            "cosine": self._cosine,
            "contrastive": self._contrastive,
            "bank": self._bank,
        }
        return {term: compute[term](rows) for term in self.terms}

    def _soft(self, rows: Rows) -> TermValue:
        labels = self._soft_labels(rows, rows.texts)
        sums = pairwise_sum(
            rows.image_ND, rows.texts.text, labels, scale=rows.scale, bias=rows.bias
        )
        N = max(1, rows.counts.num_images)
        return TermValue(sums.loss_sum / N, sums.entropy_sum / N)

    def _contrastive(self, rows: Rows) -> TermValue:
        labels = rows.texts.hard_labels(len(rows.image_ND))
        sums = pairwise_sum(
            rows.image_ND, rows.texts.text, labels, scale=rows.scale, bias=rows.bias
        )
        return TermValue(sums.loss_sum / max(1, rows.counts.num_captioned))

    def _cosine(self, rows: Rows) -> TermValue:
        images = cosine_distillation_sum(rows.mapped_image_NE, rows.target_image_NE)
        images = images / max(1, rows.counts.num_images)
        if rows.mapped_text_E is None or rows.target_text_E is None:
            return TermValue(images)
        texts = cosine_distillation_sum(rows.mapped_text_E, rows.target_text_E)
        return TermValue((images + texts / max(1, rows.counts.num_texts)) / 2)

    def _bank(self, rows: Rows) -> TermValue:
        assert rows.bank and rows.bank_scale is not None and rows.bank_bias is not None
        if self.bank_labels == "soft":
            labels, count = self._soft_labels(rows, rows.bank), rows.counts.num_images
        else:
            alike = AlikeTexts(rows.bank.teacher_text_ME, self.bank_threshold)
            labels = rows.bank.hard_labels(len(rows.image_ND), alike)
            count = rows.counts.num_bank_captioned
        sums = pairwise_sum(
            rows.mapped_image_NE,
            rows.bank.text,
            labels,
            scale=rows.bank_scale,
            bias=rows.bank_bias,
        )
        floor = sums.entropy_sum / max(1, count) if self.bank_labels == "soft" else None
        return TermValue(sums.loss_sum / max(1, count), floor)

    def _soft_labels(self, rows: Rows, columns: Columns) -> SoftLabels:
        return SoftLabels(
            teacher_image_NE=rows.teacher_image_NE,
            teacher_text_ME=columns.teacher_text_ME,
            scale=self.teacher_scale,
            bias=self.teacher_bias,
        )
