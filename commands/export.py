"""The commands ``export ...``: write what a cache holds as files for other tools."""

from pathlib import Path
from typing import Annotated

import typer

from .help import Command, CommandGroup
from .options import (
    AsJson,
    CacheArgument,
    CorpusRoot,
    TeacherName,
    View,
    flag,
    local_path,
    option,
    parse_roots,
    print_found,
)

export = typer.Typer(
    cls=CommandGroup, no_args_is_help=True, help="Write embeddings as files for other tools."
)


@export.command(cls=Command)
def embeddings(
    cache: CacheArgument,
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", parser=local_path, help="Folder to write; must not exist."),
    ],
    format: Annotated[
        str,
        option(
            "parquet|npy|atlas",
            "parquet: tables with all columns. npy: float16 arrays for memory mapping, with ids "
            "beside them. atlas: for Embedding Atlas.",
        ),
    ] = "parquet",
    among: Annotated[
        str | None, option("images|texts|both", "What to write.", default="both; for atlas images")
    ] = None,
    teacher: TeacherName = None,
    view: View = 0,
    thumbnails: Annotated[bool, flag("--thumbnails", "With atlas: add small images.")] = False,
    corpus_root: CorpusRoot = None,
    as_json: AsJson = False,
) -> None:
    """Write embeddings, keys and captions as files that other tools read."""
    from ..neighbors.export.export import ExportConfig, export_cache
    from ..progress import TaskProgress, make_display
    from ..store.cache import open_cache

    config = ExportConfig(
        out=out, format=format, among=among, teacher=teacher, view=view, thumbnails=thumbnails
    )
    opened = open_cache(cache, corpus_roots=parse_roots(corpus_root))
    progress = TaskProgress(make_display())
    try:
        exported = export_cache(opened, config, progress=progress)
    finally:
        progress.stop()
    print_found(exported.found, exported.lines, as_json)
