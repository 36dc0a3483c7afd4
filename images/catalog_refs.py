"""Locations and views of the images of a cache, from its catalog."""

from collections.abc import Mapping, Sequence

import polars as pl

from ..store.cache import Cache
from ..store.format.catalog import Table
from ..store.format.manifest import Span
from ..store.format.views import WHOLE_IMAGE, ViewBox, view_box
from ..store.io.location import Location, join
from .image import ImageRef
from .image_bytes import ImageLocation

LOCATION_COLUMNS = ("file", "member", "offset", "length", "row_group", "index")
"""Columns of the table ``samples`` that locate an image."""


def image_refs(cache: Cache, rows: Span | Sequence[int]) -> list[ImageRef]:
    """Return the locations and views of the images of some rows, in row order.

    Args:
        cache: the cache.
        rows: a span, or some thousands of rows anywhere in the catalog. Gaps are left out.
    """
    samples = _table(cache, "samples", rows).sort("row").collect()
    files = PlannedFiles(cache, _files_of(cache, samples, is_dense=isinstance(rows, Span)))
    boxes = stored_boxes(cache, rows)
    columns = samples.select("row", *LOCATION_COLUMNS)
    return [
        ImageRef(row, files.locate(*location), boxes.get(row, (WHOLE_IMAGE,)))
        for row, *location in columns.iter_rows()
    ]


class PlannedFiles:
    """The current locations of the files of a corpus, by number."""

    def __init__(self, cache: Cache, files: pl.DataFrame) -> None:
        """Resolve the locations of some lines of the catalog table ``files``."""
        roots = {name: cache.corpus_root(name) for name in files["source"].unique()}
        columns = files.select("file", "source", "path", "num_bytes")
        self._files: Mapping[int, tuple[Location, int | None]] = {
            file: (join(roots[source], path), num_bytes)
            for file, source, path, num_bytes in columns.iter_rows()
        }

    def locate(
        self,
        file: int,
        member: str | None,
        offset: int | None,
        length: int | None,
        row_group: int | None,
        index: int | None,
    ) -> ImageLocation:
        """Return the location of an image from LOCATION_COLUMNS of the table ``samples``."""
        path, num_bytes = self._files[file]
        return ImageLocation(
            path=path,
            member=member,
            offset=offset,
            length=length,
            row_group=row_group,
            index=index,
            file_bytes=num_bytes,
        )


def stored_boxes(cache: Cache, rows: Span | Sequence[int]) -> dict[int, tuple[ViewBox, ...]]:
    """Return the stored views of some rows by row; empty if the cache has whole images only."""
    if cache.num_views == 1:
        return {}
    views = _table(cache, "views", rows).sort("row", "view")
    lines = views.select("row", *cache.view_policy.columns).collect()
    boxes: dict[int, list[ViewBox]] = {}
    for row, *values in lines.iter_rows():
        boxes.setdefault(row, []).append(view_box(values))
    return {row: tuple(found) for row, found in boxes.items()}


def _files_of(cache: Cache, samples: pl.DataFrame, *, is_dense: bool) -> pl.DataFrame:
    """Return the lines of the table ``files`` that some samples refer to."""
    numbers = samples["file"].unique().sort().to_list()
    if is_dense and numbers:
        span = Span(first=numbers[0], count=numbers[-1] - numbers[0] + 1)
        return _table(cache, "files", span, "file").collect()
    return _table(cache, "files", numbers, "file").collect()


def _table(
    cache: Cache, table: Table, rows: Span | Sequence[int], column: str = "row"
) -> pl.LazyFrame:
    """Return the lines of a table with one of these numbers in a column."""
    if isinstance(rows, Span):
        is_wanted = pl.col(column).is_between(rows.first, rows.end - 1)
        return cache.table(table, rows).filter(is_wanted)
    return cache.table(table).filter(pl.col(column).is_in(list(rows)))
