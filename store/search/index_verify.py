"""Proving the indexes of a cache: bytes against checksums, fingerprints against the targets.

An index that no longer fits is worth a note, no fault: nothing reads it, and it can be made again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from ...errors import CacheError
from ..cache import Cache
from ..format.layout import INDEXES, IndexId, is_garbage_name
from .index_record import build_command, fingerprint, list_indexes, read_index_record, why_stale


@dataclass(slots=True)
class IndexCheck:
    """What was found in ``indexes/``."""

    faults: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])
    known: set[str] = field(default_factory=set[str])
    """Paths that belong to an index, whole, unfinished or left over."""

    num_files: int = 0
    num_bytes: int = 0


def check_indexes(cache: Cache, on_file: Callable[[str], None]) -> IndexCheck:
    """Return what is wrong with the indexes of a cache, reading every byte of them once."""
    check = IndexCheck()
    for index_id in list_indexes(cache.files):
        check.known |= {index_id.record, index_id.file}
        if index_id.teacher in cache.teachers:
            _check_index(cache, index_id, check, on_file)
        else:
            check.notes.append(f"{index_id.record} is of no teacher of this cache; remove it")
    for teacher in cache.files.names(INDEXES):
        for name in cache.files.names(f"{INDEXES}/{teacher}"):
            path = f"{INDEXES}/{teacher}/{name}"
            if path not in check.known and (is_garbage_name(path) or name.endswith(".faiss")):
                check.known.add(path)
                check.notes.append(
                    f"{path} is part of an unfinished index; run the same siglip2-cache index "
                    "again to go on, or remove it"
                )
    return check


def _check_index(
    cache: Cache, index_id: IndexId, check: IndexCheck, on_file: Callable[[str], None]
) -> None:
    anew = f"{build_command(cache, index_id)} makes it anew"
    try:
        record = read_index_record(cache.files, index_id)
    except CacheError as error:
        check.faults.append(f"{error}; {anew}")
        return
    if record is None:  # removed since it was listed
        return
    on_file(index_id.file)
    try:
        found = cache.files.describe(index_id.file)
    except OSError as error:
        check.faults.append(f"{index_id.file} cannot be read ({error.strerror}); {anew}")
        return
    check.num_files += 1
    check.num_bytes += found["num_bytes"]
    if found != record.files[index_id.file]:
        check.faults.append(
            f"{index_id.file} is damaged: its bytes are not those that {index_id.record} names; {anew}"
        )
    stale = why_stale(record, fingerprint(cache, index_id))
    if stale is not None:
        check.notes.append(f"the index {index_id.file} is not used: {stale}; {anew}")
