"""The command ``outliers``: what is far from everything else in a cache."""

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
from .search import Among, Html, Open, Seed, check_page, show_report


def outliers(
    cache: CacheArgument,
    limit: Annotated[int, option("N", "Most outliers to show, the farthest first.")] = 20,
    k: Annotated[
        int, option("N", "Nearest neighbours that the mean is taken over.", name="-k")
    ] = 10,
    among: Among = "images",
    teacher: TeacherName = None,
    view: View = 0,
    seed: Seed = 0,
    corpus_root: CorpusRoot = None,
    html: Html = None,
    is_opened: Open = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show the images with the lowest mean cosine to their nearest neighbours."""
    check_page(html, is_opened=is_opened)
    from ..neighbors.outliers import OutliersConfig, find_outliers

    config = OutliersConfig(
        cache=given_location(cache),
        limit=limit,
        k=k,
        among=among,
        teacher=teacher,
        view=view,
        seed=seed,
        corpus_roots=parse_roots(corpus_root),
    )
    show_report(
        find_outliers, config, html=html, is_opened=is_opened, as_json=as_json, is_quiet=quiet
    )
