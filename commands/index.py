"""The command ``index``: build an approximate index over the targets of a cache."""

from typing import Annotated

import typer

from .options import AsJson, CacheArgument, Quiet, TeacherName, View, option, print_found, say


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
    among: Annotated[str, option("images|texts", "What to index.")] = "images",
    teacher: TeacherName = None,
    view: View = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Build an approximate search index, and measure its recall.

    The index is stored in the cache. Run the same command again to resume, or after the cache has grown.
    """
    from ..neighbors.config import modality_of
    from ..progress import TaskProgress, make_display
    from ..store.cache import open_cache
    from ..store.search.index_build import build_index
    from ..store.search.index_query import resolve_index
    from ..store.search.index_report import built_index_lines, describe_built_index

    opened = open_cache(cache)
    index_id = resolve_index(opened, modality_of(among), teacher=teacher, view=view)
    progress = TaskProgress(make_display(is_quiet=quiet))
    try:
        built = build_index(opened, index_id, kind=kind, progress=progress)
    except KeyboardInterrupt:
        say("stopped; what was saved is kept; run the same command again to resume", err=True)
        raise typer.Exit(130) from None
    finally:
        progress.stop()
    found = describe_built_index(opened, index_id, built)
    print_found(found, built_index_lines(found), as_json)
