"""How the patch targets of a view are stored: int8 values with a scale a cell, and the grid of its cells.

Shape letters in this file:
    V = views, C = cells that a view has room for, P = values of a cell, S = stored bytes of a view.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .row_encoding import RowEncoding

_LARGEST = 127
_TAIL = np.dtype([("scale", "<f4"), ("grid", "<u2", (2,))])

CELL = RowEncoding(name="int8", dtype=np.dtype("i1"), fill_value=0, num_extra=_TAIL.itemsize)
"""A cell: P int8 values, the float32 scale, and rows and columns of the grid of its view in two uint16."""


@dataclass(frozen=True, slots=True)
class PatchBatch:
    """Patch targets of some views."""

    values_VCP: NDArray[np.float16]
    """(V, C, P): the cells of each view's grid in row order, then zeros."""

    grids_V2: NDArray[np.int64]
    """(V, 2): rows and columns of cells of each view; zeros without a target."""


def encode_patches(values_VCP: NDArray[Any], grids_V2: NDArray[Any]) -> NDArray[np.int8]:
    """Return the stored views, (V, S), of finite cells; cells beyond a view's grid are zeros."""
    V, C, P = values_VCP.shape
    stored_VCS = np.zeros((V, C, CELL.stored_dim(P)), np.int8)
    is_cell_VC = np.arange(C) < grids_V2.prod(axis=1)[:, None]
    cells_NP = values_VCP[is_cell_VC].astype(np.float32)
    largest_N1 = np.abs(cells_NP).max(axis=1, keepdims=True)
    largest_N1[largest_N1 == 0] = _LARGEST  # zeros with any scale, since a scale of 0 is no cell
    tail_N = np.empty(len(cells_NP), _TAIL)
    tail_N["scale"] = largest_N1[:, 0] / _LARGEST
    tail_N["grid"] = np.broadcast_to(grids_V2[:, None], (V, C, 2))[is_cell_VC]
    cells_NP *= _LARGEST / largest_N1
    steps_NP = np.rint(cells_NP, out=cells_NP).astype(np.int8)
    tail_NS = tail_N.view(np.int8).reshape(-1, _TAIL.itemsize)
    stored_VCS[is_cell_VC] = np.concatenate([steps_NP, tail_NS], axis=1)
    return stored_VCS.reshape(V, C * CELL.stored_dim(P))


def decode_patches(stored_VS: NDArray[np.int8], num_cells: int) -> PatchBatch:
    """Return the patch targets of stored views, (V, S)."""
    stored_VCS = stored_VS.reshape(-1, num_cells, stored_VS.shape[1] // num_cells)
    tail_VC = _tails(stored_VCS)
    values_VCP = stored_VCS[..., : -_TAIL.itemsize] * tail_VC["scale"][..., None]
    return PatchBatch(values_VCP.astype(np.float16), tail_VC["grid"][:, 0].astype(np.int64))


def count_whole_grids(stored_VS: NDArray[np.int8], num_cells: int) -> NDArray[np.float32]:
    """Return 1 for each view whose cells are those of its grid, NaN for one of zeros, and 0 for others."""
    stored_VCS = stored_VS.reshape(-1, num_cells, stored_VS.shape[1] // num_cells)
    tail_VC = _tails(stored_VCS)
    grid_VC2 = tail_VC["grid"].astype(np.int64)
    is_cell_VC = np.arange(num_cells) < grid_VC2[:, :1].prod(axis=-1)
    scale_VC = tail_VC["scale"]
    is_right_VC = np.where(
        is_cell_VC,
        (grid_VC2 == grid_VC2[:, :1]).all(axis=-1) & np.isfinite(scale_VC) & (scale_VC > 0),
        ~stored_VCS.any(axis=-1),
    )
    is_right_V = is_right_VC.all(axis=1) & (grid_VC2[:, 0].prod(axis=-1) <= num_cells)
    is_empty_V = ~stored_VS.any(axis=1)
    return np.where(is_empty_V, np.nan, is_right_V).astype(np.float32)


def _tails(stored_VCS: NDArray[np.int8]) -> NDArray[np.void]:
    tail_VCS = np.ascontiguousarray(stored_VCS[..., -_TAIL.itemsize :])
    return tail_VCS.view(_TAIL)[..., 0]
