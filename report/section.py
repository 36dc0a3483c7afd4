"""One part of a report: for the page, for the terminal and for JSON."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..formatting import aligned, one_line
from ..neighbors.report import Group
from .charts import Chart
from .embedding_map import EmbeddingMap

_MOST_ROWS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table: the first column is text, the others are numbers."""

    heading: str
    rows: Sequence[Sequence[str]]
    """Cells, the headings of the columns first."""

    shares: Sequence[float] = ()
    """Length of a bar in each row below the headings, 0 to 1; empty: no bars."""

    num_more: int = 0
    """Rows that are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of a report."""

    name: str
    """Name of its values in JSON; those of equal names are put together."""

    title: str
    facts: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    map: EmbeddingMap | None = None
    groups: Sequence[Group] = ()
    """Rows of pictures."""

    groups_note: str = ""
    """What these rows are."""

    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The numbers, as JSON values."""


def count_table(heading: str, column: str, counts: Mapping[str, int], *, most: int) -> Table:
    """Return a table of counts by name, the largest first, with bars."""
    found = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    shown = found[:most]
    return Table(
        heading=heading,
        rows=[[column, "count"], *([name, f"{count:,}"] for name, count in shown)],
        shares=[count / found[0][1] for _, count in shown],
        num_more=len(found) - len(shown),
    )


def section_lines(section: Section) -> Iterator[str]:
    """Yield a part as lines for the terminal: facts, notes and tables."""
    yield section.title
    width = max((len(name) for name, _ in section.facts), default=0)
    for name, value in section.facts:
        yield f"  {name.ljust(width)}  {one_line(value)}"
    yield from (f"  {one_line(note)}" for note in section.notes)
    for table in section.tables:
        yield f"  {table.heading}"
        rows = [[one_line(cell)[:60] for cell in row] for row in table.rows]
        shown = rows[: _MOST_ROWS + 1] if table.shares else rows
        yield from (f"    {line}" for line in aligned(shown))
        num_more = table.num_more + len(rows) - len(shown)
        if num_more:
            yield f"    {num_more:,} more"
