"""The command ``index``: build an approximate index over the targets of a cache."""

from typing import Annotated, Any

import typer

from .options import AsJson, CacheArgument, TeacherName, View, option, print_found, say
from .report import Among


def index(
    cache: CacheArgument,
    kind: Annotated[
        str,
        option(
            "KIND",
            "flat (all rows, float16), ivf (inverted lists), ivfpq (inverted lists, compressed), "
            "hnsw (graph), or auto: by the number of rows.",
        ),
    ] = "auto",
    among: Among = "images",
    teacher: TeacherName = None,
    view: View = 0,
    as_json: AsJson = False,
) -> None:
    """Build an approximate search index, and measure its recall.

    The index is stored in the cache. Run the same command again to resume, or after the cache has grown.
    """
    from ..formatting import format_count, format_seconds
    from ..neighbors.config import modality_of
    from ..neighbors.progress import make_progress
    from ..store.cache import open_cache
    from ..store.format.layout import other_modality
    from ..store.search.index_build import build_index
    from ..store.search.index_query import resolve_index
    from ..store.search.index_record import format_index, summarize_index

    opened = open_cache(cache)
    place = resolve_index(opened, modality_of(among), teacher=teacher, view=view)
    progress = make_progress()
    try:
        built = build_index(opened, place, kind=kind, progress=progress)
    except KeyboardInterrupt:
        say("stopped; what was saved is kept; run the same command again to resume", err=True)
        raise typer.Exit(130) from None
    finally:
        progress.stop()
    found: dict[str, Any] = {
        "file": opened.files.where(place.file),
        "teacher": place.teacher,
        "modality": place.modality,
        "view": place.view,
        **summarize_index(built.record),
        "reason": built.reason,
        "was_there": built.was_there,
        "resumed_rows": built.resumed_rows,
        "seconds": round(built.seconds, 3),
    }
    resumed = f", {built.resumed_rows:,} rows by an earlier run" if built.resumed_rows else ""
    done = (
        "it was there already" if built.was_there else f"{format_seconds(built.seconds)}{resumed}"
    )
    record = built.record
    measured = [f"{format_count(record.recall.num_queries, record.modality)}"]
    if record.cross is not None:
        measured.append(
            format_count(record.cross.recall.num_queries, other_modality(record.modality))
        )
    lines = [
        f"index      {found['file']}",
        f"kind       {built.record.kind}: {built.reason}",
        f"holds      {format_index(found)}",
        f"measured   by {' and '.join(measured)} of the cache, against exact search",
        f"made       {done}",
    ]
    print_found(found, lines, as_json)
