"""The command ``agreement``: where two teachers find different neighbours."""

from typing import Annotated

from .options import (
    AsJson,
    CacheArgument,
    CorpusRoot,
    Quiet,
    View,
    given_location,
    option,
    parse_roots,
)
from .search import Among, Html, Open, Seed, check_page, show_report


def agreement(
    cache: CacheArgument,
    teacher: Annotated[str, option("NAME", "A teacher in the cache.")],
    against: Annotated[str, option("NAME", "Another teacher in the cache, to compare with.")],
    k: Annotated[int, option("N", "Nearest neighbours to compare.", name="-k")] = 10,
    sample: Annotated[int, option("N", "Random images to compare.")] = 1000,
    limit: Annotated[int, option("N", "Most images to show, the least overlap first.")] = 20,
    among: Among = "images",
    view: View = 0,
    seed: Seed = 0,
    corpus_root: CorpusRoot = None,
    html: Html = None,
    is_opened: Open = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare the neighbours that two teachers of a cache find.

    Shows the mean overlap of their k nearest, and the images where they disagree most.
    """
    check_page(html, is_opened=is_opened)
    from ..neighbors.agreement import AgreementConfig, find_disagreements

    config = AgreementConfig(
        cache=given_location(cache),
        other_teacher=against,
        teacher=teacher,
        k=k,
        sample=sample,
        limit=limit,
        among=among,
        view=view,
        seed=seed,
        corpus_roots=parse_roots(corpus_root),
    )
    show_report(
        find_disagreements, config, html=html, is_opened=is_opened, as_json=as_json, is_quiet=quiet
    )
