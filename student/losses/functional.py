"""Losses that teach a student from captions and from cached teacher embeddings.

docs/objectives.md says what each is for. Each divides by a count of its own batch. Who has a block
of rows of a larger batch divides the plain sums by the counts of the whole: pairwise_sum with
hard_labels or SoftLabels (of a bank too), and cosine_distillation_sum.

Shape letters in this file:
    N = images, M = texts, K = texts of a bank, B = rows of either, D = the student's width,
    E = the teacher's width.
"""

from typing import Literal

import torch
from torch import Tensor

from .pair_labels import AlikeTexts, HardLabels, MarkedPairs, SoftLabels
from .pairwise_bce import check_pair, compute_dtype, pairwise_sum, unit_rows

__all__ = [
    "cosine_distillation_loss",
    "cosine_distillation_sum",
    "hard_labels",
    "sigmoid_loss",
    "soft_sigmoid_distillation_loss",
    "soft_target_entropy",
    "teacher_text_bank_loss",
]


def sigmoid_loss(
    image_ND: Tensor,
    text_MD: Tensor,
    *,
    scale: Tensor | float,
    bias: Tensor | float,
    positive_NM: Tensor | None = None,
    ignore_NM: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """Tell each image's own texts from all others, every pair a yes-or-no question of its own.

    -(1/R) sum_ij log sigmoid(s_ij (scale x_i.y_j + bias)), s = +1 for positives and -1 for the
    rest, over the R rows that have a positive. A row without any is left out altogether: an image
    without a caption has no hard label.

    Args:
        image_ND: any float dtype, normalised here.
        text_MD: any float dtype, normalised here.
        scale: exp of the logit scale; a number or a tensor of one, which gets its gradient.
        bias: a number or a tensor of one, which gets its gradient.
        positive_NM: bool, dense or sparse COO (then N x M is never held), on the images' device;
            None: the diagonal.
        ignore_NM: pairs to leave out, bool, dense or sparse COO; a positive is never left out.
        chunk_size: rows whose logits exist at once; see pairwise_sum.

    Returns:
        Scalar in nats, float32 or float64; 0 where no row has a positive.

    Raises:
        ValueError: shapes do not fit, or a mask is not bool.

    Source:
        Zhai et al. 2023, Sigmoid Loss for Language Image Pre-Training, arXiv:2303.15343,
        Algorithm 1.
    """
    labels = hard_labels(image_ND, text_MD, positive_NM=positive_NM, ignore_NM=ignore_NM)
    sums = pairwise_sum(image_ND, text_MD, labels, scale=scale, bias=bias, chunk_size=chunk_size)
    return sums.loss_sum / labels.num_labelled_rows().clamp_min(1)


def hard_labels(
    image_ND: Tensor,
    text_MD: Tensor,
    *,
    positive_NM: Tensor | None = None,
    ignore_NM: Tensor | None = None,
    alike_above_cosine: float | None = None,
) -> HardLabels:
    """Return the labels of sigmoid_loss, or of the bank's hard loss, for pairwise_sum.

    Args:
        image_ND: the rows; only their number and device matter.
        text_MD: the columns; of a bank, the teacher's texts.
        positive_NM: bool, dense or sparse COO, on the images' device; None: the diagonal.
        ignore_NM: pairs to leave out, likewise; a positive is never left out.
        alike_above_cosine: only for a bank: leaves out the columns whose cosine with one of the
            row's positives is above it.

    Raises:
        ValueError: a mask is not bool of N x M, or there is none and N is not M.
    """
    N, M = len(image_ND), len(text_MD)
    if positive_NM is None and N != M:
        raise ValueError(f"without positive_NM there must be as many texts as images, got {N}, {M}")
    for name, mask_NM in (("positive_NM", positive_NM), ("ignore_NM", ignore_NM)):
        if mask_NM is not None and (tuple(mask_NM.shape), mask_NM.dtype) != ((N, M), torch.bool):
            raise ValueError(
                f"{name} must be bool of shape {(N, M)}, "
                f"got {mask_NM.dtype} of shape {tuple(mask_NM.shape)}"
            )
    if positive_NM is None:
        positive = MarkedPairs.diagonal(N, image_ND.device)
    else:
        positive = MarkedPairs.of_mask("positive_NM", positive_NM)
    alike = None if alike_above_cosine is None else AlikeTexts(text_MD, alike_above_cosine)
    return HardLabels(positive=positive, ignore_NM=ignore_NM, alike=alike)


def cosine_distillation_loss(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """Turn each student embedding, already mapped to the teacher's width, towards the teacher's.

    Args:
        student_BD: any float dtype, normalised here.
        teacher_BD: any float dtype, normalised here; no gradient.

    Returns:
        Scalar, mean over B of 1 - cos, in [0, 2]; float32, or float64 where an input is. 0 where
        B is 0.

    Raises:
        ValueError: the shapes differ, or an input is not floating point.
    """
    return cosine_distillation_sum(student_BD, teacher_BD) / max(len(student_BD), 1)


def cosine_distillation_sum(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """Return the sum of 1 - cos over the rows, for a caller with a block of a larger batch.

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
    cosine_B = (unit_rows(student_BD, dtype) * unit_rows(teacher_BD.detach(), dtype)).sum(-1)
    return (1 - cosine_B).sum()


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
    """Give every image-text pair the probability of matching that the teacher gives it.

    (1/N) sum_ij softplus(z) - p z, with z = scale x_i.y_j + bias and
    p = sigmoid(teacher_scale u_i.v_j + teacher_bias). Its minimum is where z is the teacher's
    logit, and its value there is soft_target_entropy. No width has to fit another, and a caption
    that does not belong to its image has a small p.

    Args:
        image_ND: the student's, any float dtype, normalised here.
        text_MD: the student's, as image_ND.
        teacher_image_NE: the teacher's embeddings of the same images, any float dtype, normalised
            here; no gradient.
        teacher_text_ME: the teacher's embeddings of the same texts, likewise.
        scale: the student's, exp of its logit scale; a number or a tensor of one.
        bias: the student's; a number or a tensor of one.
        teacher_scale: the teacher's, exp of its logit scale; no gradient.
        teacher_bias: the teacher's; no gradient.
        chunk_size: rows whose logits exist at once; see pairwise_sum.

    Returns:
        Scalar in nats, float32 or float64.

    Raises:
        ValueError: shapes do not fit.
    """
    labels = SoftLabels(
        teacher_image_NE=teacher_image_NE,
        teacher_text_ME=teacher_text_ME,
        scale=teacher_scale,
        bias=teacher_bias,
        with_entropy=False,
    )
    sums = pairwise_sum(image_ND, text_MD, labels, scale=scale, bias=bias, chunk_size=chunk_size)
    return sums.loss_sum / max(len(image_ND), 1)


def soft_target_entropy(
    teacher_image_NE: Tensor,
    teacher_text_ME: Tensor,
    *,
    teacher_scale: Tensor | float,
    teacher_bias: Tensor | float,
    chunk_size: int | None = None,
) -> Tensor:
    """Return the floor of soft_sigmoid_distillation_loss: the entropy of the teacher's p, over N.

    It is that loss with the teacher for a student. Who computes both takes them from one pass of
    pairwise_sum.

    Raises:
        ValueError: the widths differ.
    """
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
            chunk_size=chunk_size,
        )


def teacher_text_bank_loss(
    image_NE: Tensor,
    bank_KE: Tensor,
    *,
    scale: Tensor | float,
    bias: Tensor | float,
    labels: Literal["soft", "hard"] = "soft",
    teacher_image_NE: Tensor | None = None,
    teacher_scale: Tensor | float | None = None,
    teacher_bias: Tensor | float | None = None,
    positive_NK: Tensor | None = None,
    ignore_NK: Tensor | None = None,
    alike_above_cosine: float | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """Place student images among cached teacher texts, as many as wanted: they cost no forward pass.

    The rows are student images already mapped to the teacher's width, the columns cached teacher
    texts, the logits scale cos + bias. Soft labels are the teacher's probabilities of its own
    images with the bank (no caption is needed); hard labels are the captions that stand in the
    bank, as in sigmoid_loss.

    Args:
        image_NE: any float dtype, normalised here.
        bank_KE: teacher embeddings of texts, any float dtype, normalised here; no gradient. All of
            it is copied to float32: give a draw where the whole is too large.
        scale: of these logits, already exponentiated; a number or a tensor of one.
        bias: of these logits; a number or a tensor of one.
        labels: soft takes the three teacher arguments, hard the three after them.
        teacher_image_NE: the teacher's embeddings of the images; no gradient.
        teacher_scale: the teacher's, already exponentiated.
        teacher_bias: the teacher's.
        positive_NK: own captions, bool, dense or sparse COO.
        ignore_NK: pairs to leave out, bool, dense or sparse COO; never an own caption.
        alike_above_cosine: leaves out the columns whose cosine with an own caption is above it,
            never an own caption; None: no such check.
        chunk_size: rows whose logits exist at once; see pairwise_sum.

    Returns:
        Scalar in nats, float32 or float64: divided by N for soft labels, by the rows that have a
        positive for hard ones (0 where none has).

    Raises:
        ValueError: shapes do not fit, an argument of the chosen labels is missing, or one of the
            other labels is given.
    """
    _check_bank_arguments(
        labels,
        soft={
            "teacher_image_NE": teacher_image_NE,
            "teacher_scale": teacher_scale,
            "teacher_bias": teacher_bias,
        },
        hard={
            "positive_NK": positive_NK,
            "ignore_NK": ignore_NK,
            "alike_above_cosine": alike_above_cosine,
        },
    )
    bank_KE = bank_KE.detach()
    if teacher_image_NE is not None and teacher_scale is not None and teacher_bias is not None:
        return soft_sigmoid_distillation_loss(
            image_NE,
            bank_KE,
            teacher_image_NE,
            bank_KE,
            scale=scale,
            bias=bias,
            teacher_scale=teacher_scale,
            teacher_bias=teacher_bias,
            chunk_size=chunk_size,
        )
    bank_labels = hard_labels(
        image_NE,
        bank_KE,
        positive_NM=positive_NK,
        ignore_NM=ignore_NK,
        alike_above_cosine=alike_above_cosine,
    )
    sums = pairwise_sum(
        image_NE, bank_KE, bank_labels, scale=scale, bias=bias, chunk_size=chunk_size
    )
    return sums.loss_sum / bank_labels.num_labelled_rows().clamp_min(1)


def _check_bank_arguments(
    labels: Literal["soft", "hard"], *, soft: dict[str, object], hard: dict[str, object]
) -> None:
    """Refuse labels of no kind, and arguments that are missing or of the other kind."""
    if labels not in ("soft", "hard"):
        raise ValueError(f"labels must be soft or hard, got {labels!r}")
    needed, others = (soft, hard) if labels == "soft" else (hard, soft)
    required = list(soft) if labels == "soft" else ["positive_NK"]
    missing = [name for name in required if needed[name] is None]
    if missing:
        raise ValueError(f"{labels} labels need {', '.join(missing)}")
    unused = [name for name, value in others.items() if value is not None]
    if unused:
        raise ValueError(f"{labels} labels take no {', '.join(unused)}")
