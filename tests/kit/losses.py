"""The losses of whole batches, in terms of what the trainer sums over blocks of rows.

Shape letters in this file:
    N = images, M = texts, K = texts of a bank, D = the student's width, E = the teacher's width.
"""

from typing import Any

import torch
from torch import Tensor

from siglip2_cache.student.losses.cosine import cosine_distillation_sum
from siglip2_cache.student.losses.pair_labels import (
    AlikeImages,
    AlikeTexts,
    HardLabels,
    MarkedPairs,
    SoftLabels,
)
from siglip2_cache.student.losses.pairwise_sum import pairwise_sum


def marked_pairs(mask_NM: Tensor) -> MarkedPairs:
    """Return the places where a bool mask, dense or sparse, is True."""
    if mask_NM.is_sparse:
        mask_NM = mask_NM.coalesce()
        row_P, column_P = mask_NM.indices()[:, mask_NM.values()]
    else:
        row_P, column_P = mask_NM.nonzero(as_tuple=True)
    return MarkedPairs(row_P, column_P, (mask_NM.shape[0], mask_NM.shape[1]))


def diagonal_pairs(N: int) -> MarkedPairs:
    """Return the pairs (i, i)."""
    return MarkedPairs(torch.arange(N), torch.arange(N), (N, N))


def hard_labels(
    image_ND: Tensor,
    text_MD: Tensor,
    *,
    positive_NM: Tensor | None = None,
    ignore_NM: Tensor | None = None,
    alike_above_cosine: float | None = None,
    alike_images: AlikeImages | None = None,
    weight_N: Tensor | None = None,
) -> HardLabels:
    """Return the labels of masks; without positive_NM pair (i, i) matches."""
    N = len(image_ND)
    return HardLabels(
        positive=diagonal_pairs(N) if positive_NM is None else marked_pairs(positive_NM),
        ignored=None if ignore_NM is None else marked_pairs(ignore_NM),
        alike=None if alike_above_cosine is None else AlikeTexts(text_MD, alike_above_cosine),
        alike_images=alike_images,
        weight_N=weight_N,
    )


def sigmoid_loss(
    image_ND: Tensor,
    text_MD: Tensor,
    *,
    scale: Tensor | float,
    bias: Tensor | float,
    chunk_size: int | None = None,
    **masks: Any,
) -> Tensor:
    """Return the contrastive loss: -(1/R) sum_ij log sigmoid(s_ij z_ij) over the R labelled rows."""
    labels = hard_labels(image_ND, text_MD, **masks)
    sums = pairwise_sum(image_ND, text_MD, labels, scale=scale, bias=bias, chunk_size=chunk_size)
    return sums.loss_sum / labels.num_labelled_rows().clamp_min(1)


def soft_sigmoid_distillation_loss(
    image_ND: Tensor,
    text_MD: Tensor,
    teacher_image_NE: Tensor,
    teacher_text_ME: Tensor,
    *,
    scale: Tensor | float,
    bias: Tensor | float,
    teacher_scale: Tensor | float,
    teacher_bias: Tensor | float,
    chunk_size: int | None = None,
) -> Tensor:
    """Return the soft loss: (1/N) sum_ij softplus(z_ij) - p_ij z_ij."""
    labels = SoftLabels(
        teacher_image_NE=teacher_image_NE,
        teacher_text_ME=teacher_text_ME,
        scale=teacher_scale,
        bias=teacher_bias,
    )
    sums = pairwise_sum(image_ND, text_MD, labels, scale=scale, bias=bias, chunk_size=chunk_size)
    return sums.loss_sum / max(len(image_ND), 1)


def soft_target_entropy(
    teacher_image_NE: Tensor,
    teacher_text_ME: Tensor,
    *,
    teacher_scale: Tensor | float,
    teacher_bias: Tensor | float,
) -> Tensor:
    """Return the soft loss of the teacher itself, which no student can go below."""
    with torch.no_grad():
        return soft_sigmoid_distillation_loss(
            teacher_image_NE,
            teacher_text_ME,
            teacher_image_NE,
            teacher_text_ME,
            scale=teacher_scale,
            bias=teacher_bias,
            teacher_scale=teacher_scale,
            teacher_bias=teacher_bias,
        )


def soft_bank_loss(
    image_NE: Tensor, bank_KE: Tensor, teacher_image_NE: Tensor, **settings: Any
) -> Tensor:
    """Return the soft loss of images among the teacher's texts, which get no gradient."""
    bank_KE = bank_KE.detach()
    return soft_sigmoid_distillation_loss(image_NE, bank_KE, teacher_image_NE, bank_KE, **settings)


def hard_bank_loss(image_NE: Tensor, bank_KE: Tensor, **settings: Any) -> Tensor:
    """Return the contrastive loss of images among the teacher's texts, which get no gradient."""
    return sigmoid_loss(image_NE, bank_KE.detach(), **settings)


def cosine_distillation_loss(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """Return the mean of 1 - cos."""
    return cosine_distillation_sum(student_BD, teacher_BD) / max(len(student_BD), 1)
