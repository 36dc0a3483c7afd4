"""How many bytes a build writes, and whether they fit on the disk."""

import shutil
from collections import Counter
from collections.abc import Sequence

from upath import UPath

from ...errors import DiskFullError
from ...formatting import format_bytes
from ...store.cache import Cache
from ...store.format.layout import Modality
from ...store.format.shard import ArrayLayout

IMAGE_BYTES = 36
"""Expected bytes of a row of teachers/<name>/images; 32 of them are a hash."""

_IMAGES_ROW_BYTES = IMAGE_BYTES + 8
"""The same with some margin."""


def unit_bytes(array: ArrayLayout, num_rows: int) -> int:
    """Return the bytes of a unit in an array: exact for its shard, approximate for its images table."""
    images = _IMAGES_ROW_BYTES * num_rows if array.name == "image" else 0
    return array.shard_bytes(num_rows) + images


def bytes_to_write(
    cache: Cache, arrays: Sequence[ArrayLayout], done: set[tuple[Modality, int]]
) -> int:
    """Return the bytes of the units that are not done, in all arrays of a teacher."""
    num_bytes = 0
    for array in arrays:
        units = cache.manifest.units(array.modality)
        sizes = Counter(u.rows.count for u in units if (array.modality, u.number) not in done)
        num_bytes += sum(count * unit_bytes(array, rows) for rows, count in sizes.items())
    return num_bytes


def refuse_small_disk(
    cache: Cache, arrays: Sequence[ArrayLayout], done: set[tuple[Modality, int]]
) -> None:
    """Refuse a build that does not fit on the disk.

    Args:
        cache: the cache.
        arrays: all arrays of the teacher.
        done: units that are written already.

    Raises:
        DiskFullError: the units that are not done need more than the free space.
    """
    if isinstance(cache.root, UPath):  # object stores do not report their free space
        return
    needed = bytes_to_write(cache, arrays, done)
    free = shutil.disk_usage(cache.root).free
    if needed > free:
        raise DiskFullError(
            f"the disk of {cache.root} has {format_bytes(free)} free and this build writes "
            f"{format_bytes(needed)}; free some space, or build on another disk"
        )
