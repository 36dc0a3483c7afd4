"""A report as one self-contained HTML file that makes no network requests."""

import base64
import errno
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import jinja2
from markupsafe import Markup

from ..errors import DiskFullError, SettingError
from ..formatting import one_line
from ..store.cache import Cache
from ..store.io.local import FULL_DISK
from .page_cards import CardTables, pictures_of
from .report import Report
from .thumbnails import Picture, Thumbnail, make_thumbnails

_PAGE = Path(__file__).parent / "page_files"

_FEW_PICTURES = 600
_FEW_SIDE, _MANY_SIDE = 320, 192
"""Pixels of a thumbnail's longer side, with few and with many pictures. A card is 128 CSS pixels wide; the
detail view shows the thumbnail at its size. 4,000 photographs of 192 pixels make a file of about 30 MB."""

_STATE_WORDS = {
    "changed": "changed since the teacher saw it",
    "rejected": "rejected by the teacher",
    "unreadable": "unreadable now",
}


def write_page(report: Report, cache: Cache, path: Path) -> tuple[str, ...]:
    """Write a report as a page, whole or not at all; return lines about pictures that are not shown.

    Raises:
        SettingError: the file cannot be written, or the cache lacks a teacher or view of the report.
        DamagedCacheError: the record of what a teacher saw is damaged.
        DiskFullError: the disk is full; an earlier page is unchanged.
    """
    refuse_unwritable(path)
    wanted = set(pictures_of(report))
    side = _FEW_SIDE if len(wanted) <= _FEW_PICTURES else _MANY_SIDE
    thumbnails = make_thumbnails(cache, wanted, teachers=report.teachers, side=side)
    write_whole(path, render_page(report, thumbnails))
    return tuple(picture_faults(thumbnails))


def refuse_unwritable(path: Path) -> None:
    """Check that a page can be written to a path; call it before the work.

    Raises:
        SettingError: the folder does not exist or is not writable, or the path is a folder, a device or
            anything else that is no regular file.
    """
    folder = path.parent
    if not folder.is_dir():
        raise SettingError(
            f"cannot write the page {path}: there is no folder {folder}; make it first"
        )
    if path.is_dir():
        raise SettingError(f"cannot write the page {path}: it is a folder; name a file in it")
    if path.exists() and not path.is_file():  # a device or a pipe, which would be replaced
        raise SettingError(f"cannot write the page {path}: it is not a regular file; name another")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _not_writable(path)


def render_page(report: Report, thumbnails: Mapping[Picture, Thumbnail]) -> Iterator[str]:
    """Yield the parts of a page's HTML.

    Everything from a corpus is escaped by Jinja, as text or by ``tojson``. Only our own style and script are
    inserted unescaped, and the policy in the page's head allows no other.
    """
    deck = CardTables(thumbnails)
    rows = [deck.row(group, number) for number, group in enumerate(report.groups, 1)]
    return render_template(
        "page.html",
        title=report.title,
        cache=one_line(report.cache.name),
        teachers=report.teachers,
        summary=[one_line(line) for line in (*report.summary, *picture_faults(thumbnails))],
        rows=rows,
        items=deck.items,
        pictures=deck.pictures,
    )


def render_template(
    template: str, *, folder: Path | None = None, styles: Iterable[str] = (), **values: Any
) -> Iterator[str]:
    """Yield the parts of the HTML of a template, which page.html is or extends.

    Args:
        template: its file.
        folder: another folder with templates.
        styles: further style sheets, our own.
        values: what the template shows; a text is escaped.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, _PAGE] if folder else _PAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = ((_PAGE / name).read_text("utf-8") for name in ("page.css", "page.js"))
    style = "\n".join((style, *styles))
    return environment.get_template(template).generate(
        policy=_policy(style, script), style=Markup(style), script=Markup(script), **values
    )


def _policy(style: str, script: str) -> str:
    """Return a Content-Security-Policy that allows this style, this script and embedded pictures only."""
    return (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; "
        f"script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def picture_faults(thumbnails: Mapping[Picture, Thumbnail]) -> Iterator[str]:
    """Yield a line that counts pictures not shown as the teacher saw them."""
    counts: Counter[str] = Counter(thumbnail.state for thumbnail in thumbnails.values())
    faults = [
        f"{counts[state]:,} {words}" for state, words in _STATE_WORDS.items() if counts[state]
    ]
    if faults:
        yield f"of {len(thumbnails):,} pictures: {', '.join(faults)}"
    if len(thumbnails) == counts["unreadable"] > 0:
        yield "no picture can be read; if the corpus has moved, add --corpus-root OLD=NEW"


def write_whole(path: Path, parts: Iterable[str]) -> None:
    """Write a page, whole or not at all.

    Raises:
        SettingError: the file cannot be written.
        DiskFullError: the disk is full; an earlier page is unchanged.
    """
    path = path.resolve()  # a link stays, its target is written
    partial = path.with_name(f".{uuid4().hex[:12]}.partial")
    try:
        with open(partial, "w", encoding="utf-8", errors="replace", newline="\n") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _write_error(error, path) from error
        raise


def _write_error(error: OSError, path: Path) -> Exception:
    if error.errno in FULL_DISK:
        return DiskFullError(
            f"no space left on the disk of {path.parent} while writing {path.name}; free some and run "
            "the same command again"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return _not_writable(path)
    return SettingError(f"cannot write the page {path}: {error.strerror or error}")


def _not_writable(path: Path) -> SettingError:
    return SettingError(
        f"cannot write the page {path}: the folder {path.parent} is not writable; name another"
    )
