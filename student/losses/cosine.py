"""Cosine distillation: each row turns towards the teacher's (docs/reference/objectives.md).

Shape letters in this file: B = rows, D = width.
"""

from torch import Tensor

from ...siglip import unit_rows
from .objective import LossInputs, Objective, TermValue
from .pairwise_bce import check_pair, compute_dtype


def cosine_distillation(inputs: LossInputs, objective: Objective) -> TermValue:
    """Return the mean of 1 - cos over images and over texts, averaged; of images without a text tower."""
    images = cosine_distillation_sum(inputs.mapped_image_NE, inputs.target_image_NE)
    images = images / max(1, inputs.counts.num_images)
    if inputs.mapped_text_E is None or inputs.target_text_E is None:
        return TermValue(images)
    texts = cosine_distillation_sum(inputs.mapped_text_E, inputs.target_text_E)
    return TermValue((images + texts / max(1, inputs.counts.num_texts)) / 2)


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
