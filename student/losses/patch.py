"""Dense distillation: the student's patches learn the teacher's patch targets (docs/reference/objectives.md).

The student's patch tokens are pooled to the cells of the teacher's view and mapped by a head of their own.

Source: the weights of the two parts are those of RADIO, Ranzinger et al. 2024, arXiv:2312.06709.

Shape letters in this file:
    N = images, C = cells that a view has room for, D = the student's width, P = values of a cell.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .objective import LossInputs, Objective, TermValue

_COSINE, _SMOOTH_L1 = 0.9, 0.1

_WIDER = 4
"""Width of the hidden layer of a narrow student's head, in values of a cell."""


class PatchHead(nn.Module):
    """The map from the student's pooled tokens to the values of cells; it is not exported.

    For a student that is narrower than a cell it has a wide hidden layer: a linear map from fewer dimensions
    reaches only a part of the directions of dense targets.

    Source: Tian et al. 2025, arXiv:2511.15572.
    """

    def __init__(self, student_dim: int, dim: int, *, rms: float) -> None:
        """Set the widths, and the root mean square of the teacher's values."""
        super().__init__()
        self.rms = rms
        self.map: nn.Module = nn.Linear(student_dim, dim)
        if student_dim < dim:
            wide = _WIDER * dim
            self.map = nn.Sequential(nn.Linear(student_dim, wide), nn.GELU(), nn.Linear(wide, dim))

    def forward(self, cells_NCD: Tensor) -> Tensor:
        """Return the predicted values, (N, C, P), in units of their root mean square."""
        return self.map(cells_NCD)

    def loss(self, cells_NCD: Tensor, teacher_NCP: Tensor, num_cells_N: Tensor) -> Tensor:
        """Return the loss of each image, (N,), see patch_losses."""
        return patch_losses(self(cells_NCD), teacher_NCP / self.rms, num_cells_N)


def patch_losses(student_NCP: Tensor, teacher_NCP: Tensor, num_cells_N: Tensor) -> Tensor:
    """Return 0.9 (1 - cos) + 0.1 smooth L1 of each image, a mean over its cells.

    Args:
        student_NCP: any float dtype.
        teacher_NCP: any float dtype; values of about unit size; no gradient.
        num_cells_N: cells of each image; those after them are ignored.

    Returns:
        (N,) float32, or float64 if an input is.

    Raises:
        ValueError: the shapes differ.
    """
    if student_NCP.shape != teacher_NCP.shape:
        raise ValueError(
            f"student and teacher must have one shape, "
            f"got {tuple(student_NCP.shape)} and {tuple(teacher_NCP.shape)}"
        )
    is_double = torch.float64 in (student_NCP.dtype, teacher_NCP.dtype)
    dtype = torch.float64 if is_double else torch.float32
    student_NCP, teacher_NCP = student_NCP.to(dtype), teacher_NCP.detach().to(dtype)
    cosine_NC = F.cosine_similarity(student_NCP, teacher_NCP, dim=-1)
    smooth_NC = F.smooth_l1_loss(student_NCP, teacher_NCP, reduction="none").mean(-1)
    loss_NC = _COSINE * (1 - cosine_NC) + _SMOOTH_L1 * smooth_NC
    is_cell_NC = torch.arange(loss_NC.shape[1], device=loss_NC.device) < num_cells_N[:, None]
    return torch.where(is_cell_NC, loss_NC, 0).sum(-1) / num_cells_N


def patch_distillation(inputs: LossInputs, objective: Objective) -> TermValue:
    """Return the mean of patch_losses over the images of all processes."""
    assert inputs.patch_N is not None
    return TermValue(inputs.patch_N.sum() / max(1, inputs.counts.num_images))
