"""Reading targets: rows in any order, from memory-mapped shards."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import RowUnavailableError
from ..format.layout import Modality
from ..format.manifest import Manifest
from ..format.row_encoding import DTYPE, FLOAT16, Basis, RowCodec
from ..format.shard import ArrayLayout
from ..format.unit_records import CommittedUnits
from ..io.storage import Storage
from .ranged_rows import make_requests
from .shard_files import ShardFiles
from .shard_maps import Shards, as_items, make_array_map


class Targets:
    """The cached embeddings of one modality by one teacher, as committed when the cache was opened.

    Can be pickled, and used in forked, forkserver and spawned processes: maps are read-only and opened
    again if needed.
    """

    def __init__(
        self,
        files: Storage,
        manifest: Manifest,
        commits: CommittedUnits,
        teacher: str,
        array: ArrayLayout,
        codec: RowCodec,
    ) -> None:
        self.teacher = teacher
        self._codec = codec
        self._root = str(files.root)
        self._array = array
        units = commits.units_of(array.modality)
        num_units = -(-array.num_rows // array.shard_rows)
        self._planned_rows = np.zeros(num_units, np.int64)
        for unit in manifest.units(array.modality):
            self._planned_rows[unit.number] = unit.rows.count
        self._committed_rows = np.zeros(num_units, np.int64)
        for number, commit in units.items():
            if number < num_units:
                self._committed_rows[number] = commit.num_rows
        # All rows below this one are committed.
        is_full = self._committed_rows == array.shard_rows
        num_full = num_units if is_full.all() else int(np.argmin(is_full))
        partial = int(self._committed_rows[num_full]) if num_full < num_units else 0
        self._first_open_row = num_full * array.shard_rows + partial
        self._rejected = np.sort(
            np.fromiter((row for commit in units.values() for row in commit.rejected), np.int64)
        )
        self._reasons = {unit: commit.rejected for unit, commit in units.items() if commit.rejected}
        self._files = ShardFiles(files, array, teacher, units)
        self._shards = Shards(self._files)
        self._map = make_array_map(self._files)
        self._requests = make_requests(self._files)

    @property
    def modality(self) -> Modality:
        """The modality: image or text."""
        return self._array.modality

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape: (rows, views, embed_dim) or (text_rows, embed_dim), gaps included."""
        return self._array.value_shape

    @property
    def dtype(self) -> np.dtype[np.float16]:
        """The dtype of the embeddings: little-endian float16, however they are stored."""
        return DTYPE

    @property
    def rotation(self) -> NDArray[np.float32] | None:
        """The orthonormal map (D, D) from stored axes to the teacher's; None if they are the same.

        ``(stored.reshape(-1, D) @ rotation).reshape(-1, embed_dim)`` are rows in the teacher's axes.
        """
        return self._codec.rotation

    def __len__(self) -> int:
        return self._array.num_rows

    def read(
        self, rows: ArrayLike, views: ArrayLike | None = None, *, basis: Basis = "teacher"
    ) -> NDArray[np.float16]:
        """Return targets in the order requested, (B, embed_dim) float16, L2-normalised.

        Args:
            rows: (B,) row numbers (text_row for texts), in any order, repeats allowed.
            views: None for view 0, one view for all rows, or (B,) one view a row. Images only.
            basis: ``teacher``: the teacher's own axes. ``stored``: those of ``rotation``, which costs
                less for int8. Cosines are the same in both.

        Raises:
            RowUnavailableError: a row is out of range, a gap, not committed, or rejected; the
                message names the first such row. read_masked returns a mask instead.
        """
        return self._codec.decode(self.read_rows(rows, views), basis)

    def read_rows(self, rows: ArrayLike, views: ArrayLike | None = None) -> NDArray[Any]:
        """Return targets as they are stored, (B, stored_dim); otherwise as ``read``."""
        rows_B = _as_rows(rows)
        unit_B = self._units_of(rows_B)
        views_B = self._as_views(views, len(rows_B))
        whole_NS = self._one_map(unit_B)
        if whole_NS is not None:
            return self._take(whole_NS, rows_B, views_B)
        return self._gather(rows_B, views_B)

    def read_masked(
        self, rows: ArrayLike, views: ArrayLike | None = None
    ) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
        """Return targets and a mask; rows without a target are NaN and False.

        Args:
            rows: (B,) row numbers (text_row for texts), in any order, repeats allowed.
            views: None for view 0, one view for all rows, or (B,) one view a row. Images only.

        Returns:
            (B, embed_dim) float16 targets and (B,) bool.
        """
        rows_B = _as_rows(rows)
        valid_B = self.available(rows_B)
        out = np.full((len(rows_B), self._array.embed_dim), np.nan, DTYPE)
        views_B = self._as_views(views, len(rows_B))
        where = np.flatnonzero(valid_B)
        out[where] = self._codec.decode(
            self._gather(rows_B[where], None if views_B is None else views_B[where])
        )
        return out, valid_B

    def available(self, rows: ArrayLike) -> NDArray[np.bool_]:
        """Return whether each row has a target, (B,) bool."""
        rows_B = _as_rows(rows)
        inside_B = (rows_B >= 0) & (rows_B < self._array.num_rows)
        safe_B = np.where(inside_B, rows_B, 0)
        unit_B, position_B = np.divmod(safe_B, self._array.shard_rows)
        if len(self._committed_rows) == 0:
            return np.zeros(len(rows_B), np.bool_)
        committed_B = position_B < self._committed_rows[unit_B]
        if len(self._rejected):
            at_B = np.searchsorted(self._rejected, safe_B).clip(max=len(self._rejected) - 1)
            committed_B &= self._rejected[at_B] != safe_B
        return inside_B & committed_B

    def available_rows(self) -> NDArray[np.int64]:
        """Return all rows that have a target, ascending, int64 (8 bytes of memory a row)."""
        starts = np.arange(len(self._committed_rows)) * self._array.shard_rows
        spans = [
            np.arange(start, start + count)
            for start, count in zip(starts, self._committed_rows, strict=True)
        ]
        rows = np.concatenate([np.empty(0, np.int64), *spans])
        at = np.searchsorted(rows, self._rejected).clip(max=max(0, len(rows) - 1))
        is_among = rows[at] == self._rejected if len(rows) else np.zeros(len(at), np.bool_)
        return np.delete(rows, at[is_among]) if is_among.any() else rows

    def read_unit(self, unit: int) -> NDArray[np.float16]:
        """Return all rows of a committed unit (n, [views,] embed_dim), a read-only map if they are float16.

        Rejected rows are NaN.

        Raises:
            RowUnavailableError: the unit is not committed.
        """
        if not 0 <= unit < len(self._committed_rows) or self._committed_rows[unit] == 0:
            raise RowUnavailableError(self._why_unavailable(unit * self._array.shard_rows))
        return self._codec.decode(self._stored_unit(unit))

    def _stored_unit(self, unit: int) -> NDArray[Any]:
        return self._shards.rows_of(unit, int(self._committed_rows[unit]))

    def committed(self) -> list[tuple[int, int]]:
        """Return (unit, number of rows, rejected ones included) of every committed unit, ascending."""
        return [(unit, int(n)) for unit, n in enumerate(self._committed_rows) if n]

    def rows_of(self, unit: int) -> tuple[int, int]:
        """Return the first row of a unit and the row after its last committed one."""
        first = unit * self._array.shard_rows
        return first, first + int(self._committed_rows[unit])

    def read_part(self, unit: int, first: int, out: NDArray[np.float16]) -> None:
        """Fill ``out`` (n, [views,] embed_dim) with rows of a committed unit from position ``first`` on.

        Nothing is mapped, so memory holds no more than ``out`` and the stored rows.
        """
        if self._array.encoding == FLOAT16:
            self.read_stored(unit, first, out)
            return
        stored = self._array.encoding.empty_rows((len(out), *self._array.row_shape))
        self.read_stored(unit, first, stored)
        self._codec.decode(stored, out=out)

    def read_stored(self, unit: int, first: int, out: NDArray[Any]) -> None:
        """Fill ``out`` (n, *row_shape) with rows of a committed unit as they are stored."""
        self._shards.read_into(unit, int(self._committed_rows[unit]), first, out)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map = make_array_map(self._files)
        self._requests = make_requests(self._files)

    def _units_of(self, rows_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the unit of each row, (B,).

        Raises:
            RowUnavailableError: a row has no target.
        """
        has_all = len(rows_B) > 0 and len(self._rejected) == 0  # nearly always
        if has_all and rows_B.min() >= 0 and rows_B.max() < self._first_open_row:
            return rows_B // self._array.shard_rows
        available_B = self.available(rows_B)
        if not available_B.all():
            raise RowUnavailableError(self._why_unavailable(int(rows_B[~available_B][0])))
        return rows_B // self._array.shard_rows

    def _one_map(self, unit_B: NDArray[np.int64]) -> NDArray[Any] | None:
        """Return the map of the whole array with the shards of these rows, or None if there is no map."""
        if self._map is None:
            return None
        if not self._map.is_mapped[unit_B].all():
            units = [u for u in np.unique(unit_B).tolist() if not self._map.is_mapped[u]]
            if len(units) > 1:
                self._files.paths(units)  # fetches objects in parallel
            for unit in units:
                self._map.map_unit(unit, int(self._committed_rows[unit]))
        return self._map.rows_NS

    def _take(
        self,
        whole_NS: NDArray[Any],
        rows_B: NDArray[np.int64],
        views_B: NDArray[np.int64] | None,
    ) -> NDArray[Any]:
        if self.modality == "image":
            rows_B = rows_B * self._array.num_views
            rows_B += 0 if views_B is None else views_B
        taken = as_items(whole_NS).take(rows_B)
        return taken.view(whole_NS.dtype).reshape(len(rows_B), whole_NS.shape[1])

    def _gather(self, rows_B: NDArray[np.int64], views_B: NDArray[np.int64] | None) -> NDArray[Any]:
        """Return the stored rows (B, stored_dim), shard by shard or by requests."""
        out = np.empty((len(rows_B), self._array.stored_dim), self._array.encoding.dtype)
        unit_B, position_B = np.divmod(rows_B, self._array.shard_rows)
        if self.modality == "image":
            position_B = position_B * self._array.num_views
            position_B += 0 if views_B is None else views_B
        if self._requests is not None:
            self._requests.read_into(unit_B, position_B, out)
            return out
        out_B = as_items(out)
        for unit, where in _group(unit_B):
            shard = as_items(self._stored_unit(unit).reshape(-1, self._array.stored_dim))
            out_B[where] = shard.take(position_B[where])
        return out

    def _as_views(self, views: ArrayLike | None, num_rows: int) -> NDArray[np.int64] | None:
        if views is None:
            return None
        if self.modality == "text":
            raise ValueError("texts have no views")
        views_B = np.broadcast_to(np.asarray(views, np.int64), num_rows)
        wrong = views_B[(views_B < 0) | (views_B >= self._array.num_views)]
        if len(wrong):
            raise RowUnavailableError(
                f"view {wrong[0]} is not in {self._root}, which holds views "
                f"0..{self._array.num_views - 1} of each image"
            )
        return views_B

    def _why_unavailable(self, row: int) -> str:
        name = "row" if self.modality == "image" else "text_row"
        root, last = self._root, self._array.num_rows - 1
        if not 0 <= row <= last:
            holds = f"{name}s 0..{last}" if last >= 0 else f"no {self.modality}s"
            return f"{name} {row} is not in {root}, which holds {holds}; it is probably from another cache"
        unit, position = divmod(row, self._array.shard_rows)
        if position >= self._planned_rows[unit]:
            return f"{name} {row} of {root} is a gap without a sample"
        if position >= self._committed_rows[unit]:
            return (
                f"{name} {row} of {root} has no target by {self.teacher} yet: {self.modality} unit "
                f"{unit} is not committed; run the same siglip2-cache build again"
            )
        reason = self._reasons.get(unit, {}).get(row, "unknown reason")
        return (
            f"{name} {row} of {root} was rejected by {self.teacher}: {reason}; "
            "siglip2-cache build --retry-rejected retries it"
        )


def _as_rows(rows: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(rows)
    if array.size == 0:
        return np.empty(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"rows must be (B,) integers, got {array.dtype} {array.shape}")
    return array.astype(np.int64, copy=False)


def _group(unit_B: NDArray[np.int64]) -> Iterable[tuple[int, NDArray[np.int64]]]:
    """Yield each unit once, with its indexes in ``unit_B``."""
    if len(unit_B) == 0:
        return
    order = np.argsort(unit_B, kind="stable")
    borders = np.flatnonzero(np.diff(unit_B[order])) + 1
    for where in np.split(order, borders):
        yield int(unit_B[where[0]]), where
