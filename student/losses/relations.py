"""Relations inside a modality: the teacher's softmax over the other images, and over the other texts.

Source: similarity-preserving distillation as in SEED, Fang et al. 2021, arXiv:2101.04731, over the batch
instead of a queue (docs/reference/objectives.md).
"""

import torch
from torch import Tensor

from .objective import LossInputs, Objective, TermValue
from .pairwise_sum import pairwise_sum
from .softmax_labels import SoftmaxLabels


def relations_within_modality(inputs: LossInputs, objective: Objective) -> TermValue:
    """Return the mean cross-entropy over images and over texts, averaged; with one tower, of its rows.

    Rows are this process's, columns those of all processes but the row itself. Both softmaxes have the scale
    ``relations_scale``.
    """
    scale, own, found = objective.relations_scale, inputs.own_texts, list[tuple[Tensor, Tensor]]()

    def add(
        student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], at: int, count: int
    ) -> None:
        labels = SoftmaxLabels(
            teacher_row_NE=teacher[0], teacher_column_ME=teacher[1], scale=scale, own_column=at
        )
        sums = pairwise_sum(*student, labels, scale=scale, bias=0)
        found.append((sums.loss_sum / max(1, count), sums.entropy_sum / max(1, count)))

    if inputs.mapped_image_NE is not None:
        image_GD, teacher_GE = inputs.all_images()
        images, teacher = (inputs.image_ND, image_GD), (inputs.teacher_image_NE, teacher_GE)
        add(images, teacher, inputs.first_image, inputs.counts.num_images)
    if inputs.mapped_text_E is not None:
        text_MD, teacher_ME = inputs.texts.text, inputs.texts.teacher_text_ME
        texts, teacher = (text_MD[own], text_MD), (teacher_ME[own], teacher_ME)
        add(texts, teacher, own.start, inputs.counts.num_texts)
    losses, floors = zip(*found, strict=True)
    return TermValue(torch.stack(losses).mean(), torch.stack(floors).mean())
