"""A report as one self-contained HTML page that makes no network requests."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..formatting import one_line
from ..neighbors.page import picture_faults, refuse_unwritable, render_template, write_whole
from ..neighbors.page_cards import CardTables, pictures_of
from ..neighbors.report import Report
from ..neighbors.thumbnails import Picture, Thumbnail, make_thumbnails
from .embedding_map import CELL, HEIGHT, WIDTH
from .report import FullReport
from .section import Section

_FILES = Path(__file__).parent / "page_files"

_SIDE = 192
"""Pixels of a picture's longer side."""


def write_report(report: FullReport, path: Path) -> tuple[str, ...]:
    """Write a report as a page, whole or not at all; return lines about pictures that are not shown.

    Raises:
        SettingError: the file cannot be written.
        DamagedCacheError: the record of what a teacher saw is damaged.
        DiskFullError: the disk is full; an earlier page is unchanged.
    """
    refuse_unwritable(path)
    wanted = {picture for section in report.sections for picture in _pictures(report, section)}
    thumbnails: dict[Picture, Thumbnail] = {}
    if report.cache is not None and wanted:
        thumbnails = make_thumbnails(report.cache, wanted, teachers=report.teachers, side=_SIDE)
    write_whole(path, render_report(report, thumbnails))
    return tuple(picture_faults(thumbnails))


def _pictures(report: FullReport, section: Section) -> Iterator[Picture]:
    if section.map is not None:
        yield from (picture for picture, *_ in section.map.pictures)
    if report.cache is not None:
        groups = tuple(section.groups)
        yield from pictures_of(
            Report(title="", cache=report.cache.root, teachers=(), summary=(), groups=groups)
        )


def render_report(report: FullReport, thumbnails: Mapping[Picture, Thumbnail]) -> Iterator[str]:
    """Yield the parts of the HTML of a report; everything from a corpus is escaped."""
    deck = CardTables(thumbnails)
    number = 0
    sections: list[dict[str, Any]] = []
    for at, section in enumerate(report.sections):
        rows: list[Any] = []
        for group in section.groups:
            number += 1
            rows.append((number, deck.row(group, number)))
        sections.append(
            {
                "id": f"part-{at}",
                "title": one_line(section.title),
                "facts": [(name, one_line(value)) for name, value in section.facts],
                "notes": [one_line(note) for note in section.notes],
                "charts": section.charts,
                "tables": section.tables,
                "map": section.map,
                "map_pictures": list(_map_pictures(section, deck)),
                "rows": rows,
                "groups_note": section.groups_note,
            }
        )
    return render_template(
        "report.html",
        folder=_FILES,
        styles=[(_FILES / "report.css").read_text("utf-8")],
        title="Report",
        cache=one_line(report.title),
        teachers=[one_line(name) for name in report.teachers],
        summary=[one_line(line) for line in (*report.notes, *picture_faults(thumbnails))],
        rows=[],
        sections=sections,
        cell=CELL,
        size=(WIDTH, HEIGHT),
        items=deck.items,
        pictures=deck.pictures,
    )


def _map_pictures(section: Section, deck: CardTables) -> Iterator[tuple[str, int, int]]:
    """Yield the data URI of each picture of the map that can be shown, with its left and top."""
    for picture, left, top in section.map.pictures if section.map else ():
        uri = deck.picture_uri(picture)
        if uri is not None:
            yield uri, left, top
