"""The map of patch targets: from a teacher's hidden states to the values that are stored of a cell.

Its rows are the leading directions of an uncentred PCA, turned by one more orthonormal map so that each value
has the same mean square. Then int8 with one scale a cell is exact, and one number makes all values of about
unit size.

Source of that turn: PHI-S, Ranzinger et al. 2024, arXiv:2410.01680.

Shape letters in this file: N = cells of the sample, P = values of a cell, W = width of the hidden states.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import DamagedCacheError
from ..io.storage import Storage
from . import layout
from .matrix import matrix_files, read_orthonormal, read_shape
from .row_encoding import spreading_map
from .teacher_record import PatchSettings, TeacherRecord


@dataclass(frozen=True, slots=True)
class PatchMap:
    """The settings of patch targets and their map."""

    settings: PatchSettings
    basis_PW: NDArray[np.float32]
    """``values = hidden_states @ basis.T``; ``values @ basis`` are the nearest hidden states."""

    def files(self, teacher: str) -> Mapping[str, bytes]:
        """Return the files of the map by path."""
        return matrix_files(layout.patch_basis(teacher), self.basis_PW, ("value", "hidden_size"))


def fit_patch_map(
    cells_NW: NDArray[np.float32], *, grid: int, dim: int, num_images: int
) -> PatchMap:
    """Return the map of patch targets by the cells of a sample.

    Args:
        cells_NW: pooled hidden states; N may be less than W.
        grid: rows and columns of cells of a square view.
        dim: P, at most W.
        num_images: images of the sample, for the record.
    """
    values, vectors_WW = np.linalg.eigh(cells_NW.T.astype(np.float64) @ cells_NW.astype(np.float64))
    leading_PW = vectors_WW[:, ::-1][:, :dim].T
    squares = np.maximum(values[::-1], 0)
    total = max(float(squares.sum()), np.finfo(np.float64).tiny)
    kept = float(squares[:dim].sum())
    settings = PatchSettings(
        grid=grid,
        dim=dim,
        width=cells_NW.shape[1],
        rms=float(np.sqrt(kept / max(1, len(cells_NW)) / dim)) or 1.0,
        kept=kept / total,
        num_images=num_images,
    )
    return PatchMap(settings, (spreading_map(dim) @ leading_PW).astype(np.float32))


def read_patch_map(files: Storage, record: TeacherRecord) -> PatchMap | None:
    """Return the map of a teacher's patch targets; None without any.

    Raises:
        DamagedCacheError: it is missing, does not match the record, or is not orthonormal.
    """
    settings = record.patches
    if settings is None:
        return None
    folder, shape = layout.patch_basis(record.name), (settings.dim, settings.width)
    if read_shape(files, record, folder) != shape:
        raise DamagedCacheError(
            f"{files.where(layout.matrix_metadata(folder))} is not the map of patch targets of "
            f"{settings.dim} values of {settings.width} as docs/reference/format.md specifies it; restore "
            "it from a backup"
        )
    return PatchMap(settings, read_orthonormal(files, record, folder, shape))
