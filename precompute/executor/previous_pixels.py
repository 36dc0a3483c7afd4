"""The kept pixels of the last attempt at a unit, which a new attempt takes over."""

import io
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from ...errors import DamagedCacheError
from ...images.image import DecodedImage
from ...store.format import layout
from ...store.format.manifest import Unit
from ...store.format.records import sha256_hex
from ...store.format.unit_records import UnitRecord
from ...store.io.storage import Storage

_COLUMNS = ("row", "offset", "length", "width", "height", "sha256", "source_sha256")


@dataclass(frozen=True, slots=True)
class _Place:
    offset: int
    length: int
    size: tuple[int, int]
    source: bytes


@dataclass(frozen=True, slots=True)
class PreviousPixels:
    """The images of an attempt whose bytes are intact."""

    tar: mmap.mmap | bytes = b""
    """Mapped, so that it can still be read after another process has replaced it."""

    places: Mapping[int, _Place] = field(default_factory=dict[int, _Place])
    """Where each intact image is in the tar, by row, ascending."""

    at_stake: frozenset[int] = frozenset()
    """Rows that cannot be taken over although their images may be intact."""

    damaged: str = ""
    """The file that is the reason."""

    def source(self, row: int) -> bytes | None:
        """Return the hash of the image that a row was kept from; None if it cannot be taken over."""
        place = self.places.get(row)
        return None if place is None else place.source

    def image(self, row: int) -> DecodedImage:
        """Return an intact image as a decoder returns it to be kept."""
        place = self.places[row]
        kept = bytes(self.tar[place.offset : place.offset + place.length])
        return DecodedImage(sha256=place.source, kept=kept, kept_size=place.size)


def read_previous_pixels(files: Storage, unit: Unit, previous: UnitRecord | None) -> PreviousPixels:
    """Return the images that an attempt at a unit kept, after comparing each with its hash.

    Args:
        files: the cache.
        unit: the unit.
        previous: the record of the attempt; None: there is none.
    """
    if previous is None:
        return PreviousPixels()
    rows = range(unit.rows.first, unit.rows.end)
    accepted = frozenset(rows) - previous.rejected.keys()
    path, index = layout.pixels_tar(unit.number), layout.pixels_index(unit.number)
    try:
        tar = _map_tar(files, path, previous.files[path])
    except (KeyError, FileNotFoundError):
        return PreviousPixels()
    except DamagedCacheError:
        return PreviousPixels(at_stake=accepted, damaged=path)
    try:
        frame = _read_index(files, index, previous.files[index])
    except (KeyError, FileNotFoundError, DamagedCacheError):
        return PreviousPixels(at_stake=accepted, damaged=index)
    places: dict[int, _Place] = {}
    for row, offset, length, width, height, own_hash, source in frame.iter_rows():
        if sha256_hex(tar[offset : offset + length]) == own_hash.hex():
            places[row] = _Place(offset, length, (width, height), source)
    return PreviousPixels(tar, places)


def _map_tar(files: Storage, path: str, description: Mapping[str, Any]) -> mmap.mmap | bytes:
    """Return the bytes of a tar; on this machine they may be damaged.

    Raises:
        FileNotFoundError: it is missing.
        DamagedCacheError: an object does not match its description.
    """
    with files.fetch(path, description).open("rb") as file:
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # an empty file cannot be mapped
            return b""


def _read_index(files: Storage, path: str, description: Mapping[str, Any]) -> pl.DataFrame:
    """Return the table of a tar, ascending by row.

    Raises:
        FileNotFoundError: it is missing.
        DamagedCacheError: it does not match its description.
    """
    data = files.read(path)
    if sha256_hex(data) != description["sha256"]:
        raise DamagedCacheError(f"{files.where(path)} is damaged")
    return pl.read_parquet(io.BytesIO(data)).select(_COLUMNS).sort("row")
