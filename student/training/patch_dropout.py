"""Patch dropout: the image tower sees a random part of the patches of each image.

Source: Li et al. 2023, Scaling Language-Image Pre-training via Masking, arXiv:2212.00794.

Shape letters in this file: N = images, P = patches, D = width.
"""

from typing import Any

import torch
from torch import Tensor


class PatchDropout:
    """Drops patches after their embedding, in train mode, while it is on."""

    def __init__(self, tower: Any, rate: float) -> None:
        """Add a hook to the embeddings of an image tower of fixed resolution.

        Args:
            tower: a SiglipVisionModel, or the vision_model of a SiglipModel.
            rate: share of the patches that is dropped, above 0 and below 1.
        """
        self._rate = rate
        self.is_on = False
        tower.embeddings.register_forward_hook(self._drop)

    def _drop(self, module: Any, inputs: Any, patches_NPD: Tensor) -> Tensor:
        """Return patches in random order, of every image as many: (N, kept, D)."""
        if not (self.is_on and module.training):
            return patches_NPD
        N, P, D = patches_NPD.shape
        kept = max(1, round(P * (1 - self._rate)))
        order_NP = torch.rand(N, P, device=patches_NPD.device).argsort(dim=1)
        return patches_NPD.gather(1, order_NP[:, :kept, None].expand(-1, -1, D))
