"""The command ``info``: what a cache holds."""

from typing import Annotated

from .options import AsJson, CacheArgument, flag, print_found


def info(
    cache: CacheArgument,
    rejected: Annotated[
        bool,
        flag(
            "--rejected",
            "List every rejected row, and everything in the corpus that could not be read.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a cache holds: samples, texts, teachers, progress, rejected rows."""
    from ..store.cache import open_cache
    from ..store.describe import describe, describe_lines, list_rejected, rejected_lines

    opened = open_cache(cache)
    found = describe(opened)
    lines = describe_lines(found)
    if rejected:
        listed = list_rejected(opened)
        found |= listed
        lines += rejected_lines(listed)
    print_found(found, lines, as_json)
