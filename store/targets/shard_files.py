"""Where the shards of an array lie, and getting them onto this machine where that is elsewhere."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ...errors import DamagedCacheError
from ..format import layout
from ..format.shard import ArrayLayout, parse_metadata
from ..format.unit_records import UnitRecord
from ..io.location import Location
from ..io.storage import Storage
from .attempts import fetch_unit_file


class ShardFiles:
    """The files of an array's shards; copies of them, where the cache lies in an object store."""

    def __init__(
        self,
        files: Storage,
        array: ArrayLayout,
        teacher: str,
        commits: Mapping[int, UnitRecord],
    ) -> None:
        """Remember them; ``commits`` are the committed units by number."""
        self._files, self.array, self._teacher = files, array, teacher
        self._described: dict[int, Mapping[str, Any]] = {}
        if files.is_remote:  # local files are mapped where they are
            named = {unit: commit.files.get(self._shard(unit)) for unit, commit in commits.items()}
            self._described = {unit: each for unit, each in named.items() if each is not None}

    @property
    def array_folder(self) -> str:
        """The Zarr array, for programs that open one."""
        return self._files.where(layout.array_folder(self._teacher, self.array.modality))

    @property
    def are_remote(self) -> bool:
        """Whether the cache is in an object store."""
        return self._files.is_remote

    def path(self, unit: int) -> Path:
        """Return a unit's shard as a file of this machine; it need not be there.

        Raises:
            DamagedCacheError: an object is missing, or not the one its record describes.
        """
        [path] = self.paths([unit])
        return path

    def paths(self, units: Sequence[int]) -> list[Path]:
        """Return several as path; objects are fetched some at a time."""
        wanted = [(self._shard(unit), self._described.get(unit, {})) for unit in units]
        try:
            try:
                return self._files.fetch_all(wanted)
            except DamagedCacheError:  # one of them, perhaps for it was committed again
                return [self._fetch_again(unit) for unit in units]
        except FileNotFoundError as error:
            raise DamagedCacheError(
                f"a shard is missing ({error}) although its unit is committed; run siglip2-cache verify"
            ) from None

    def _fetch_again(self, unit: int) -> Path:
        found, self._described[unit] = fetch_unit_file(
            self._files,
            self._shard(unit),
            self._described.get(unit, {}),
            teacher=self._teacher,
            modality=self.array.modality,
            unit=unit,
        )
        return found

    def where(self, unit: int) -> str:
        """Return a unit's shard, for messages."""
        return self._files.where(self._shard(unit))

    def location(self, unit: int) -> Location:
        """Return where a unit's shard lies."""
        return self._files.root / self._shard(unit)

    def exists(self, unit: int) -> bool:
        """Say whether a unit's shard is there."""
        return self._files.exists(self._shard(unit))

    def fit_locally(self) -> bool:
        """Return whether copies of all shards fit on this machine."""
        return self._files.fits_locally(sum(int(d["num_bytes"]) for d in self._described.values()))

    @cached_property
    def have_raw_rows(self) -> bool:
        """Whether the array's metadata, which is read once, describes shards that are raw rows.

        Raises:
            DamagedCacheError: there is no metadata, or it is no JSON.
        """
        path = layout.array_metadata(self._teacher, self.array.modality)
        try:
            data = self._files.read(path)
        except FileNotFoundError:
            data = b""
        return self.array.matches_map(parse_metadata(data, where=self._files.where(path)))

    def _shard(self, unit: int) -> str:
        return layout.shard(self._teacher, self.array.modality, unit)
