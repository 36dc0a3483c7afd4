"""The loss of a step: a weighted sum of terms, each divided by counts of the whole batch.

A process has the rows of its own images and the columns of all processes' texts. It computes its share;
the shares of all processes add up to the loss of the batch, gradients too.
docs/reference/objectives.md explains the terms.

Shape letters in this file:
    N = this process's images, M = texts of all processes, K = bank texts, D = the student's width,
    E = the teacher's width, G = images of all processes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...siglip import to_device, unit_rows
from ..config import BankLabels
from ..positives import ALL, Positives
from ..terms import active_terms
from .pair_labels import AlikeImages, AlikeTexts, HardLabels, MarkedPairs, SoftLabels
from .pairwise_sum import compute_dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class TextColumns:
    """Texts that images are compared with, and which of them match."""

    text: Tensor
    """(M, D) of the student, or (K, E or D) of the teacher."""

    caption_NC: Tensor
    """(N, C) int64 columns of each image's drawn captions, on the host; -1 for none."""

    matching_2P: Tensor
    """int64 (image, column) of pairs that match, ascending by image, on the host; ignored unless drawn."""

    teacher_text_ME: Tensor
    """The teacher's embeddings of the same texts."""

    caption_GC: Tensor | None = None
    """caption_NC of all processes, on the host; None unless a term needs all images or captions of
    similar images are ignored."""

    def drawn_pairs(self) -> tuple[Tensor, Tensor]:
        """Return image and column of every drawn caption, (P,) each, ascending by image, on the host."""
        is_drawn_NC = self.caption_NC >= 0
        return is_drawn_NC.nonzero()[:, 0].contiguous(), self.caption_NC[is_drawn_NC]

    def hard_labels(self, num_images: int, **settings: Any) -> HardLabels:
        """Return the labels of drawn captions: they match, and other matching pairs are ignored.

        Args:
            num_images: N.
            **settings: further fields of HardLabels.
        """
        shape = (num_images, len(self.text))
        rows, columns = self.drawn_pairs()
        return HardLabels(
            positive=MarkedPairs(rows, columns, shape),
            ignored=MarkedPairs(self.matching_2P[0], self.matching_2P[1], shape),
            **settings,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BankImages:
    """Cached images that texts are compared with."""

    target_KE: Tensor
    """The teacher's embeddings, through the PCA map if there is one."""

    teacher_KE: Tensor
    """The teacher's embeddings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Counts of the whole batch, over all processes."""

    num_images: int
    num_captioned: int
    num_texts: int
    caption_weight: Tensor
    """Sum of Objective.caption_weights, a scalar on the device; num_captioned if all drawn captions count
    1."""

    bank_caption_weight: Tensor | None = None
    """The same of images whose drawn caption is in the bank; None without such a term."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """Embeddings, targets and counts that one process's share of the loss is computed from."""

    image_ND: Tensor
    """The student's unit rows, a leaf with gradient; without an image tower the teacher's, mapped."""

    mapped_image_NE: Tensor | None
    """The student's rows through the learned map, if there is one; None without an image tower."""

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
    image_bank: BankImages | None = None
    bank_scale: Tensor | None = None
    bank_bias: Tensor | None = None
    own_texts: slice
    """This process's own texts among those of all."""

    image_GD: Tensor | None = None
    """image_ND of all processes, with gradient; None unless a term needs them."""

    teacher_image_GE: Tensor | None = None
    """teacher_image_NE of all processes; None unless a term needs them or captions of similar images are
    ignored."""

    first_image: int = 0
    """Position of this process's first image among those of all."""

    patch_N: Tensor | None = None
    """The loss of each of this process's images by its patches (patch.py), a leaf with gradient; None without
    patch targets."""

    def all_images(self) -> tuple[Tensor, Tensor]:
        """Return image_GD and teacher_image_GE, for a term that is registered with needs_all_images."""
        assert self.image_GD is not None and self.teacher_image_GE is not None
        return self.image_GD, self.teacher_image_GE


@dataclass(frozen=True, slots=True)
class TermValue:
    """This process's share of one term."""

    value: Tensor
    """Scalar with gradient, without its weight."""

    floor: Tensor | None = None
    """Scalar: lowest possible value, the entropy of the teacher's probabilities; None: unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """The terms of one teacher, their weights and settings."""

    weights: Mapping[str, float]
    teacher: str | None = None
    """Name that the terms have in metrics; None for the first teacher."""

    teacher_scale: float
    """Exponentiated."""

    teacher_bias: float
    bank_labels: BankLabels = "soft"
    bank_threshold: float = 0.95
    positives: Positives = ALL
    """How much drawn captions count in hard terms."""

    ignore_similar: float | None = None
    """Teacher cosine to the drawn caption, or to the image, above which hard terms ignore a text, or the
    captions of an image; None: they do not."""

    affinity_scale: float = 40.0
    """Factor of the cosines in the softmaxes of the term ``affinity``."""

    relations_scale: float = 20.0
    """The same of the term ``relations``."""

    drrho_scale: float = 100.0
    """Factor of the cosines of student and teacher in the terms ``drrho`` and ``drrho_sigmoid``."""

    @property
    def terms(self) -> list[str]:
        """Terms with a weight above 0, in the order of registration."""
        return [term.name for term in active_terms(self.weights)]

    @property
    def needs_all_images(self) -> bool:
        """Whether a term compares with images of other processes."""
        return any(term.needs_all_images for term in active_terms(self.weights))

    def metric(self, term: str) -> str:
        """Return the name of a term in metrics, such as ``soft``, or ``soft/NAME`` of a further teacher."""
        return term if self.teacher is None else f"{term}/{self.teacher}"

    def values(self, inputs: LossInputs) -> dict[str, TermValue]:
        """Return this process's share of each term."""
        active = active_terms(self.weights)
        return {term.name: term.function()(inputs, self) for term in active}

    def hard_labels(
        self, inputs: LossInputs, columns: TextColumns, *, threshold: float | None = None
    ) -> HardLabels:
        """Return the labels of drawn captions, weighed by caption_weights; divide by their sum.

        Args:
            inputs: this process's images.
            columns: texts to compare them with.
            threshold: teacher cosine to the drawn caption above which a text is ignored, if it is lower than
                ``ignore_similar``.
        """
        weight_N = weight_P = alike = alike_images = None
        if self.positives.kind != "all":
            weight_N, weight_P = self.caption_weights(inputs.teacher_image_NE, columns)
        thresholds = [each for each in (threshold, self.ignore_similar) if each is not None]
        if thresholds:
            alike = AlikeTexts(columns.teacher_text_ME, min(thresholds))
        if self.ignore_similar is not None:
            assert inputs.teacher_image_GE is not None and columns.caption_GC is not None
            alike_images = AlikeImages(
                inputs.teacher_image_NE,
                inputs.teacher_image_GE,
                columns.caption_GC,
                self.ignore_similar,
            )
        return columns.hard_labels(
            len(inputs.image_ND),
            alike=alike,
            alike_images=alike_images,
            weight_N=weight_N,
            positive_weight_P=weight_P if columns.caption_NC.shape[1] > 1 else None,
        )

    def caption_weights(
        self, teacher_image_NE: Tensor, columns: TextColumns
    ) -> tuple[Tensor, Tensor]:
        """Return how much each image counts, (N,), and each of its drawn captions, (P,); float, no gradient.

        A caption counts by ``positives`` and the teacher's probability of this very view and caption, 0 to 1;
        an image counts the mean of its captions, and 0 without one.
        """
        device = teacher_image_NE.device
        row_P, column_P = (to_device(each, device) for each in columns.drawn_pairs())
        dtype = compute_dtype(teacher_image_NE, columns.teacher_text_ME)
        ones_P = torch.ones(len(row_P), dtype=dtype, device=device)
        if self.positives.kind == "all":
            weight_P = ones_P
        else:
            image_PE = teacher_image_NE.detach()[row_P].to(dtype)
            text_PE = columns.teacher_text_ME.detach()[column_P].to(dtype)
            cosine_P = (unit_rows(image_PE) * unit_rows(text_PE)).sum(-1)
            weight_P = torch.sigmoid(self.teacher_scale * cosine_P + self.teacher_bias)
            if self.positives.kind == "above":
                # 0 x weight: NaN stays NaN.
                weight_P = torch.where(weight_P > self.positives.above, 1, 0 * weight_P)
        zero_N = ones_P.new_zeros(len(columns.caption_NC))
        count_N = zero_N.index_add(0, row_P, ones_P)
        return zero_N.index_add(0, row_P, weight_P) / count_N.clamp(min=1), weight_P

    def soft_labels(self, inputs: LossInputs, columns: TextColumns) -> SoftLabels:
        """Return the teacher's probabilities of this process's images and some texts as labels."""
        return SoftLabels(
            teacher_image_NE=inputs.teacher_image_NE,
            teacher_text_ME=columns.teacher_text_ME,
            scale=self.teacher_scale,
            bias=self.teacher_bias,
        )
