"""Soft sigmoid distillation: labels are the teacher's probabilities (docs/reference/objectives.md)."""

from .objective import LossInputs, Objective, TermValue
from .pairwise_sum import pairwise_sum


def soft_sigmoid(inputs: LossInputs, objective: Objective) -> TermValue:
    """Return the sum over pairs of the binary cross-entropy to the teacher, divided by all images."""
    sums = pairwise_sum(
        inputs.image_ND,
        inputs.texts.text,
        objective.soft_labels(inputs, inputs.texts),
        scale=inputs.scale,
        bias=inputs.bias,
    )
    N = max(1, inputs.counts.num_images)
    return TermValue(sums.loss_sum / N, sums.entropy_sum / N)
