"""The learned map from the student's width to the teacher's, one for images and texts.

Shape letters in this file: B = rows, D = the student's width, E = the teacher's.
"""

import torch
from torch import Tensor, nn

from ..distributed import Ranks

_RIDGE = 1e-3
"""Weight of the initial map, times the mean of the diagonal: directions without any data stay as they
were."""


class LearnedMap(nn.Linear):
    """A bias-free linear map that starts as the least-squares solution over the first batches.

    While the student is frozen, sums over the rows seen so far determine its best map without gradient
    steps. A random initial map would pull the student towards a random rotation, which costs more than
    the cosine term gains (docs/reference/objectives.md has the measurement).
    """

    def __init__(self, student_dim: int, teacher_dim: int) -> None:
        super().__init__(student_dim, teacher_dim, bias=False)
        nn.init.orthogonal_(self.weight)
        self.start_ED: Tensor
        self.register_buffer("start_ED", self.weight.detach().clone())
        # In float64 and on the host: solving amplifies rounding errors of these sums.
        self._gram_DD = torch.zeros(student_dim, student_dim, dtype=torch.float64)
        self._cross_DE = torch.zeros(student_dim, teacher_dim, dtype=torch.float64)

    def get_extra_state(self) -> Tensor:
        """Return the sums, (D, D + E), for state_dict."""
        return torch.cat([self._gram_DD, self._cross_DE], dim=1)

    def set_extra_state(self, state: Tensor) -> None:
        """Load sums that get_extra_state returned."""
        D = self.in_features
        self._gram_DD, self._cross_DE = state[:, :D].cpu().clone(), state[:, D:].cpu().clone()

    def add_rows(self, student_BD: Tensor, teacher_BE: Tensor, ranks: Ranks) -> None:
        """Add unit rows of all processes to the sums."""
        rows_BD, targets_BE = student_BD.detach(), teacher_BE.detach()
        if rows_BD.device.type == "mps":  # mps has no float64
            rows_BD, targets_BE = rows_BD.cpu(), targets_BE.cpu()
        rows_BD = rows_BD.double()
        self._gram_DD += ranks.sum(rows_BD.T @ rows_BD).cpu()
        self._cross_DE += ranks.sum(rows_BD.T @ targets_BE.double()).cpu()

    def fit(self) -> None:
        """Set the map P to the minimum of the sum of |P x - u|^2 over all rows so far, if there are any."""
        gram_DD = self._gram_DD
        if not gram_DD.any():
            return
        ridge = _RIDGE * gram_DD.diagonal().mean()
        cross_DE = self._cross_DE + ridge * self.start_ED.cpu().double().T
        solution_DE = torch.linalg.solve(
            gram_DD + ridge * torch.eye(len(gram_DD), dtype=torch.float64), cross_DE
        )
        with torch.no_grad():
            self.weight.copy_(solution_DE.T)
