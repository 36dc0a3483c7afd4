"""The learned map between the widths: from the student's to the teacher's, one for images and texts.

Shape letters in this file: B = rows, D = the student's width, E = the teacher's.
"""

import torch
from torch import Tensor, nn

from .ranks import Ranks

_RIDGE = 1e-3
"""Pulls towards the map of the start, times the mean of the diagonal: directions in which no row has
length stay as they were."""


class LearnedMap(nn.Linear):
    """A bias-free linear map that begins as the least-squares solution over the first batches.

    While the student stands still, its best map needs no gradient steps: sums over the rows seen so far
    determine it. A map of random numbers would pull the student towards a random rotation instead, and
    that costs it more than the cosine term gives (docs/objectives.md has the measurement).
    """

    def __init__(self, student_dim: int, teacher_dim: int) -> None:
        super().__init__(student_dim, teacher_dim, bias=False)
        nn.init.orthogonal_(self.weight)
        self.gram_DD: Tensor
        self.cross_DE: Tensor
        self.register_buffer("gram_DD", torch.zeros(student_dim, student_dim))
        self.start_ED: Tensor
        self.register_buffer("start_ED", self.weight.detach().clone())
        self.register_buffer("cross_DE", torch.zeros(student_dim, teacher_dim))

    def take_in(self, student_BD: Tensor, teacher_BE: Tensor, ranks: Ranks) -> None:
        """Add unit rows of this process, and those of all others, to the sums."""
        rows_BD = student_BD.detach()
        self.gram_DD += ranks.sum(rows_BD.T @ rows_BD)
        self.cross_DE += ranks.sum(rows_BD.T @ teacher_BE.detach())

    def fit(self) -> None:
        """Become the map P that minimises the sum of |P x - u|^2 over all rows taken in."""
        gram_DD, cross_DE = self.gram_DD.cpu().double(), self.cross_DE.cpu().double()
        ridge = _RIDGE * gram_DD.diagonal().mean()
        cross_DE = cross_DE + ridge * self.start_ED.cpu().double().T
        solution_DE = torch.linalg.solve(gram_DD + ridge * torch.eye(len(gram_DD)), cross_DE)
        with torch.no_grad():
            self.weight.copy_(solution_DE.T)
