"""The sigmoid contrastive loss of SigLIP, arXiv:2303.15343, on drawn captions (docs/objectives.md)."""

from .objective import LossInputs, Objective, TermValue
from .pairwise_bce import pairwise_sum


def sigmoid_contrastive(inputs: LossInputs, objective: Objective) -> TermValue:
    """Return the sum over captioned images and texts, divided by all captioned images.

    An image's other known captions are ignored.
    """
    sums = pairwise_sum(
        inputs.image_ND,
        inputs.texts.text,
        inputs.texts.hard_labels(len(inputs.image_ND)),
        scale=inputs.scale,
        bias=inputs.bias,
    )
    return TermValue(sums.loss_sum / max(1, inputs.counts.num_captioned))
