"""The catalog of a corpus: Parquet tables that any reader opens.

The planner encodes parts with encode_part, and the record of their generation names them with their
checksums. A part contains rows in order; a table may have many parts in a generation, or none.
"""

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

Table = Literal["files", "samples", "captions", "texts", "views", "prompts", "problems"]

PART_ROWS = 1_000_000
"""Rows in one part. A part is encoded in memory: some 100 MB."""

_ROW_GROUP_ROWS = 65_536

TABLES: tuple[Table, ...] = (
    "files",
    "samples",
    "captions",
    "texts",
    "views",
    "prompts",
    "problems",
)

SCHEMAS: dict[Table, pa.Schema] = {
    "files": pa.schema(
        [
            pa.field("file", pa.int64(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("path", pa.string(), nullable=False),
            pa.field("num_bytes", pa.int64()),
            pa.field("mtime_ns", pa.int64()),
        ]
    ),
    "samples": pa.schema(
        [
            pa.field("row", pa.int64(), nullable=False),
            pa.field("key", pa.string(), nullable=False),
            pa.field("file", pa.int64(), nullable=False),
            pa.field("member", pa.string()),
            pa.field("offset", pa.int64()),
            pa.field("length", pa.int64()),
            pa.field("row_group", pa.int64()),
            pa.field("index", pa.int64()),
            pa.field("label", pa.string()),
            pa.field("source_sha256", pa.binary(32)),
        ]
    ),
    "captions": pa.schema(
        [
            pa.field("row", pa.int64(), nullable=False),
            pa.field("text_row", pa.int64(), nullable=False),
            pa.field("lang", pa.string()),
            pa.field("kind", pa.string()),
        ]
    ),
    "texts": pa.schema(
        [
            pa.field("text_row", pa.int64(), nullable=False),
            pa.field("text", pa.string(), nullable=False),
        ]
    ),
    "views": pa.schema(
        [
            pa.field("row", pa.int64(), nullable=False),
            pa.field("view", pa.int16(), nullable=False),
            pa.field("top", pa.float32(), nullable=False),
            pa.field("left", pa.float32(), nullable=False),
            pa.field("height", pa.float32(), nullable=False),
            pa.field("width", pa.float32(), nullable=False),
            pa.field("flip", pa.bool_(), nullable=False),
            pa.field("brightness", pa.float32()),
            pa.field("contrast", pa.float32()),
            pa.field("saturation", pa.float32()),
            pa.field("hue", pa.float32()),
            pa.field("grayscale", pa.bool_()),
            pa.field("blur", pa.float32()),
            pa.field("solarize", pa.int16()),
        ]
    ),
    "prompts": pa.schema(
        [
            pa.field("text_row", pa.int64(), nullable=False),
            pa.field("label", pa.string(), nullable=False),
            pa.field("template", pa.string(), nullable=False),
            pa.field("lang", pa.string()),
        ]
    ),
    "problems": pa.schema(
        [
            pa.field("source", pa.string(), nullable=False),
            pa.field("place", pa.string(), nullable=False),
            pa.field("key", pa.string()),
            pa.field("reason", pa.string(), nullable=False),
        ]
    ),
}

IMAGES_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("sha256", pa.binary(32)),
    ]
)
"""Columns of teachers/<name>/images/: size and hash of the image as embedded, null if rejected."""

PIXELS_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("length", pa.int64(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("sha256", pa.binary(32), nullable=False),
        pa.field("source_sha256", pa.binary(32), nullable=False),
    ]
)
"""Columns of the tables in pixels/: where each kept image is in the tar, and hashes of its bytes and of the
image it was made from."""

# Ascending integers and sorted names compress to a byte or two; hashes and fractions do not.
_ENCODINGS: dict[Any, str] = {
    pa.int64(): "DELTA_BINARY_PACKED",
    pa.float32(): "PLAIN",
    pa.binary(32): "PLAIN",
}
_SORTED_NAMES = {"key", "path", "member"}
_FEW_VALUES = {"source", "label", "lang", "kind", "template", "reason"}


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a table, as the record of its generation describes it."""

    path: str
    table: Table
    num_rows: int
    description: Mapping[str, Any]
    """Size and checksum of the file."""


def encode_table(frame: pl.DataFrame, schema: pa.Schema) -> bytes:
    """Return a frame as the bytes of a Parquet file; equal frames give equal bytes.

    The columns of a row group have less than 2 GiB.
    """
    frame = frame.select(schema.names)
    # An array of texts with 32-bit offsets, as they are stored, has less than 2 GiB.
    groups = [frame[i : i + _ROW_GROUP_ROWS] for i in range(0, len(frame), _ROW_GROUP_ROWS)]
    table = pa.concat_tables(each.to_arrow().cast(schema) for each in groups or [frame])
    sink = io.BytesIO()
    few = [name for name in schema.names if name in _FEW_VALUES]
    pq.write_table(
        table,
        sink,
        compression="zstd",
        compression_level=9,
        row_group_size=_ROW_GROUP_ROWS,
        use_dictionary=cast(Any, few),
        column_encoding={n: _encoding(schema.field(n)) for n in schema.names if n not in few},
        store_schema=False,
    )
    return sink.getvalue()


def encode_part(table: Table, frame: pl.DataFrame) -> bytes:
    """Return a part of a catalog table as the bytes of a Parquet file.

    Views that are not augmented have no columns of augmentation.
    """
    schema = SCHEMAS[table]
    if table == "views":
        schema = pa.schema([field for field in schema if field.name in frame.columns])
    return encode_table(frame, schema)


def scan_table(table: Table, paths: Iterable[Path]) -> pl.LazyFrame:
    """Return the parts of a table as one lazy frame, which is empty if there are no parts.

    A column that an earlier format version lacks is null in its parts.
    """
    found = list(paths)
    empty = empty_table(table)
    if not found:
        return empty.lazy()
    return pl.scan_parquet(
        found,
        schema=empty.schema,
        missing_columns="insert",
        extra_columns="ignore",
        hive_partitioning=False,
        glob=False,
    )


def read_part(table: Table, path: Path) -> pl.DataFrame:
    """Return one part of a table, with the same columns as scan_table."""
    return scan_table(table, [path]).collect()


def read_table(path: Path) -> pl.DataFrame:
    """Return a Parquet file; its path is not a pattern, even if it contains ``*``."""
    return pl.read_parquet(path, hive_partitioning=False, glob=False)


def empty_table(table: Table) -> pl.DataFrame:
    """Return an empty table with the columns of its schema."""
    return cast(pl.DataFrame, pl.from_arrow(pa.Table.from_batches([], schema=SCHEMAS[table])))


def _encoding(field: pa.Field) -> str:
    if field.name in _SORTED_NAMES:
        return "DELTA_BYTE_ARRAY"
    return _ENCODINGS.get(field.type, "PLAIN")
