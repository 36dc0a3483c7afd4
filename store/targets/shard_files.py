"""The files of the shards of an array, copied to this machine if they are in an object store."""

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
    """The files of the shards of an array, or local copies of them."""

    def __init__(
        self,
        files: Storage,
        array: ArrayLayout,
        teacher: str,
        commits: Mapping[int, UnitRecord],
    ) -> None:
        """Fetch nothing yet; ``commits`` are the committed units by number."""
        self._files, self.array, self._teacher = files, array, teacher
        self._descriptions: dict[int, Mapping[str, Any]] = {}
        if files.is_remote:  # local files are mapped where they are
            named = {unit: commit.files.get(self._shard(unit)) for unit, commit in commits.items()}
            self._descriptions = {unit: each for unit, each in named.items() if each is not None}

    @property
    def array_folder(self) -> str:
        """The full path or URL of the Zarr array."""
        return self._files.where(layout.array_folder(self._teacher, self.array.name))

    @property
    def are_remote(self) -> bool:
        """Whether the cache is in an object store."""
        return self._files.is_remote

    def path(self, unit: int) -> Path:
        """Return the shard of a unit as a local file. A file on this machine may be missing.

        Raises:
            DamagedCacheError: the object is missing, or does not match its record.
        """
        [path] = self.paths([unit])
        return path

    def paths(self, units: Sequence[int]) -> list[Path]:
        """Return the shards of several units as local files; objects are fetched in parallel."""
        wanted = [(self._shard(unit), self._descriptions.get(unit, {})) for unit in units]
        try:
            try:
                return self._files.fetch_all(wanted)
            except DamagedCacheError:  # perhaps one of the units was committed again
                return [self._fetch_again(unit) for unit in units]
        except FileNotFoundError as error:
            raise DamagedCacheError(
                f"a shard is missing ({error}) although its unit is committed; run siglip2-cache verify"
            ) from None

    def _fetch_again(self, unit: int) -> Path:
        found, self._descriptions[unit] = fetch_unit_file(
            self._files,
            self._shard(unit),
            self._descriptions.get(unit, {}),
            teacher=self._teacher,
            modality=self.array.modality,
            unit=unit,
        )
        return found

    def where(self, unit: int) -> str:
        """Return the full path or URL of the shard of a unit, for messages."""
        return self._files.where(self._shard(unit))

    def location(self, unit: int) -> Location:
        """Return the location of the shard of a unit."""
        return self._files.root / self._shard(unit)

    def exists(self, unit: int) -> bool:
        """Return whether the shard of a unit exists."""
        return self._files.exists(self._shard(unit))

    def fit_locally(self) -> bool:
        """Return whether copies of all shards fit on this machine."""
        return self._files.fits_locally(
            sum(int(d["num_bytes"]) for d in self._descriptions.values())
        )

    @cached_property
    def have_raw_rows(self) -> bool:
        """Whether shards contain raw rows, according to the metadata of the array.

        Raises:
            DamagedCacheError: the metadata are missing or not JSON.
        """
        path = layout.array_metadata(self._teacher, self.array.name)
        try:
            data = self._files.read(path)
        except FileNotFoundError:
            data = b""
        return self.array.matches_map(parse_metadata(data, where=self._files.where(path)))

    def _shard(self, unit: int) -> str:
        return layout.shard(self._teacher, self.array.name, unit)
