"""Verification of the indexes of a cache: bytes against checksums, fingerprints against the targets.

A stale index gets a note and is not a fault: nothing reads it, and it can be built again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from ...errors import CacheError
from ..cache import Cache
from ..format import layout
from ..format.layout import INDEXES, IndexId, is_garbage_name
from .index_record import build_command, fingerprint, list_indexes, read_index_record, why_stale


@dataclass(slots=True)
class IndexCheck:
    """The result of checking ``indexes/``."""

    faults: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])
    named: set[str] = field(default_factory=set[str])
    """Paths that belong to an index, finished or not."""

    num_files: int = 0
    num_bytes: int = 0


def check_indexes(cache: Cache, on_file: Callable[[str], None]) -> IndexCheck:
    """Return the faults of the indexes of a cache, reading every byte of them once."""
    check = IndexCheck()
    for index_id in list_indexes(cache.files):
        check.named |= {index_id.record, index_id.file}
        if index_id.teacher in cache.teachers:
            _check_index(cache, index_id, check, on_file)
        elif not cache.files.names(layout.teacher_folder(index_id.teacher)):
            # With files of the teacher its record is missing, which is reported elsewhere.
            check.notes.append(f"{index_id.record} belongs to no teacher of this cache; remove it")
    for teacher in cache.files.names(INDEXES):
        for name in cache.files.names(f"{INDEXES}/{teacher}"):
            path = f"{INDEXES}/{teacher}/{name}"
            if path not in check.named and (is_garbage_name(path) or name.endswith(".faiss")):
                check.named.add(path)
                check.notes.append(
                    f"{path} is part of an unfinished index; run the same siglip2-cache index again to "
                    "resume, or remove it"
                )
    return check


def _check_index(
    cache: Cache, index_id: IndexId, check: IndexCheck, on_file: Callable[[str], None]
) -> None:
    remedy = f"{build_command(cache, index_id)} builds it again"
    try:
        record = read_index_record(cache.files, index_id)
    except CacheError as error:
        check.faults.append(f"{error}; {remedy}")
        return
    if record is None:  # removed since it was listed
        return
    on_file(index_id.file)
    try:
        found = cache.files.describe(index_id.file)
    except OSError as error:
        check.faults.append(f"{index_id.file} cannot be read ({error.strerror}); {remedy}")
        return
    check.num_files += 1
    check.num_bytes += found["num_bytes"]
    if found != record.files[index_id.file]:
        check.faults.append(
            f"{index_id.file} is damaged: it does not match {index_id.record}; {remedy}"
        )
    stale = why_stale(record, fingerprint(cache, index_id))
    if stale is not None:
        check.notes.append(f"the index {index_id.file} is not used: {stale}; {remedy}")
