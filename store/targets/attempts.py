"""Fetching a unit's files while somebody commits the unit again (``build --retry-rejected``).

Another attempt replaces the files of the one before, and an object store keeps no old ones: who knows
only the earlier record is then given bytes that do not fit it. The later record, or the intent that
comes before it, says what they are. Rows that had a target have it still.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import DamagedCacheError
from ..format import layout
from ..format.layout import Modality
from ..format.record_fields import read_fields
from ..format.transaction import read_intent
from ..io.storage import Storage

_LOOKS = 3
"""An intent that was listed may be finished, and another attempt begun, before it is read."""


def fetch_unit_file(
    files: Storage,
    path: str,
    described: Mapping[str, Any],
    *,
    teacher: str,
    modality: Modality,
    unit: int,
) -> tuple[Path, Mapping[str, Any]]:
    """Return a file of a unit as one of this machine, and what describes it now.

    Args:
        files: the cache.
        path: of the file.
        described: what the unit's record said of it when that was read.
        teacher: name of the teacher.
        modality: of the unit.
        unit: its number.

    Raises:
        FileNotFoundError: there is none.
        DamagedCacheError: it is what no attempt at the unit describes.
    """
    try:
        return files.fetch(path, described), described
    except DamagedCacheError:
        for _ in range(_LOOKS):
            for other in _descriptions(files, path, teacher, modality, unit):
                with contextlib.suppress(DamagedCacheError):
                    return files.fetch(path, other), other
        raise


def _descriptions(
    files: Storage, path: str, teacher: str, modality: Modality, unit: int
) -> Iterator[dict[str, Any]]:
    """Yield what records and intents of a unit say of a file, the latest attempt first."""
    folder = layout.commits_folder(teacher)
    found: list[tuple[int, str]] = []
    for name in files.names(folder):
        parsed = layout.parse_unit_record(name.removesuffix(".intent"))
        if parsed is not None and parsed[:2] == (modality, unit):
            found.append((parsed[2], name))
    for _, name in sorted(found, reverse=True):
        where = f"{folder}/{name}"
        with contextlib.suppress(FileNotFoundError, DamagedCacheError):
            data = files.read(where)
            if name.endswith(".intent"):
                said = read_intent(data, where=where).files
            else:
                said = read_fields(data, where=where).files()
            if path in said:
                yield said[path]
