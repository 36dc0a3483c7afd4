"""Labels of rows: the teacher's softmax over all columns of each row.

Shape letters in this file:
    N = rows, M = columns, C = rows of one chunk, E = the teacher's width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...siglip import unit_rows
from .objective import TermValue
from .pairwise_sum import ChunkSums, check_counts, check_pair, compute_dtype, pairwise_sum


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SoftmaxLabels:
    """The teacher's softmax over each row's columns, softmax(scale * cos(row, column))."""

    teacher_row_NE: Tensor
    """Any float dtype, need not be normalised; no gradient."""

    teacher_column_ME: Tensor
    """Like teacher_row_NE."""

    scale: float
    """Factor of the teacher's cosines, the inverse of a temperature."""

    own_column: int | None = None
    """Column of row 0 itself, row i's being ``own_column + i``, which is left out; None: rows and columns
    are of two modalities, and none is left out."""

    def __post_init__(self) -> None:
        check_pair("teacher_row", self.teacher_row_NE, "teacher_column", self.teacher_column_ME)

    @property
    def dtype(self) -> torch.dtype:
        """float64 where a teacher embedding is float64, else float32."""
        return compute_dtype(self.teacher_row_NE, self.teacher_column_ME)

    def chunk_loss(
        self, num_rows: int, num_columns: int, *, dtype: torch.dtype, chunk_size: int
    ) -> "_SoftmaxChunkLoss":
        """Return the loss of chunks of rows; see Labels.

        Raises:
            ValueError: the teacher's rows or columns are not as many as the student's.
        """
        check_counts(
            (len(self.teacher_row_NE), len(self.teacher_column_ME)), (num_rows, num_columns)
        )
        return _SoftmaxChunkLoss(
            unit_rows(self.teacher_row_NE.detach().to(dtype)) * self.scale,
            unit_rows(self.teacher_column_ME.detach().to(dtype)),
            self.own_column,
        )


@dataclass(frozen=True, slots=True, eq=False)
class _SoftmaxChunkLoss:
    scaled_row_NE: Tensor
    column_ME: Tensor
    own_column: int | None

    def __call__(self, start: int, logits_CM: Tensor, *, needs_gradient: bool) -> ChunkSums:
        rows_CE = self.scaled_row_NE[start : start + len(logits_CM)]
        teacher_CM = self._without_own(start, rows_CE @ self.column_ME.T).log_softmax(-1)
        target_CM = teacher_CM.exp()
        entropy = -(target_CM * teacher_CM).sum()
        del teacher_CM
        log_CM = self._without_own(start, logits_CM).log_softmax(-1)
        loss = -(target_CM * log_CM).sum()
        gradient_CM = log_CM.exp_().sub_(target_CM) if needs_gradient else None
        return ChunkSums(loss, entropy, gradient_CM)

    def _without_own(self, start: int, logits_CM: Tensor) -> Tensor:
        """Give each row's own column a probability of 0; in place."""
        if self.own_column is not None:
            row_C = torch.arange(len(logits_CM), device=logits_CM.device)
            # Not -inf: a row without another column would be NaN, and 0 x -inf is.
            logits_CM[row_C, row_C + start + self.own_column] = torch.finfo(logits_CM.dtype).min / 4
        return logits_CM


def softmax_term(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    *,
    scale: float,
    count: int,
    own_column: int | None = None,
) -> TermValue:
    """Return the cross-entropy of the student's softmaxes to the teacher's, summed over this process's rows.

    Args:
        student: its rows and columns.
        teacher: its rows and columns, as many.
        scale: factor of the cosines of both.
        count: rows of all processes, by which the sum is divided.
        own_column: see SoftmaxLabels.
    """
    labels = SoftmaxLabels(
        teacher_row_NE=teacher[0], teacher_column_ME=teacher[1], scale=scale, own_column=own_column
    )
    sums = pairwise_sum(*student, labels, scale=scale, bias=0)
    return TermValue(sums.loss_sum / max(1, count), sums.entropy_sum / max(1, count))


def mean_term(terms: Sequence[TermValue]) -> TermValue:
    """Return the mean of terms that all have a floor."""
    floors = [term.floor for term in terms if term.floor is not None]
    return TermValue(torch.stack([term.value for term in terms]).mean(), torch.stack(floors).mean())
