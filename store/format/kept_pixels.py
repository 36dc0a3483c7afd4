"""Kept pixels: each image of a cache again, small, one tar a unit (docs/reference/format.md, Kept pixels)."""

import secrets
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import polars as pl

from ...errors import DamagedCacheError
from ..io.storage import Storage
from . import layout
from .catalog import read_table
from .pixel_settings import PixelSettings
from .record_fields import read_record
from .records import encode_record
from .unit_records import CommittedUnits, UnitRecord, read_committed_units

BLOCK = 512
"""Bytes of a header of a tar; the bytes of a member are padded to whole blocks."""

END = bytes(2 * BLOCK)
"""What a tar ends with."""

_TRANSPARENCIES = ("on white", "ignored")


def read_pixel_settings(files: Storage) -> PixelSettings | None:
    """Return how the images of a cache are kept, or None if they are not.

    Raises:
        FormatVersionError, DamagedCacheError: the record cannot be read.
    """
    record = read_record(files, layout.PIXELS_RECORD)
    if record is None:
        return None
    transparency = record.text("transparency")
    if transparency not in _TRANSPARENCIES:
        record.refuse("transparency", " or ".join(map(repr, _TRANSPARENCIES)))
    return PixelSettings(
        short_side=record.count("short_side", least=32, most=4096),
        quality=record.count("quality", least=50, most=100),
        on_white=transparency == "on white",
    )


def create_pixel_settings(files: Storage, settings: PixelSettings) -> None:
    """Record how the images are kept, unless another process has."""
    record = {
        "short_side": settings.short_side,
        "quality": settings.quality,
        "transparency": _TRANSPARENCIES[0 if settings.on_white else 1],
        "files": {},
    }
    files.create(layout.PIXELS_RECORD, encode_record(record), token=secrets.token_hex(6))


@dataclass(frozen=True)
class KeptPixels:
    """The kept pixels of a cache, as committed when they were read."""

    files: Storage
    settings: PixelSettings
    commits: CommittedUnits = field(repr=False)

    @cached_property
    def units(self) -> Mapping[int, UnitRecord]:
        """The committed units by number."""
        return self.commits.units_of("image")

    @property
    def num_images(self) -> int:
        """Images kept."""
        return sum(unit.num_rows - len(unit.rejected) for unit in self.units.values())

    @property
    def num_bytes(self) -> int:
        """Bytes of all their files."""
        return sum(f["num_bytes"] for unit in self.units.values() for f in unit.files.values())

    def index(self, unit: int) -> pl.DataFrame:
        """Return where each image of a committed unit is in its tar, by row: the columns of PIXELS_SCHEMA.

        Raises:
            DamagedCacheError: the table is missing or damaged.
        """
        path = layout.pixels_index(unit)
        try:
            return read_table(self.files.fetch(path, self.units[unit].files[path]))
        except (KeyError, OSError, pl.exceptions.PolarsError):
            raise DamagedCacheError(
                f"{self.files.where(path)} is missing or damaged; run siglip2-cache verify"
            ) from None


def read_kept_pixels(files: Storage, *, shard_rows: int) -> KeptPixels | None:
    """Return the kept pixels of a cache, or None if it has none."""
    settings = read_pixel_settings(files)
    if settings is None:
        return None
    commits = read_committed_units(files, layout.PIXELS_COMMITS, shard_rows=shard_rows)
    return KeptPixels(files, settings, commits)


def member_name(row: int) -> str:
    """Return the name of the image of a row in its tar."""
    return f"{row:012d}.jpg"


def member_header(row: int, num_bytes: int) -> bytes:
    """Return the block before the bytes of an image: the same on every machine."""
    info = tarfile.TarInfo(member_name(row))
    info.size = num_bytes
    return info.tobuf(tarfile.USTAR_FORMAT)


def padding(num_bytes: int) -> int:
    """Return how many zero bytes follow the bytes of an image."""
    return -num_bytes % BLOCK
