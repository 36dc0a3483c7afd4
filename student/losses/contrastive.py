"""SigLIP's sigmoid contrastive loss, arXiv:2303.15343, on drawn captions (docs/reference/objectives.md)."""

from .objective import LossInputs, Objective, TermValue
from .pairwise_sum import pairwise_sum


def sigmoid_contrastive(inputs: LossInputs, objective: Objective) -> TermValue:
    """Return the sum over captioned images and texts, divided by all captioned images.

    An image's other known captions are ignored. Images and their number are weighed by caption_weights.
    """
    sums = pairwise_sum(
        inputs.image_ND,
        inputs.texts.text,
        objective.hard_labels(inputs, inputs.texts),
        scale=inputs.scale,
        bias=inputs.bias,
    )
    weight = inputs.counts.caption_weight.clamp(min=1)
    return TermValue(sums.loss_sum / weight.to(sums.loss_sum))
