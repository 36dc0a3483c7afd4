"""Tables for Embedding Atlas (https://apple.github.io/embedding-atlas): vectors and neighbours.

Its ``--neighbors`` column holds for each line ``{"ids": [...], "distances": [...]}``, nearest first; ids are
line numbers of the table from 0.

Shape letters in this file:
    N = lines of the table, B = lines of a block, K = neighbours.
"""

import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ...errors import SettingError
from ...store.cache import Cache
from ...store.format.layout import IndexId
from ...store.search.exact import Neighbors, exact_neighbors
from ...store.search.index_query import open_index
from ...store.targets.blocks import read_blocks

NUM_NEIGHBORS = 15
"""The number that Embedding Atlas computes itself."""

MANY_ROWS = 200_000
"""Number of rows from which exact search of all takes hours; an index takes minutes."""

NEIGHBORS = pa.field(
    "neighbors",
    pa.struct([("ids", pa.list_(pa.int64())), ("distances", pa.list_(pa.float64()))]),
    nullable=False,
)


PICTURE = pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
"""Pictures in the form of the datasets library, which Embedding Atlas shows."""

_PICTURE_SIDE = 192


def atlas_schema(schema: pa.Schema, *, has_pictures: bool) -> pa.Schema:
    """Return the columns of a table for Embedding Atlas, without the vector."""
    if has_pictures:
        schema = schema.append(PICTURE)
    if "captions" in schema.names:
        place = schema.get_field_index("captions")
        schema = schema.remove(place).insert(place, pa.field("text", pa.string()))
    return schema.append(NEIGHBORS)


class NeighborColumn:
    """Finds the neighbours of all rows, by an index of the cache if there is one."""

    def __init__(self, cache: Cache, place: IndexId) -> None:
        self._targets, self._view = cache.targets(place.modality, place.teacher), place.view
        self._rows_N = np.concatenate(
            [
                np.empty(0, np.int64),
                *(b.rows_B for b in read_blocks(self._targets, view=place.view)),
            ]
        )
        try:
            opened = open_index(cache, place.modality, teacher=place.teacher, view=place.view)
        except SettingError:
            opened = None
        self._opened = opened

    @property
    def method(self) -> str:
        """How neighbours are found, in words."""
        if self._opened is None:
            return "exact"
        record = self._opened.record
        value = record.recall.value
        measured = "" if value is None else f", recall@{record.recall.at} {value:.3f}"
        return f"{record.kind} index{measured}"

    @property
    def is_slow(self) -> bool:
        """Whether finding them takes hours."""
        return self._opened is None and len(self._rows_N) >= MANY_ROWS

    def column_for(self, rows_B: NDArray[np.int64], values_BD: NDArray[np.float16]) -> pa.Array:
        """Return the column ``neighbors`` for some rows."""
        found = self._find(rows_B, values_BD)
        ids, distances = (list[list[int]](), list[list[float]]())
        for rows_K, cosine_K in zip(found.rows_QK, found.cosine_QK, strict=True):
            has_K = rows_K >= 0
            ids.append(np.searchsorted(self._rows_N, rows_K[has_K]).tolist())
            distances.append((1 - cosine_K[has_K]).tolist())
        return pa.StructArray.from_arrays(
            [pa.array(ids, pa.list_(pa.int64())), pa.array(distances, pa.list_(pa.float64()))],
            names=["ids", "distances"],
        )

    def _find(self, rows_B: NDArray[np.int64], values_BD: NDArray[np.float16]) -> Neighbors:
        if self._opened is not None:
            return self._opened.neighbors(values_BD, NUM_NEIGHBORS, exclude_Q=rows_B)
        return exact_neighbors(
            self._targets, values_BD, NUM_NEIGHBORS, view=self._view, exclude_Q=rows_B
        )


def atlas_lines(lines: pa.Table, neighbors: pa.Array) -> pa.Table:
    """Return lines of an export for Embedding Atlas: captions as one text, and neighbours."""
    if "captions" in lines.column_names:
        place = lines.schema.get_field_index("captions")
        text = _joined(lines)
        lines = lines.remove_column(place).add_column(place, "text", text)
    return lines.append_column(NEIGHBORS, neighbors)


def with_pictures(lines: pa.Table, cache: Cache, place: IndexId) -> tuple[pa.Table, int]:
    """Return lines of images with thumbnails, null if there is none, and the number of nulls."""
    from ..thumbnails import make_thumbnails  # imported here: only this reads pixels

    pictures = [(row, place.view) for row in lines["row"].to_pylist()]
    made = make_thumbnails(cache, pictures, teachers=[place.teacher], side=_PICTURE_SIDE)
    found = [made[picture].data for picture in pictures]
    cells = [{"bytes": data, "path": None} if data else None for data in found]
    column = pa.array(cells, PICTURE.type)
    return lines.append_column(PICTURE, column), column.null_count


def show_command(table: Path, *, has_pictures: bool) -> str:
    """Return the command that shows a table in Embedding Atlas."""
    columns = "--vector vector --neighbors neighbors --text text"
    pictures = " --image image" if has_pictures else ""
    return f"embedding-atlas {shlex.quote(str(table))} {columns}{pictures}"


def _joined(lines: pa.Table) -> pa.Array:
    texts = [
        "\n".join(caption["text"] for caption in captions or ())
        for captions in lines["captions"].to_pylist()
    ]
    return pa.array(texts, pa.string())
