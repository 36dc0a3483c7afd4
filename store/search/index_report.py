"""What building an index came to, for ``siglip2-cache index``."""

from typing import Any

from ...formatting import format_count, format_seconds
from ..cache import Cache
from ..format.layout import IndexId, other_modality
from .index_build import BuiltIndex
from .index_record import format_index, summarize_index


def describe_built_index(cache: Cache, index_id: IndexId, built: BuiltIndex) -> dict[str, Any]:
    """Return plain values that say which index there is now, and how it was made."""
    return {
        "file": cache.files.where(index_id.file),
        "teacher": index_id.teacher,
        "modality": index_id.modality,
        "view": index_id.view,
        **summarize_index(built.record),
        "reason": built.reason,
        "was_there": built.was_there,
        "resumed_rows": built.resumed_rows,
        "seconds": round(built.seconds, 3),
    }


def built_index_lines(found: dict[str, Any]) -> list[str]:
    """Return the lines that a person reads."""
    made = "it was there already"
    if not found["was_there"]:
        earlier = found["resumed_rows"]
        made = format_seconds(found["seconds"])
        made += f", {earlier:,} rows by an earlier run" if earlier else ""
    modality = found["modality"]
    queries = [format_count(found["recall"]["num_queries"], modality)]
    if found["cross"]:
        queries.append(
            format_count(found["cross"]["recall"]["num_queries"], other_modality(modality))
        )
    return [
        f"index      {found['file']}",
        f"kind       {found['kind']}: {found['reason']}",
        f"holds      {format_index(found)}",
        f"measured   by {' and '.join(queries)} of the cache, against exact search",
        f"made       {made}",
    ]
