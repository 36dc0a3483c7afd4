"""Verification of patch targets: rows with a target have a whole grid of cells, and rejected ones nothing."""

from functools import partial

import numpy as np

from ...errors import CacheError
from ..cache import Cache
from ..format import layout
from ..format.manifest import Unit
from ..format.patch_encoding import count_whole_grids
from ..format.shard import ArrayLayout, describe_mismatch
from ..format.teacher_record import TeacherRecord
from ..format.unit_records import UnitRecord
from .shard_reader import ShardReader


class PatchChecker:
    """Checks the patch targets of the image units of a teacher. May be called in several threads."""

    def __init__(
        self, cache: Cache, record: TeacherRecord, array: ArrayLayout, *, is_raw: bool | None
    ) -> None:
        """Check nothing yet.

        Args:
            cache: the cache.
            record: the teacher.
            array: its array of patch targets.
            is_raw: whether its shards contain raw rows; None if the metadata of the array are damaged.
        """
        self._cache, self._teacher, self._array, self._is_raw = cache, record.name, array, is_raw
        assert array.num_cells is not None
        self._measure = partial(count_whole_grids, num_cells=array.num_cells)

    def reader(self, unit: Unit) -> ShardReader:
        """Return what takes the bytes of the shard of a unit."""
        return ShardReader(self._array, unit.rows.count, self._measure)

    def faults(self, unit: Unit, commit: UnitRecord, reader: ShardReader, owner: str) -> list[str]:
        """Return the faults of a unit whose files match their record.

        Args:
            unit: the unit.
            commit: its record.
            reader: what took the bytes of its shard.
            owner: path of the record.
        """
        shard = layout.shard(self._teacher, "patch", unit.number)
        if shard not in commit.files:
            return [f"{owner} does not name {shard}"]
        if self._is_raw is None:
            return []
        whole_NV = reader.norms_NV
        if not self._is_raw:
            count = unit.rows.count
            stored = self._array.encoding.empty_rows((count, *self._array.row_shape))
            try:
                self._cache.patch_targets(self._teacher).read_stored(unit.number, 0, stored)
            except CacheError as error:
                return [str(error)]
            whole_NV = self._measure(stored.reshape(-1, self._array.stored_dim)).reshape(count, -1)
        elif not reader.is_whole:
            where = self._cache.files.where(shard)
            return [describe_mismatch(where, reader.num_bytes, self._array, unit.rows.count)]
        is_rejected_N = np.isin(np.arange(unit.rows.first, unit.rows.end), list(commit.rejected))
        is_wrong_N = np.where(
            is_rejected_N, ~np.isnan(whole_NV).all(axis=1), ~(whole_NV == 1).all(axis=1)
        )
        if not is_wrong_N.any():
            return []
        first = unit.rows.first + int(np.flatnonzero(is_wrong_N)[0])
        return [
            f"{self._teacher}: the patch targets of {int(is_wrong_N.sum())} rows of image unit "
            f"{unit.number} are no whole grid of cells, or are there although the row is rejected (first: "
            f"row {first}, {owner})"
        ]
