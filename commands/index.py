"""The commands ``index`` and ``export``: what is derived from a cache, for quicker looks and other tools."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import (
    AsJson,
    CacheArgument,
    CorpusRoot,
    TeacherName,
    View,
    local_path,
    parse_roots,
    print_found,
    say,
)

if TYPE_CHECKING:
    pass


def index(
    cache: CacheArgument,
    kind: Annotated[
        str,
        typer.Option(
            help="auto, flat (all rows, float16), ivf (lists of them), ivfpq (lists of short codes), "
            "hnsw (a graph)."
        ),
    ] = "auto",
    among: Annotated[str, typer.Option(help="images or texts.")] = "images",
    teacher: TeacherName = None,
    view: View = 0,
    as_json: AsJson = False,
) -> None:
    """Make an approximate index over the targets of a large cache, and measure what it finds.

    It is kept in the cache. Run it again to go on after a crash, or after the cache has changed.
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
        message = "stopped; what was saved is kept, run the same command to go on"
        say(message, err=True)
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


def export(
    cache: CacheArgument,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", parser=local_path, help="Folder to be made.")
    ],
    format: Annotated[
        str,
        typer.Option(
            help="parquet (one table with all there is), npy (float16 arrays to map, ids beside them), "
            "atlas (for Embedding Atlas)."
        ),
    ] = "parquet",
    among: Annotated[
        str | None,
        typer.Option(help="images, texts or both. Default: both; of atlas, images."),
    ] = None,
    teacher: TeacherName = None,
    view: View = 0,
    thumbnails: Annotated[
        bool, typer.Option("--thumbnails", help="With atlas: small pictures in the table.")
    ] = False,
    corpus_root: CorpusRoot = None,
    as_json: AsJson = False,
) -> None:
    """Write embeddings, keys and captions as files that other tools read."""
    from ..neighbors.export.export import ExportConfig, export_cache
    from ..neighbors.progress import make_progress
    from ..store.cache import open_cache

    config = ExportConfig(
        out=out, format=format, among=among, teacher=teacher, view=view, thumbnails=thumbnails
    )
    opened = open_cache(cache, corpus_roots=parse_roots(corpus_root))
    progress = make_progress()
    try:
        exported = export_cache(opened, config, progress=progress)
    finally:
        progress.stop()
    print_found(exported.found, exported.lines, as_json)
