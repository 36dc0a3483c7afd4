"""The command ``neighbors``: what is near what in a cache, and what is wrong with it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import SettingError
from .options import (
    CacheArgument,
    CorpusRoot,
    TeacherName,
    View,
    given_location,
    local_path_option,
    parse_roots,
    path_option,
    print_json,
    say,
)

if TYPE_CHECKING:
    from ..neighbors.queries import Query
    from ..neighbors.report import Report

_MODES = ("duplicates", "mismatched", "outliers", "against")
_PAGE_GROUPS, _PAGE_ITEMS = 500, 100  # JSON may hold every member of every cluster


def neighbors(
    cache: CacheArgument,
    key: Annotated[list[str] | None, typer.Option(help="Image of this key. Repeatable.")] = None,
    row: Annotated[list[int] | None, typer.Option(help="Image of this row. Repeatable.")] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(help="A text; one that the cache holds needs no model. Repeatable."),
    ] = None,
    image: Annotated[
        list[Path] | None,
        local_path_option(help="A picture; one that the cache holds needs no model. Repeatable."),
    ] = None,
    queries: Annotated[
        Path | None,
        local_path_option(
            help="File of queries: a text a line, or .jsonl of key, row, text or image."
        ),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(help="Without a query: random images, default 5. With --against: 1000."),
    ] = None,
    among: Annotated[
        str | None, typer.Option(help="images (default) or texts: what is looked through.")
    ] = None,
    k: Annotated[int | None, typer.Option("-k", help="Neighbours of each. Default 10.")] = None,
    teacher: TeacherName = None,
    view: View = 0,
    include_self: Annotated[
        bool, typer.Option("--include-self", help="An image may be its own neighbour.")
    ] = False,
    approximate: Annotated[
        bool,
        typer.Option("--approximate", help="Ask the index of siglip2-cache index, not every row."),
    ] = False,
    duplicates: Annotated[
        bool, typer.Option("--duplicates", help="Clusters of equal bytes or of near embeddings.")
    ] = False,
    above: Annotated[
        float | None, typer.Option(help="With --duplicates: least cosine. Default 0.95.")
    ] = None,
    mismatched: Annotated[
        bool, typer.Option("--mismatched", help="Images whose own caption scores lowest.")
    ] = False,
    outliers: Annotated[
        bool, typer.Option("--outliers", help="What is farthest from its nearest neighbours.")
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(metavar="TEACHER", help="Where neighbourhoods differ from another teacher's."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Clusters, pairs, outliers or images shown. Default 20.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of whatever is chosen at random. Default 0.")
    ] = None,
    checkpoint: Annotated[
        str | None, path_option(help="Where the teacher's checkpoint is now, if it has moved.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="For a new text or picture: auto (default), cpu, cuda:1, ...")
    ] = None,
    corpus_root: CorpusRoot = None,
    html: Annotated[
        Path | None, local_path_option(metavar="FILE", help="Write one page of pictures, too.")
    ] = None,
    is_opened: Annotated[
        bool, typer.Option("--open", help="Show that page in the web browser.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Say what the teacher finds near an image, a text or a picture: exactly, without an index.

    Or find what is doubled, mismatched or far from everything, or where two teachers disagree.
    """
    if is_opened and html is None:
        raise SettingError("--open goes with --html FILE: it shows that page")
    given_queries = _queries(key, row, text, image, queries)
    mode = _mode(duplicates=duplicates, mismatched=mismatched, outliers=outliers, against=against)
    given: dict[str, Any] = {
        "queries": given_queries or None,
        "sample": sample,
        "among": among,
        "k": k,
        "include_self": include_self or None,
        "approximate": approximate or None,
        "above": above,
        "against": against,
        "limit": limit,
        "seed": seed,
        "checkpoint": checkpoint,
        "device": device,
    }
    given = {name: value for name, value in given.items() if value is not None}
    _refuse_strangers(mode, given)
    look = {
        "cache": given_location(cache),
        "teacher": teacher,
        "view": view,
        "corpus_roots": parse_roots(corpus_root),
        **given,
    }
    if mode == "duplicates" and as_json:  # for programs: all, unless they want fewer
        look = {"limit": None, "members": None, **look}
    if html is not None:
        from ..neighbors.page import refuse_unwritable

        refuse_unwritable(html)  # before all is looked through, which may take long
    report = _look(mode, look)
    _show(report, look, html, is_opened=is_opened, as_json=as_json)


