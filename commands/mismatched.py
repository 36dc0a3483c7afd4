"""The command ``mismatched``: captions that do not fit their image."""

from typing import Annotated

from .options import (
    AsJson,
    CacheArgument,
    CorpusRoot,
    Quiet,
    TeacherName,
    View,
    given_location,
    option,
    parse_roots,
)
from .search import Html, Open, check_page, show_report


def mismatched(
    cache: CacheArgument,
    limit: Annotated[int, option("N", "Most pairs to show, the least likely first.")] = 20,
    teacher: TeacherName = None,
    view: View = 0,
    corpus_root: CorpusRoot = None,
    html: Html = None,
    is_opened: Open = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show the images whose own caption the teacher finds least likely.

    Beside each stands the caption of the cache that the teacher prefers.
    """
    check_page(html, is_opened=is_opened)
    from ..neighbors.mismatched import MismatchedConfig, find_mismatched

    config = MismatchedConfig(
        cache=given_location(cache),
        limit=limit,
        teacher=teacher,
        view=view,
        corpus_roots=parse_roots(corpus_root),
    )
    show_report(
        find_mismatched, config, html=html, is_opened=is_opened, as_json=as_json, is_quiet=quiet
    )
