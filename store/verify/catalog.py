"""Verification of the catalog: rows in order, unique keys, captions that refer to existing rows.

Parts are read once and one at a time, so that memory does not depend on the size of the corpus.
"""

import contextlib
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..cache import Cache
from ..format import layout
from ..format.augmentation import COLUMNS
from ..format.catalog import SCHEMAS, TABLES, Part, Table, scan_table
from ..format.manifest import Manifest, Span
from .files import Checked, FileChecker
from .repeated_texts import counting_repeats

_NAMES: dict[Table, tuple[str, str]] = {"samples": ("row", "key"), "texts": ("text_row", "text")}
"""The column that numbers the lines of a table, and the column whose values must be unique."""


def check_catalog(cache: Cache, checker: FileChecker) -> Checked:
    """Return the faults in the files and the content of the catalog."""
    check = _CatalogCheck(cache, checker)
    for table in TABLES:
        check.table(table)
    if not check.found.damaged:  # the content of incomplete tables proves nothing
        check.found.faults += check.faults
    return check.found


class _CatalogCheck:
    def __init__(self, cache: Cache, checker: FileChecker) -> None:
        self._files, self._manifest, self._checker = cache.files, cache.manifest, checker
        self.found = Checked()
        self.faults: list[str] = []
        """Faults in the content of the tables."""

    def table(self, table: Table) -> None:
        """Check a table."""
        if table in _NAMES:
            self._numbered(table)
        elif table == "captions":
            self._captions()
        elif table == "views" and self._manifest.views.num_views > 1:
            self._views()
        else:
            for _ in self._frames(table, ()):
                pass

    def _numbered(self, table: Table) -> None:
        row_name, name = _NAMES[table]
        spans = _spans(self._manifest, table)
        num_planned, rows = sum(span.count for span in spans), _Rows(spans, lines_each=1)
        with counting_repeats(num_planned) as repeats:
            for frame in self._frames(table, (row_name, name)):
                rows.take(frame[row_name].to_numpy())
                repeats.add(frame[name])
            num_repeated = repeats.count()
        if not rows.are_all:
            self.faults.append(
                f"catalog: the {row_name}s of {table} ({rows.num_lines:,}) differ from the plan "
                f"({num_planned:,})"
            )
        if num_repeated:
            self.faults.append(f"catalog: {num_repeated:,} {name}s are repeated")

    def _captions(self) -> None:
        spans = {row_name: _spans(self._manifest, table) for table, (row_name, _) in _NAMES.items()}
        num_lost, num_captions = dict.fromkeys(spans, 0), 0
        for frame in self._frames("captions", tuple(spans)):
            num_captions += frame.height
            for row_name, planned in spans.items():
                num_lost[row_name] += _num_outside(frame[row_name].to_numpy(), planned)
        self.faults += [
            f"catalog: {lost:,} captions refer to a {row_name} that does not exist"
            for row_name, lost in num_lost.items()
            if lost
        ]
        recorded = sum(g.num_new_captions for g in self._manifest.generations)
        if num_captions != recorded:
            self.faults.append(f"catalog: {num_captions:,} captions, {recorded:,} were planned")

    def _views(self) -> None:
        num_views = self._manifest.views.num_views
        rows = _Rows(_spans(self._manifest, "samples"), lines_each=num_views)
        columns = [
            name
            for name in SCHEMAS["views"].names
            if name not in COLUMNS or not self._manifest.views.augmentation.is_none
        ]
        num_nulls = dict.fromkeys(columns, 0)
        for frame in self._frames("views", columns):
            rows.take(frame["row"].to_numpy())
            for name in columns:
                num_nulls[name] += frame[name].null_count()
        if not rows.are_all:
            self.faults.append(f"catalog: not every sample has {num_views} views")
        self.faults += [
            f"catalog: {num:,} views have no {name}" for name, num in num_nulls.items() if num
        ]

    def _frames(self, table: Table, columns: Sequence[str]) -> Generator[pl.DataFrame]:
        """Check each part of a table against its record, and yield its content if it is sound."""
        for generation in self._manifest.generations:
            owner = layout.generation_record(generation.number)
            for part in generation.parts:
                if part.table != table:
                    continue
                with self._as_file(part, owner) as path:
                    if path is not None and columns:
                        yield scan_table(table, [path]).select(columns).collect()

    @contextlib.contextmanager
    def _as_file(self, part: Part, owner: str) -> Generator[Path | None]:
        """Check a part against its record, and yield a local file with its bytes, or None if unsound."""
        path = self._files.local_path(part.path)
        if path is not None:
            yield (
                path
                if self._checker.check(part.path, part.description, owner, self.found)
                else None
            )
            return
        with tempfile.NamedTemporaryFile(prefix="siglip2-cache-verify-") as copy:
            is_sound = self._checker.check(
                part.path, part.description, owner, self.found, copy.write
            )
            copy.flush()
            yield Path(copy.name) if is_sound else None


class _Rows:
    """Compares the lines of a table with the planned rows."""

    def __init__(self, spans: Sequence[Span], *, lines_each: int) -> None:
        self._spans, self._lines_each = spans, lines_each
        self._ends = np.cumsum([span.count * lines_each for span in spans])
        self._differs = False
        self.num_lines = 0

    def take(self, rows: NDArray[np.int64]) -> None:
        """Compare the next lines."""
        lines = np.arange(self.num_lines, self.num_lines + len(rows))
        self.num_lines += len(rows)
        which = np.searchsorted(self._ends, lines, side="right")
        if self._differs or (len(which) and which[-1] == len(self._spans)):
            self._differs = True
            return
        starts = np.array([span.first for span in self._spans], np.int64)
        before = self._ends - [span.count * self._lines_each for span in self._spans]
        planned = starts[which] + (lines - before[which]) // self._lines_each
        self._differs = not np.array_equal(rows, planned)

    @property
    def are_all(self) -> bool:
        """Whether the lines are those of all planned rows, in order."""
        return not self._differs and self.num_lines == sum(self._ends[-1:])


def _spans(manifest: Manifest, table: Table) -> list[Span]:
    spans = [g.text_rows if table == "texts" else g.rows for g in manifest.generations]
    return [span for span in spans if span.count]


def _num_outside(rows: NDArray[np.int64], spans: Sequence[Span]) -> int:
    """Return how many rows are in none of the spans, which are ascending."""
    if not spans:
        return len(rows)
    firsts = np.array([span.first for span in spans], np.int64)
    ends = np.array([span.end for span in spans], np.int64)
    which = np.searchsorted(firsts, rows, side="right") - 1
    return int(((which < 0) | (rows >= ends[which])).sum())
