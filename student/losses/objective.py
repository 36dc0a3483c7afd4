"""The loss of a step: a weighted sum of terms, each divided by counts of the whole batch.

A process has the rows of its own images and the columns of all processes' texts. It computes its share;
the shares of all processes add up to the loss of the batch, gradients too. docs/objectives.md explains the
terms.

Shape letters in this file:
    N = this process's images, M = texts of all processes, K = bank texts, D = the student's width,
    E = the teacher's width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ...siglip import unit_rows
from ..config import BankLabels, Term
from .pair_labels import AlikeTexts, HardLabels, MarkedPairs, SoftLabels
from .pairwise_bce import check_pair, compute_dtype, pairwise_sum


@dataclass(frozen=True, slots=True, kw_only=True)
class TextColumns:
    """Texts that images are compared with, and which of them match."""

    text: Tensor
    """(M, D) of the student, or (K, E or D) of the teacher."""

    caption_N: Tensor
    """int64 column of each image's drawn caption; -1 for none."""

    matching_2P: Tensor
    """int64 (image, column) of pairs that match, ascending by image; ignored unless drawn."""

    teacher_text_ME: Tensor
    """The teacher's embeddings of the same texts."""

    def hard_labels(self, num_images: int, alike: AlikeTexts | None = None) -> HardLabels:
        """Return the labels of drawn captions: they match, and other matching pairs are ignored."""
        shape = (num_images, len(self.text))
        is_captioned_N = self.caption_N >= 0
        rows = is_captioned_N.nonzero()[:, 0]
        return HardLabels(
            positive=MarkedPairs(rows, self.caption_N[is_captioned_N], shape),
            ignored=MarkedPairs(self.matching_2P[0], self.matching_2P[1], shape),
            alike=alike,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Counts of the whole batch, over all processes."""

    num_images: int
    num_captioned: int
    num_texts: int
    num_bank_captioned: int = 0
    """Images whose drawn caption is in the bank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """Embeddings, targets and counts that one process's share of the loss is computed from."""

    image_ND: Tensor
    """The student's unit rows; a leaf with gradient."""

    mapped_image_NE: Tensor
    """The same rows through the learned map, if there is one."""

    mapped_text_E: Tensor | None
    """This process's own texts through the learned map, if there is one; None without a text tower."""

    teacher_image_NE: Tensor
    target_image_NE: Tensor
    """Targets of mapped_image_NE: the teacher's rows, through the PCA map if there is one."""

    target_text_E: Tensor | None
    """Targets of mapped_text_E."""

    texts: TextColumns
    bank: TextColumns | None
    counts: Counts
    scale: Tensor
    """The student's, exponentiated."""

    bias: Tensor
    bank_scale: Tensor | None = None
    bank_bias: Tensor | None = None


@dataclass(frozen=True, slots=True)
class TermValue:
    """This process's share of one term."""

    value: Tensor
    """Scalar with gradient, without its weight."""

    floor: Tensor | None = None
    """Scalar: lowest possible value, the entropy of the teacher's probabilities; None: unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """The terms, their weights and settings."""

    weights: Mapping[Term, float]
    teacher_scale: float
    """Exponentiated."""

    teacher_bias: float
    bank_labels: BankLabels = "soft"
    bank_threshold: float = 0.95

    @property
    def terms(self) -> list[Term]:
        """Terms with a weight above 0, in a fixed order."""
        order: tuple[Term, ...] = ("soft", "cosine", "contrastive", "bank")
        return [term for term in order if self.weights[term] > 0]

    def values(self, rows: LossInputs) -> dict[Term, TermValue]:
        """Return this process's share of each term."""
        compute = {
            "soft": self._soft,
            "cosine": self._cosine,
            "contrastive": self._contrastive,
            "bank": self._bank,
        }
        return {term: compute[term](rows) for term in self.terms}

    def _soft(self, rows: LossInputs) -> TermValue:
        labels = self._soft_labels(rows, rows.texts)
        sums = pairwise_sum(
            rows.image_ND, rows.texts.text, labels, scale=rows.scale, bias=rows.bias
        )
        N = max(1, rows.counts.num_images)
        return TermValue(sums.loss_sum / N, sums.entropy_sum / N)

    def _contrastive(self, rows: LossInputs) -> TermValue:
        labels = rows.texts.hard_labels(len(rows.image_ND))
        sums = pairwise_sum(
            rows.image_ND, rows.texts.text, labels, scale=rows.scale, bias=rows.bias
        )
        return TermValue(sums.loss_sum / max(1, rows.counts.num_captioned))

    def _cosine(self, rows: LossInputs) -> TermValue:
        images = cosine_distillation_sum(rows.mapped_image_NE, rows.target_image_NE)
        images = images / max(1, rows.counts.num_images)
        if rows.mapped_text_E is None or rows.target_text_E is None:
            return TermValue(images)
        texts = cosine_distillation_sum(rows.mapped_text_E, rows.target_text_E)
        return TermValue((images + texts / max(1, rows.counts.num_texts)) / 2)

    def _bank(self, rows: LossInputs) -> TermValue:
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

    def _soft_labels(self, rows: LossInputs, columns: TextColumns) -> SoftLabels:
        return SoftLabels(
            teacher_image_NE=rows.teacher_image_NE,
            teacher_text_ME=columns.teacher_text_ME,
            scale=self.teacher_scale,
            bias=self.teacher_bias,
        )


def cosine_distillation_sum(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """Return the sum of 1 - cos over the rows, which turns each student row towards the teacher's.

    Args:
        student_BD: any float dtype, mapped to the teacher's width; normalised here.
        teacher_BD: any float dtype, normalised here; no gradient.

    Returns:
        Scalar float32, or float64 if an input is.

    Raises:
        ValueError: the shapes differ, or an input is not floating point.
    """
    check_pair("student", student_BD, "teacher", teacher_BD)
    if len(student_BD) != len(teacher_BD):
        raise ValueError(
            f"student and teacher must have one shape, "
            f"got {tuple(student_BD.shape)} and {tuple(teacher_BD.shape)}"
        )
    dtype = compute_dtype(student_BD, teacher_BD)
    cosine_B = (unit_rows(student_BD.to(dtype)) * unit_rows(teacher_BD.detach().to(dtype))).sum(-1)
    return (1 - cosine_B).sum()
