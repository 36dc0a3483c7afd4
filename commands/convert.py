"""The command ``convert``: write a cache again with its targets stored in another way."""

from dataclasses import asdict
from typing import Annotated

import typer

from .options import (
    AsJson,
    CacheArgument,
    Quiet,
    TargetsBudget,
    given_location,
    option,
    path_argument,
    print_found,
    say,
)


def convert(
    cache: CacheArgument,
    out: Annotated[
        str, path_argument("OUT", help="Folder or URL of the new cache; made if missing.")
    ],
    targets: Annotated[
        str, option("float16|int8", "How the new cache stores targets; int8 takes half the bytes.")
    ],
    targets_budget: TargetsBudget = 0.1,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write a cache again with float16 or int8 targets, without a teacher.

    Catalog, records and kept pixels are copied; indexes are not. Run the same command again to resume, or
    after the cache has grown.
    """
    from ..progress import TaskProgress, make_display
    from ..store.cache import open_cache
    from ..store.convert import convert_cache, converted_lines

    progress = TaskProgress(make_display(is_quiet=quiet))
    try:
        found = convert_cache(
            open_cache(cache),
            given_location(out),
            targets=targets,
            budget=targets_budget / 100,
            progress=progress,
        )
    except KeyboardInterrupt:
        say("stopped; what was written is kept; run the same command again to resume", err=True)
        raise typer.Exit(130) from None
    finally:
        progress.stop()
    print_found(asdict(found), converted_lines(found), as_json)
