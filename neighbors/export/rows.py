"""Catalog entries of rows as one table, which an export writes beside the embeddings.

Each look-up reads only a range of the catalog's tables: blocks come in the order of rows, and the entries of
adjacent rows are close together in every table.
"""

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from ...store.cache import Cache
from ...store.format.layout import Modality

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


def describe_rows(
    cache: Cache, teacher: str, modality: Modality, rows_B: NDArray[np.int64]
) -> pa.Table:
    """Return one line for each of ``rows_B``, which ascend, with the columns of SCHEMAS."""
    column = "row" if modality == "image" else "text_row"
    wanted = pl.DataFrame({column: rows_B})
    found = _images(cache, teacher, rows_B) if modality == "image" else _texts(cache, rows_B)
    frame = wanted.join(found, on=column, how="left", maintain_order="left")
    schema = SCHEMAS[modality]
    return frame.select(schema.names).to_arrow().cast(schema)


def _images(cache: Cache, teacher: str, rows_B: NDArray[np.int64]) -> pl.DataFrame:
    columns = ("row", "key", "label", "file", "member")
    samples = cache.samples().filter(_near("row", rows_B)).select(columns).collect()
    files = cache.table("files").filter(_near("file", samples["file"]))
    return (
        samples.join(files.select("file", "source", "path").collect(), on="file", how="left")
        .join(_seen(cache, teacher, rows_B), on="row", how="left")
        .join(_captions(cache, rows_B), on="row", how="left")
        .with_columns(pl.col("captions").fill_null(pl.lit([], pl.List(_CAPTION))))
    )


_CAPTION = pl.Struct({"text": pl.String, "lang": pl.String})


def _captions(cache: Cache, rows_B: NDArray[np.int64]) -> pl.DataFrame:
    """Return row and captions, in the order of the corpus."""
    captions = cache.captions().filter(_near("row", rows_B)).collect()
    texts = cache.texts().filter(_near("text_row", captions["text_row"])).collect()
    joined = captions.join(texts, on="text_row", how="left", maintain_order="left")
    return joined.group_by("row", maintain_order=True).agg(
        pl.struct("text", "lang").cast(_CAPTION).alias("captions")
    )


def _seen(cache: Cache, teacher: str, rows_B: NDArray[np.int64]) -> pl.DataFrame:
    """Return row, width, height and sha256 of the pictures that the teacher saw."""
    units = np.unique(rows_B // cache.shard_rows).tolist()
    parts = [cache.seen(teacher, unit) for unit in units]
    return pl.concat(parts).with_columns(pl.col("sha256").bin.encode("hex"))


def _texts(cache: Cache, rows_B: NDArray[np.int64]) -> pl.DataFrame:
    return cache.texts().filter(_near("text_row", rows_B)).collect()


def _near(column: str, values: NDArray[np.int64] | pl.Series) -> pl.Expr:
    """Return a filter: the column is between the smallest and the largest of the values."""
    if len(values) == 0:
        return pl.lit(False)
    return pl.col(column).is_between(int(values.min()), int(values.max()))  # type: ignore[arg-type]
