"""Relations inside a modality: the teacher's softmax over the other images, and over the other texts.

Source: similarity-preserving distillation as in SEED, Fang et al. 2021, arXiv:2101.04731, over the batch
instead of a queue (docs/reference/objectives.md).
"""

from .objective import LossInputs, Objective, TermValue
from .softmax_labels import mean_term, softmax_term


def relations_within_modality(inputs: LossInputs, objective: Objective) -> TermValue:
    """Return the mean cross-entropy over images and over texts, averaged; with one tower, of its rows.

    Rows are this process's, columns those of all processes but the row itself. Both softmaxes have the scale
    ``relations_scale``.
    """
    scale, own, found = objective.relations_scale, inputs.own_texts, list[TermValue]()
    if inputs.mapped_image_NE is not None:
        image_GD, teacher_GE = inputs.all_images()
        found.append(
            softmax_term(
                (inputs.image_ND, image_GD),
                (inputs.teacher_image_NE, teacher_GE),
                scale=scale,
                count=inputs.counts.num_images,
                own_column=inputs.first_image,
            )
        )
    if inputs.mapped_text_E is not None:
        text_MD, teacher_ME = inputs.texts.text, inputs.texts.teacher_text_ME
        found.append(
            softmax_term(
                (text_MD[own], text_MD),
                (teacher_ME[own], teacher_ME),
                scale=scale,
                count=inputs.counts.num_texts,
                own_column=own.start,
            )
        )
    return mean_term(found)
