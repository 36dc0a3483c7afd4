"""Cosine distillation: each row turns towards the teacher's (docs/reference/objectives.md).

Shape letters in this file: B = rows, D = width.
"""

import torch
from torch import Tensor

from ...siglip import unit_rows
from .objective import LossInputs, Objective, TermValue
from .pairwise_sum import check_pair, compute_dtype


def cosine_distillation(inputs: LossInputs, objective: Objective) -> TermValue:
    """Return the mean of 1 - cos over images and over texts, averaged; with one tower, of its rows."""
    counts = inputs.counts
    sides = [
        (inputs.mapped_image_NE, inputs.target_image_NE, counts.num_images),
        (inputs.mapped_text_E, inputs.target_text_E, counts.num_texts),
    ]
    means = [
        cosine_distillation_sum(student, teacher) / max(1, count)
        for student, teacher, count in sides
        if student is not None and teacher is not None
    ]
    return TermValue(torch.stack(means).mean())


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
