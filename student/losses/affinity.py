"""Softmax affinity: the teacher's softmax over all texts of an image, and all images of a text.

Sources: the contrastive relational distillation of CLIP-KD, Yang et al. 2024, arXiv:2307.12732, and the
distillation loss of MobileCLIP, Vasu et al. 2024, arXiv:2311.17049 (docs/reference/objectives.md).
"""

from .objective import LossInputs, Objective, TermValue
from .pairwise_sum import pairwise_sum
from .softmax_labels import SoftmaxLabels


def softmax_affinity(inputs: LossInputs, objective: Objective) -> TermValue:
    """Return the mean cross-entropy to the teacher's softmax over images and over texts, averaged.

    Rows are this process's images over all texts, and its texts over the images of all processes. Both
    softmaxes have the scale ``affinity_scale``.
    """
    scale, own = objective.affinity_scale, inputs.own_texts
    image_GD, teacher_GE = inputs.all_images()
    text, teacher_text_ME = inputs.texts.text, inputs.texts.teacher_text_ME
    by_image = pairwise_sum(
        inputs.image_ND,
        text,
        SoftmaxLabels(
            teacher_row_NE=inputs.teacher_image_NE, teacher_column_ME=teacher_text_ME, scale=scale
        ),
        scale=scale,
        bias=0,
    )
    by_text = pairwise_sum(
        text[own],
        image_GD,
        SoftmaxLabels(
            teacher_row_NE=teacher_text_ME[own], teacher_column_ME=teacher_GE, scale=scale
        ),
        scale=scale,
        bias=0,
    )
    N, M = max(1, inputs.counts.num_images), max(1, inputs.counts.num_texts)
    return TermValue(
        (by_image.loss_sum / N + by_text.loss_sum / M) / 2,
        (by_image.entropy_sum / N + by_text.entropy_sum / M) / 2,
    )
