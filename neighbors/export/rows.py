"""Catalog entries of rows as one table, which an export writes beside the embeddings.

Blocks come in the order of rows, and the entries of adjacent rows are close together in every table, except
texts and files that many rows share. So each look-up reads the ranges of a table in which its rows are dense,
and keeps these rows alone.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from ...store.cache import Cache
from ...store.format.catalog import Table
from ...store.format.layout import Modality
from ...store.format.manifest import Span

IMAGES_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("member", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("sha256", pa.string()),
        pa.field("captions", pa.list_(pa.struct([("text", pa.string()), ("lang", pa.string())]))),
    ]
)
"""source and path: file of the picture, relative to the root of its corpus; sha256: of the bytes that the
teacher saw, in hexadecimal, since not every reader shows bytes."""

TEXTS_SCHEMA = pa.schema(
    [
        pa.field("text_row", pa.int64(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
    ]
)

SCHEMAS: dict[Modality, pa.Schema] = {"image": IMAGES_SCHEMA, "text": TEXTS_SCHEMA}


_FAR = 65_536
"""Rows of a row group of a catalog table, the least that is read: rows nearer than that are read together."""


def describe_rows(
    cache: Cache, teacher: str, modality: Modality, rows_B: NDArray[np.int64]
) -> pa.Table:
    """Return one line for each of ``rows_B``, which ascend, with the columns of SCHEMAS."""
    column = "row" if modality == "image" else "text_row"
    wanted = pl.DataFrame({column: rows_B})
    found = (
        _images(cache, teacher, rows_B)
        if modality == "image"
        else find_lines(cache, "texts", column, rows_B)
    )
    frame = wanted.join(found, on=column, how="left", maintain_order="left")
    schema = SCHEMAS[modality]
    return frame.select(schema.names).to_arrow().cast(schema)


def _images(cache: Cache, teacher: str, rows_B: NDArray[np.int64]) -> pl.DataFrame:
    columns = ("row", "key", "label", "file", "member")
    samples = find_lines(cache, "samples", "row", rows_B, columns)
    files = find_lines(
        cache, "files", "file", samples["file"].to_numpy(), ("file", "source", "path")
    )
    return (
        samples.join(files, on="file", how="left")
        .join(_seen(cache, teacher, rows_B), on="row", how="left")
        .join(_captions(cache, rows_B), on="row", how="left")
        .with_columns(pl.col("captions").fill_null(pl.lit([], pl.List(_CAPTION))))
    )


_CAPTION = pl.Struct({"text": pl.String, "lang": pl.String})


def _captions(cache: Cache, rows_B: NDArray[np.int64]) -> pl.DataFrame:
    """Return row and captions, in the order of the corpus."""
    captions = find_lines(cache, "captions", "row", rows_B)
    texts = find_lines(cache, "texts", "text_row", captions["text_row"].to_numpy())
    joined = captions.join(texts, on="text_row", how="left", maintain_order="left")
    return joined.group_by("row", maintain_order=True).agg(
        pl.struct("text", "lang").cast(_CAPTION).alias("captions")
    )


def _seen(cache: Cache, teacher: str, rows_B: NDArray[np.int64]) -> pl.DataFrame:
    """Return row, width, height and sha256 of the pictures that the teacher saw."""
    units = np.unique(rows_B // cache.shard_rows).tolist()
    parts = [cache.seen(teacher, unit) for unit in units]
    return pl.concat(parts).with_columns(pl.col("sha256").bin.encode("hex"))


def find_lines(
    cache: Cache,
    table: Table,
    column: str,
    rows: NDArray[np.int64],
    select: Sequence[str] | None = None,
) -> pl.DataFrame:
    """Return the lines of a catalog table for some rows, which may repeat; in their order in the table.

    Memory and time depend on the rows asked for, and on the row groups that hold one of them.

    Args:
        cache: the cache.
        table: the table.
        column: its column with the rows: its number, or for captions the row of the image.
        rows: the rows.
        select: columns; None: all.
    """
    wanted = np.unique(rows)
    runs = np.split(wanted, np.flatnonzero(np.diff(wanted) > _FAR) + 1)
    found = [_find_run(cache, table, column, run) for run in runs]
    return pl.concat(
        [(lines if select is None else lines.select(select)).collect() for lines in found]
    )


def _find_run(cache: Cache, table: Table, column: str, run: NDArray[np.int64]) -> pl.LazyFrame:
    if len(run) == 0:
        return cache.table(table).filter(pl.lit(False))
    first, last = int(run[0]), int(run[-1])
    lines = cache.table(table, Span(first=first, count=last - first + 1))
    # The range skips row groups by their statistics.
    return lines.filter(
        pl.col(column).is_between(first, last) & pl.col(column).is_in(pl.Series(run).implode())
    )
