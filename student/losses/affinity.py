"""Softmax affinity: the teacher's softmax over all texts of an image, and all images of a text.

Sources: the contrastive relational distillation of CLIP-KD, Yang et al. 2024, arXiv:2307.12732, and the
distillation loss of MobileCLIP, Vasu et al. 2024, arXiv:2311.17049 (docs/reference/objectives.md).
"""

from .objective import LossInputs, Objective, TermValue
from .softmax_labels import mean_term, softmax_term


def softmax_affinity(inputs: LossInputs, objective: Objective) -> TermValue:
    """Return the mean cross-entropy to the teacher's softmax over images and over texts, averaged.

    Rows are this process's images over all texts, and its texts over the images of all processes. Both
    softmaxes have the scale ``affinity_scale``.
    """
    scale, own, counts = objective.affinity_scale, inputs.own_texts, inputs.counts
    image_GD, teacher_GE = inputs.all_images()
    text_MD, teacher_ME = inputs.texts.text, inputs.texts.teacher_text_ME
    by_image = softmax_term(
        (inputs.image_ND, text_MD),
        (inputs.teacher_image_NE, teacher_ME),
        scale=scale,
        count=counts.num_images,
    )
    by_text = softmax_term(
        (text_MD[own], image_GD),
        (teacher_ME[own], teacher_GE),
        scale=scale,
        count=counts.num_texts,
    )
    return mean_term([by_image, by_text])
