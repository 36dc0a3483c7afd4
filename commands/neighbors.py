"""The command ``neighbors``: what the teacher finds near an image or a text."""

from pathlib import Path
from typing import Annotated

from ..errors import SettingError
from .options import (
    TEACHER,
    AsJson,
    CacheArgument,
    CorpusRoot,
    Quiet,
    TeacherName,
    View,
    flag,
    given_location,
    local_path_option,
    option,
    parse_roots,
    path_option,
)
from .search import SEARCH, Among, Html, Open, Seed, check_page, show_report


def neighbors(
    cache: CacheArgument,
    key: Annotated[list[str] | None, option("KEY", "Image with this key. Repeatable.")] = None,
    row: Annotated[list[int] | None, option("ROW", "Image in this row. Repeatable.")] = None,
    text: Annotated[
        list[str] | None, option("TEXT", "Text. A text of the cache needs no model. Repeatable.")
    ] = None,
    image: Annotated[
        list[Path] | None,
        local_path_option("FILE", "Image file. An image of the cache needs no model. Repeatable."),
    ] = None,
    queries: Annotated[
        Path | None,
        local_path_option(
            "FILE", "File of queries: one text per line, or .jsonl with key, row, text or image."
        ),
    ] = None,
    sample: Annotated[
        int | None, option("N", "N random images, if no other query is given; by default 5.")
    ] = None,
    k: Annotated[int, option("N", "Neighbours of each query.", name="-k")] = 10,
    among: Among = "images",
    approximate: Annotated[
        bool,
        flag(
            "--approximate", "Search the index (siglip2-cache index) instead of every row.", SEARCH
        ),
    ] = False,
    include_self: Annotated[
        bool, flag("--include-self", "Let an image be its own neighbour.", SEARCH)
    ] = False,
    patches: Annotated[
        bool,
        flag(
            "--patches",
            "With --text: show where the text is in each image, as a heat map in the page (needs the "
            "teacher, and a cache built with --patch-targets).",
            SEARCH,
        ),
    ] = False,
    teacher: TeacherName = None,
    view: View = 0,
    seed: Seed = 0,
    checkpoint: Annotated[
        str | None,
        path_option(
            "CHECKPOINT",
            "For new texts and images: the teacher's checkpoint, if it has moved.",
            TEACHER,
        ),
    ] = None,
    device: Annotated[
        str,
        option(
            "DEVICE",
            "For new texts and images: auto (cuda, mps or cpu), or a device such as cuda:1.",
            TEACHER,
        ),
    ] = "auto",
    corpus_root: CorpusRoot = None,
    html: Html = None,
    is_opened: Open = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show the images or texts nearest to a key, row, text or image file.

    The search is exact and needs no index.
    """
    check_page(html, is_opened=is_opened)
    from ..neighbors.nearest import NeighborsConfig, find_neighbors
    from ..neighbors.queries import Query, read_queries

    given = (
        *(Query("key", each) for each in key or ()),
        *(Query("row", each) for each in row or ()),
        *(Query("text", each) for each in text or ()),
        *(Query("image", str(each)) for each in image or ()),
        *(read_queries(queries) if queries is not None else ()),
    )
    if given and sample is not None:
        raise SettingError("--sample chooses the queries, and others are given; leave one out")
    config = NeighborsConfig(
        cache=given_location(cache),
        queries=given,
        sample=5 if sample is None else sample,
        among=among,
        k=k,
        approximate=approximate,
        include_self=include_self,
        teacher=teacher,
        view=view,
        seed=seed,
        checkpoint=checkpoint,
        device=device,
        patches=patches,
        corpus_roots=parse_roots(corpus_root),
    )
    show_report(
        find_neighbors, config, html=html, is_opened=is_opened, as_json=as_json, is_quiet=quiet
    )
