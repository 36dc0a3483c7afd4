"""Fetching files of a unit while another process commits the unit again (``build --retry-rejected``).

A new attempt replaces the files of the earlier one, and an object store keeps no old files. A reader that
knows the earlier record then gets bytes that do not match it. The later record, or its intent, describes
them. Rows that had a target keep it.
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

_MAX_LOOKUPS = 3
"""An intent that is listed may be finished, and another attempt started, before it is read."""


def fetch_unit_file(
    files: Storage,
    path: str,
    description: Mapping[str, Any],
    *,
    teacher: str,
    modality: Modality,
    unit: int,
) -> tuple[Path, Mapping[str, Any]]:
    """Return a local file with the bytes of a file of a unit, and its current description.

    Args:
        files: the cache.
        path: the file.
        description: its description in the record of the unit that was read.
        teacher: name of the teacher.
        modality: modality of the unit.
        unit: number of the unit.

    Raises:
        FileNotFoundError: the file does not exist.
        DamagedCacheError: the file matches no attempt at the unit.
    """
    try:
        return files.fetch(path, description), description
    except DamagedCacheError:
        for _ in range(_MAX_LOOKUPS):
            for other in _descriptions(files, path, teacher, modality, unit):
                with contextlib.suppress(DamagedCacheError):
                    return files.fetch(path, other), other
        raise


def _descriptions(
    files: Storage, path: str, teacher: str, modality: Modality, unit: int
) -> Iterator[dict[str, Any]]:
    """Yield the descriptions of a file in the records and intents of a unit, the latest attempt first."""
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
                descriptions = read_intent(data, where=where).files
            else:
                descriptions = read_fields(data, where=where).files()
            if path in descriptions:
                yield descriptions[path]
