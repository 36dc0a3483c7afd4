"""What the commands that search a cache share: ``neighbors``, ``duplicates``, ``outliers`` and others."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..errors import SettingError
from .options import OUTPUT, flag, local_path_option, option, print_json, say

if TYPE_CHECKING:
    from ..neighbors.config import ReportConfig
    from ..neighbors.report import Report

_PAGE_GROUPS, _PAGE_ITEMS = 500, 100  # JSON may hold every member of every cluster

SEARCH = "Search"

Among = Annotated[str, option("images|texts", "What to search.", SEARCH)]
Html = Annotated[
    Path | None, local_path_option("FILE", "Also write one HTML page with the images.", OUTPUT)
]
Open = Annotated[bool, flag("--open", "Open that page in the web browser.", OUTPUT)]
Seed = Annotated[int, option("N", "Random seed.", SEARCH)]


def check_page(html: Path | None, *, is_opened: bool) -> None:
    """Refuse a page that cannot be written, before the cache is searched, which may take long.

    Raises:
        SettingError: there is no page to open, or no place for it.
    """
    if html is not None:
        from ..neighbors.page import refuse_unwritable

        refuse_unwritable(html)
    elif is_opened:
        raise SettingError("--open goes with --html FILE: it opens that page")


def show_report(
    find: "Callable[..., Report]",
    config: "ReportConfig",
    *,
    html: Path | None,
    is_opened: bool,
    as_json: bool,
    is_quiet: bool,
) -> None:
    """Search a cache with a progress line; print the report and write its page."""
    from ..progress import TaskProgress, make_display

    progress = TaskProgress(make_display(is_quiet=is_quiet))
    progress.start("reading rows", config.num_rows_read())
    try:
        report = find(config, on_rows=progress.advance)
    finally:
        progress.stop()
    if as_json:
        from ..neighbors.report_json import report_values

        print_json(report_values(report))
    else:
        from ..neighbors.report_terminal import print_report

        print_report(report)
    if html is not None:
        notes = _write_page(report, config, html)
        if not as_json:
            for line in (f"page       {html}", *(f"note       {note}" for note in notes)):
                say(line)
        if is_opened:
            open_page(html)


def _write_page(report: "Report", config: "ReportConfig", html: Path) -> Any:
    from ..neighbors.page import write_page
    from ..store.cache import open_cache

    cache = open_cache(config.cache, corpus_roots=config.corpus_roots)
    return write_page(report.cut(groups=_PAGE_GROUPS, items=_PAGE_ITEMS), cache, html)


def open_page(html: Path) -> None:
    """Open a page in the web browser; say so if there is none."""
    import webbrowser

    if not webbrowser.open(html.absolute().as_uri()):
        say(f"no web browser was found; open {html} in one", err=True)
