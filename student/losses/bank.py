"""The banks: images against cached texts, texts against cached images (docs/reference/objectives.md)."""

from .objective import LossInputs, Objective, TermValue
from .pair_labels import SoftLabels
from .pairwise_sum import pairwise_sum


def teacher_text_bank(inputs: LossInputs, objective: Objective) -> TermValue:
    """Return the binary cross-entropy of images and bank texts, with soft or hard labels.

    It is divided by all images, with hard labels by those whose caption is in the bank, each weighed by
    caption_weights.
    """
    bank, is_soft = inputs.bank, objective.bank_labels == "soft"
    image_NE = inputs.mapped_image_NE
    assert bank and inputs.bank_scale is not None and inputs.bank_bias is not None
    assert image_NE is not None  # LossTerm.needs_image_tower
    if is_soft:
        labels = objective.soft_labels(inputs, bank)
    else:
        labels = objective.hard_labels(inputs, bank, threshold=objective.bank_threshold)
    sums = pairwise_sum(
        image_NE,
        bank.text,
        labels,
        scale=inputs.bank_scale,
        bias=inputs.bank_bias,
    )
    if is_soft:
        N = max(1, inputs.counts.num_images)
        return TermValue(sums.loss_sum / N, sums.entropy_sum / N)
    weight = inputs.counts.bank_caption_weight
    assert weight is not None
    return TermValue(sums.loss_sum / weight.clamp(min=1).to(sums.loss_sum))


def teacher_image_bank(inputs: LossInputs, objective: Objective) -> TermValue:
    """Return the binary cross-entropy of this process's texts and bank images to the teacher.

    It is divided by all texts.
    """
    bank, mapped_text_E = inputs.image_bank, inputs.mapped_text_E
    assert bank and mapped_text_E is not None
    assert inputs.bank_scale is not None and inputs.bank_bias is not None
    labels = SoftLabels(
        teacher_image_NE=inputs.texts.teacher_text_ME[inputs.own_texts],
        teacher_text_ME=bank.teacher_KE,
        scale=objective.teacher_scale,
        bias=objective.teacher_bias,
    )
    sums = pairwise_sum(
        mapped_text_E, bank.target_KE, labels, scale=inputs.bank_scale, bias=inputs.bank_bias
    )
    M = max(1, inputs.counts.num_texts)
    return TermValue(sums.loss_sum / M, sums.entropy_sum / M)
