"""Verification of the units of a teacher: the bytes of their files, and the values in them."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ...errors import CacheError
from ..cache import Cache
from ..format import layout
from ..format.layout import ArrayName, Modality
from ..format.manifest import Unit
from ..format.shard import NORM_TOLERANCE, describe_mismatch
from ..format.teacher_record import TeacherRecord
from ..format.unit_records import UnitRecord
from .files import Checked, FileChecker
from .patches import PatchChecker
from .shard_reader import ShardReader


@dataclass(slots=True)
class UnitFound:
    """The result of checking a unit."""

    modality: Modality
    checked: Checked = field(default_factory=Checked)
    num_rows: int = 0
    """Rows whose values were checked."""

    num_rejected: int = 0


class UnitChecker:
    """Checks the units of one array of a teacher. May be called in several threads."""

    def __init__(
        self,
        cache: Cache,
        record: TeacherRecord,
        modality: Modality,
        checker: FileChecker,
        *,
        is_raw: Mapping[ArrayName, bool],
    ) -> None:
        """Check nothing yet.

        Args:
            cache: the cache.
            record: the teacher.
            modality: modality of the array.
            checker: checks the files.
            is_raw: whether the shards of each array contain raw rows; without those whose metadata are
                damaged.
        """
        self._cache, self._teacher = cache, record.name
        self._modality: Modality = modality
        self._array = cache.array_layout(modality, record.name)
        self._checker, self._is_raw = checker, is_raw.get(modality)
        self._patches = None
        if modality == "image" and record.patches is not None:
            patches = cache.manifest.patch_layout(record.patches)
            self._patches = PatchChecker(cache, record, patches, is_raw=is_raw.get("patch"))

    def check(self, unit: Unit, commit: UnitRecord) -> UnitFound:
        """Return the faults of a committed unit. Memory holds a piece of its shard at a time."""
        found = UnitFound(self._modality)
        owner = layout.unit_record(self._teacher, self._modality, unit.number, commit.attempt)
        shard = layout.shard(self._teacher, self._modality, unit.number)
        images = layout.images_part(self._teacher, unit.number)
        reader = ShardReader(self._array, unit.rows.count)
        seen: list[bytes] = []
        takes: dict[str, Callable[[bytes], object]] = {images: seen.append}
        if self._is_raw:
            takes[shard] = reader.take
        patch_reader = None if self._patches is None else self._patches.reader(unit)
        if patch_reader is not None:
            takes[layout.shard(self._teacher, "patch", unit.number)] = patch_reader.take
        sound = [
            self._checker.check(path, description, owner, found.checked, takes.get(path, _pass))
            for path, description in commit.files.items()
        ]
        faults = found.checked.faults
        if commit.num_rows != unit.rows.count:
            faults.append(f"{owner} has {commit.num_rows} rows, {unit.rows.count} were planned")
        elif all(sound) and self._is_raw is not None:
            try:
                norms_NV = self._norms(unit, reader)
            except CacheError as error:
                faults.append(str(error))
            else:
                found.num_rows, found.num_rejected = len(norms_NV), len(commit.rejected)
                faults += self._wrong_values(unit, commit, norms_NV, owner)
            if self._patches is not None and patch_reader is not None:
                faults += self._patches.faults(unit, commit, patch_reader, owner)
            if self._modality == "image":
                faults += _wrong_images(images, b"".join(seen), unit, commit, owner)
        return found

    def _norms(self, unit: Unit, reader: ShardReader) -> NDArray[np.float32]:
        """Return the norm of every vector, (N, V). A shard without raw rows is read again."""
        if self._is_raw and not reader.is_whole:
            where = self._cache.files.where(layout.shard(self._teacher, unit.modality, unit.number))
            raise CacheError(
                describe_mismatch(where, reader.num_bytes, self._array, unit.rows.count)
            )
        if self._is_raw:
            return reader.norms_NV
        values = self._cache.targets(unit.modality, self._teacher).read_unit(unit.number)
        return np.linalg.norm(values.astype(np.float32), axis=-1).reshape(len(values), -1)

    def _wrong_values(
        self, unit: Unit, commit: UnitRecord, norms_NV: NDArray[np.float32], owner: str
    ) -> list[str]:
        rejected = np.array(sorted(commit.rejected), np.int64) - unit.rows.first
        if len(rejected) and not 0 <= rejected[0] <= rejected[-1] < len(norms_NV):
            return [f"{owner} lists rejected rows outside its unit"]
        is_rejected_N = np.zeros(len(norms_NV), np.bool_)
        is_rejected_N[rejected] = True
        is_nan_N = np.isnan(norms_NV).any(axis=1)
        is_finite_N = np.isfinite(norms_NV).all(axis=1)
        is_zero_N = (norms_NV == 0).any(axis=1)
        is_unit_N = (np.abs(norms_NV - 1) < NORM_TOLERANCE).all(axis=1)
        wrong = {
            "rejected but not NaN": is_rejected_N & ~is_nan_N,
            "not finite although not rejected": ~is_rejected_N & ~is_finite_N,
            "zero": ~is_rejected_N & is_zero_N,
            "not of norm 1": ~is_rejected_N & ~is_unit_N & is_finite_N & ~is_zero_N,
        }
        return [
            f"{self._teacher}: {int(rows_N.sum())} {unit.modality} rows of unit {unit.number} "
            f"are {what} (first: row {unit.rows.first + int(np.flatnonzero(rows_N)[0])}, {owner})"
            for what, rows_N in wrong.items()
            if rows_N.any()
        ]


def _pass(piece: bytes) -> None:
    pass


def _wrong_images(part: str, data: bytes, unit: Unit, commit: UnitRecord, owner: str) -> list[str]:
    try:
        frame = pl.read_parquet(io.BytesIO(data)).select("row", "sha256")
    except (pl.exceptions.PolarsError, OSError):
        return [f"{part} is not a table of the rows of {owner}"]
    faults: list[str] = []
    if not np.array_equal(frame["row"].to_numpy(), np.arange(unit.rows.first, unit.rows.end)):
        faults.append(f"{part} does not contain the rows of {owner}")
    if set(frame.filter(pl.col("sha256").is_null())["row"]) != set(commit.rejected):
        faults.append(f"{part} has other rejected rows than {owner}")
    return faults
