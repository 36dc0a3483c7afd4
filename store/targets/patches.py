"""Reading patch targets: the pooled hidden states of views, in any order."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..format.patch_encoding import PatchBatch, decode_patches
from ..format.patch_map import PatchMap
from ..format.teacher_record import PatchSettings
from .targets import Targets


class PatchTargets:
    """The patch targets of a teacher, as committed when the cache was opened.

    Can be pickled, and used in forked, forkserver and spawned processes.
    """

    def __init__(self, stored: Targets, patch_map: PatchMap) -> None:
        """Set the array of stored rows, and the map of their values."""
        self._stored, self._map = stored, patch_map

    @property
    def settings(self) -> PatchSettings:
        """The grid, the width of a cell, and the root mean square of a value."""
        return self._map.settings

    @property
    def basis(self) -> NDArray[np.float32]:
        """The map (P, W) with orthonormal rows: ``values @ basis`` are hidden states of width W."""
        return self._map.basis_PW

    def read(self, rows: ArrayLike, views: ArrayLike | None = None) -> PatchBatch:
        """Return the cells of views in the order requested, and their grids.

        Args:
            rows: (V,) row numbers, in any order, repeats allowed.
            views: None for view 0, one view for all rows, or (V,) one view a row.

        Raises:
            RowUnavailableError: a row is out of range, a gap, not committed, or rejected, or there is no
                such view.
        """
        return decode_patches(self._stored.read_rows(rows, views), self.settings.num_cells)

    def read_stored(self, unit: int, first: int, out: NDArray[Any]) -> None:
        """Fill ``out`` (n, views, S) with rows of a committed unit as they are stored."""
        self._stored.read_stored(unit, first, out)
