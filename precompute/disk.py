"""How many bytes a build writes, and whether the disk has room for them."""

import shutil

from upath import UPath

from ..errors import DiskFullError
from ..store.arrays import ArrayLayout
from ..store.cache import Cache
from ..store.layout import MODALITIES, Modality
from ..words import format_bytes

_IMAGES_ROW_BYTES = 44
"""One row of teachers/<name>/images: 32 of hash, the rest with some room."""


def unit_bytes(array: ArrayLayout, num_rows: int) -> int:
    """Return the bytes of a unit's files: exact for its shard, near for its images table."""
    images = _IMAGES_ROW_BYTES * num_rows if array.modality == "image" else 0
    return array.shard_bytes(num_rows) + images


def bytes_to_write(cache: Cache, embed_dim: int, done: set[tuple[Modality, int]]) -> int:
    """Return the bytes of the units that are not done."""
    return sum(
        unit_bytes(cache.manifest.array_layout(modality, embed_dim), unit.rows.count)
        for modality in MODALITIES
        for unit in cache.manifest.units(modality)
        if (modality, unit.number) not in done
    )


def refuse_small_disk(cache: Cache, embed_dim: int, done: set[tuple[Modality, int]]) -> None:
    """Refuse a build that the disk has no room for.

    Raises:
        DiskFullError: the units that are not done need more than is free.
    """
    if isinstance(cache.root, UPath):  # a store says of no end
        return
    needed = bytes_to_write(cache, embed_dim, done)
    free = shutil.disk_usage(cache.root).free
    if needed > free:
        raise DiskFullError(
            f"the disk of {cache.root} has {format_bytes(free)} free and this build writes "
            f"{format_bytes(needed)}; free some, or build on another disk"
        )
