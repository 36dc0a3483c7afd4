"""The command ``duplicates``: clusters of equal or nearly equal images or texts."""

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
from .search import Among, Html, Open, check_page, show_report


def duplicates(
    cache: CacheArgument,
    above: Annotated[
        float, option("COSINE", "Smallest cosine of near duplicates, -1 to 1.")
    ] = 0.95,
    limit: Annotated[
        int | None,
        option("N", "Most clusters to show, the largest first.", default="20; with --json all"),
    ] = None,
    among: Among = "images",
    teacher: TeacherName = None,
    view: View = 0,
    corpus_root: CorpusRoot = None,
    html: Html = None,
    is_opened: Open = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show clusters of images with equal bytes or near embeddings.

    Every member of a cluster is near its first. Time grows with the square of the number of images.
    """
    check_page(html, is_opened=is_opened)
    from ..neighbors.duplicates import DuplicatesConfig, find_duplicates

    config = DuplicatesConfig(
        cache=given_location(cache),
        above=above,
        limit=20 if limit is None and not as_json else limit,
        members=None if as_json else 50,
        among=among,
        teacher=teacher,
        view=view,
        corpus_roots=parse_roots(corpus_root),
    )
    show_report(
        find_duplicates, config, html=html, is_opened=is_opened, as_json=as_json, is_quiet=quiet
    )
