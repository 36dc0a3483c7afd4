"""Pooling the patch tokens of an image tower to a coarser grid of cells.

Shape letters in this file:
    B = views, N = patches, C = cells that a view has room for, D = width of the tokens, P = values of a cell.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .device import to_device

if TYPE_CHECKING:
    from torch import Tensor

Grid = tuple[int, int]
"""Rows and columns."""


@dataclass(frozen=True, slots=True)
class PatchPooling:
    """How the patch tokens of a teacher become values of cells."""

    grid: int
    """Rows and columns of cells of a square view."""

    basis_PD: NDArray[np.float32] | None
    """Map to the values of a cell; None: the tokens as they are."""

    def num_values(self, width: int) -> int:
        """Return the values of a view: its cells, and rows and columns of their grid."""
        dim = width if self.basis_PD is None else len(self.basis_PD)
        return self.grid * self.grid * dim + 2

    def append(self, rows_BE: "Tensor", tokens_BND: "Tensor", grids: Sequence[Grid]) -> "Tensor":
        """Return embeddings followed by the values of the cells, and the grids of these, in float32."""
        import torch

        cells = [cell_grid(*grid, self.grid) for grid in grids]
        with torch.autocast(tokens_BND.device.type, enabled=False):
            values_BCP = pool_tokens(tokens_BND.float(), grids, cells, self.grid * self.grid)
            if self.basis_PD is not None:
                values_BCP = values_BCP @ on_device(self.basis_PD, values_BCP).T
            cells_B2 = on_device(np.array(cells, np.float32), values_BCP)
            return torch.cat([rows_BE.float(), values_BCP.flatten(1), cells_B2], dim=1)


def cell_grid(rows: int, columns: int, grid: int) -> Grid:
    """Return the rows and columns of cells of a view with so many rows and columns of patches.

    There are at most ``grid * grid`` cells, in about the aspect ratio of the view, and no more than patches.
    A view that has no more patches than that keeps them all.
    """
    if rows * columns <= grid * grid:
        return rows, columns
    high = min(rows, grid * grid, max(1, math.floor(grid * math.sqrt(rows / columns) + 0.5)))
    return high, min(columns, max(1, grid * grid // high))


@functools.lru_cache(maxsize=4096)
def pooling_matrix(patches: Grid, cells: Grid) -> NDArray[Any]:
    """Return the float64 matrix (cells, patches), in row order, by which cells are means of patches.

    Cell i of n along an axis of m patches is the mean of patches floor(i m / n) to below
    ceil((i + 1) m / n), as in torch's adaptive_avg_pool2d: of the same number if n divides m, of
    overlapping ones otherwise, and of repeated ones if n is above m.
    """
    of_rows, of_columns = (_axis_matrix(m, n) for m, n in zip(patches, cells, strict=True))
    return np.kron(of_rows, of_columns)


def _axis_matrix(num_patches: int, num_cells: int) -> NDArray[np.float64]:
    matrix = np.zeros((num_cells, num_patches))
    for i in range(num_cells):
        first, end = i * num_patches // num_cells, -(-(i + 1) * num_patches // num_cells)
        matrix[i, first:end] = 1 / (end - first)
    return matrix


def pool_tokens(
    tokens_BND: "Tensor", grids: Sequence[Grid], cells: Sequence[Grid], num_cells: int
) -> "Tensor":
    """Return the mean token of each cell, (B, C, D), zeros after those of a view; gradients flow.

    Args:
        tokens_BND: tokens in row order; those after the patches of a view are ignored.
        grids: rows and columns of patches of each view.
        cells: rows and columns of cells of each view.
        num_cells: C, at least the cells of any view.
    """
    pairs = list(zip(grids, cells, strict=True))
    different = (
        pairs[:1] if len(set(pairs)) == 1 else pairs
    )  # one matrix for all views, or one for each
    weights_BCN = np.zeros((len(different), num_cells, tokens_BND.shape[1]))
    for weights_CN, (patches, of_view) in zip(weights_BCN, different, strict=True):
        matrix = pooling_matrix(patches, of_view)
        weights_CN[: matrix.shape[0], : matrix.shape[1]] = matrix
    return on_device(weights_BCN, tokens_BND) @ tokens_BND


def on_device(array: NDArray[Any], like: "Tensor") -> "Tensor":
    """Return an array on the device and in the dtype of a tensor, without waiting for the device."""
    import torch

    return to_device(torch.from_numpy(array).to(like.dtype), like.device)