def _queries(
    keys: list[str] | None,
    rows: list[int] | None,
    texts: list[str] | None,
    images: list[Path] | None,
    queries: Path | None,
) -> "tuple[Query, ...]":
    from ..neighbors.queries import Query, read_queries

    return (
        *(Query("key", key) for key in keys or ()),
        *(Query("row", row) for row in rows or ()),
        *(Query("text", text) for text in texts or ()),
        *(Query("image", str(image)) for image in images or ()),
        *(read_queries(queries) if queries is not None else ()),
    )


def _mode(**asked: Any) -> str:
    """Return the one thing that is asked for.

    Raises:
        SettingError: more than one.
    """
    modes = [mode for mode in _MODES if asked[mode] not in (None, False)]
    if len(modes) > 1:
        raise SettingError(f"--{modes[0]} and --{modes[1]} are two questions: ask one at a time")
    return modes[0] if modes else "neighbors"


_TAKES = {
    "neighbors": {"queries", "sample", "among", "k", "include_self", "approximate", "seed"}
    | {"checkpoint", "device"},
    "duplicates": {"among", "above", "limit"},
    "mismatched": {"limit"},
    "outliers": {"among", "k", "limit", "seed"},
    "against": {"against", "among", "k", "sample", "limit", "seed"},
}
"""What each question takes, of what not all do."""


def _refuse_strangers(mode: str, given: dict[str, Any]) -> None:
    """Refuse what has no effect on a question.

    Raises:
        SettingError: an option belongs to another question.
    """
    for name in given:
        if name in _TAKES[mode]:
            continue
        if name == "queries":
            raise SettingError(f"--{mode} looks at the whole cache: leave the queries out")
        option = "-k" if name == "k" else f"--{name.replace('_', '-')}"
        homes = [home for home, taken in _TAKES.items() if name in taken]
        wanted = " or ".join("queries" if home == "neighbors" else f"--{home}" for home in homes)
        here = "" if mode == "neighbors" else f", not with --{mode}"
        raise SettingError(f"{option} goes with {wanted}{here}")
    if "queries" in given and "sample" in given:
        raise SettingError("--sample chooses images where nothing is asked for; leave one out")


def _look(mode: str, settings: dict[str, Any]) -> "Report":
    """Run one question, with a progress line."""
    from ..neighbors import agreement, duplicates, mismatched, nearest, outliers
    from ..neighbors.progress import make_progress
    from ..store.cache import open_cache

    run: dict[str, tuple[Callable[..., Any], Callable[..., Report]]] = {
        "neighbors": (nearest.NeighborsConfig, nearest.find_neighbors),
        "duplicates": (duplicates.DuplicatesConfig, duplicates.find_duplicates),
        "mismatched": (mismatched.MismatchedConfig, mismatched.find_mismatched),
        "outliers": (outliers.OutliersConfig, outliers.find_outliers),
        "against": (agreement.AgreementConfig, agreement.find_disagreements),
    }
    if mode == "against":
        settings = {**settings, "other_teacher": settings["against"]}
        del settings["against"]
    make_config, look = run[mode]
    config = make_config(**settings)
    opened = open_cache(config.cache)
    total = opened.num_samples if config.among == "images" else opened.num_texts
    if mode == "mismatched":
        total = sum(g.num_new_captions for g in opened.manifest.generations)
    progress = make_progress()
    progress.start("looking at rows", 2 * total if mode == "against" else total)
    try:
        return look(config, on_rows=progress.advance)
    finally:
        progress.stop()


def _show(
    report: "Report",
    settings: dict[str, Any],
    html: Path | None,
    *,
    is_opened: bool,
    as_json: bool,
) -> None:
    if as_json:
        from ..neighbors.report_json import report_values

        print_json(report_values(report))
    else:
        from ..neighbors.report_terminal import print_report

        print_report(report)
    if html is None:
        return
    from ..neighbors.page import write_page
    from ..store.cache import open_cache

    report = report.cut(groups=_PAGE_GROUPS, items=_PAGE_ITEMS)
    cache = open_cache(settings["cache"], corpus_roots=settings["corpus_roots"])
    faults = write_page(report, cache, html)
    if not as_json:
        for line in (f"page       {html}", *(f"note       {fault}" for fault in faults)):
            say(line)
    if is_opened:
        import webbrowser

        if not webbrowser.open(html.absolute().as_uri()):
            say(f"no web browser was found; open {html} in one", err=True)
