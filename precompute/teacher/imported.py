"""Imported teachers: embeddings that another program made, identified by their digest."""

from collections.abc import Mapping
from typing import Any

from ...errors import SettingError
from ...store.cache import Cache
from ...store.format.row_encoding import FLOAT16, make_codec
from ...store.format.teacher_files import commit_teacher
from ...store.format.teacher_record import IMPORTED, TeacherRecord
from .identity import check_teacher_name, refuse_other_case

IMPORTED_PARTS = "imported_parts"
"""Field of the identity: which columns were read, and which names belong to which vectors."""


def find_imported(
    cache: Cache, name: str, digest: str, digest_of_parts: str | None
) -> TeacherRecord | None:
    """Return the record of an imported teacher, or None if the name is free.

    Args:
        cache: the cache.
        name: of the teacher.
        digest: of all files that are imported.
        digest_of_parts: of what is read of them; None: there is no choice.

    Raises:
        SettingError: the name cannot be one, or is that of other targets.
    """
    check_teacher_name(name)
    record = cache.teacher_records.get(name)
    if record is None:
        refuse_other_case(cache, name)
        return None
    if not record.is_imported:
        raise SettingError(
            f"teacher {name!r} of {cache.root} was not imported: its targets are those of "
            f"{record.source}; give the import another name with --teacher-name"
        )
    recorded = str(record.identity[IMPORTED])
    if recorded != digest:
        raise SettingError(
            f"teacher {name!r} of {cache.root} was imported from other embeddings (SHA-256 "
            f"{recorded[:12]}..., now {digest[:12]}...); give them another name with --teacher-name"
        )
    parts = record.identity.get(IMPORTED_PARTS)
    if parts not in (None, digest_of_parts):  # earlier releases did not record it
        raise SettingError(
            f"teacher {name!r} of {cache.root} was imported from the same files by other columns, or with "
            "names beside other vectors; name the columns as then, or give this import another name with "
            "--teacher-name"
        )
    return record


def add_imported(
    cache: Cache,
    name: str,
    identity: Mapping[str, Any],
    *,
    source: str,
    embed_dim: int,
    logit_scale: float,
    logit_bias: float,
) -> None:
    """Add an imported teacher to a cache: its record and the metadata of its arrays."""
    commit_teacher(
        cache.files,
        cache.manifest,
        {
            "name": name,
            "source": source,
            "revision": None,
            "identity": dict(identity),
            "embed_dim": embed_dim,
            "dtype": FLOAT16.name,
            "logit_scale": logit_scale,
            "logit_bias": logit_bias,
            "batch_size": {"image": 1, "text": 1},
            "generation": cache.manifest.latest.number,
        },
        make_codec(FLOAT16, embed_dim),
        None,
    )
