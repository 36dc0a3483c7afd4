"""A whole cache of as many units as one wishes, grown from a small finished one: units are tiny, parts too.

Unlike that of large_cache.py every file is there, and holds what its record says of it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from kit.large_cache import PROVENANCE
from siglip2_cache import open_cache
from siglip2_cache.store.cache import Cache
from siglip2_cache.store.format import layout
from siglip2_cache.store.format.catalog import (
    IMAGES_SCHEMA,
    SCHEMAS,
    Table,
    encode_part,
    encode_table,
)
from siglip2_cache.store.format.layout import MODALITIES
from siglip2_cache.store.format.records import decode_record, encode_record, sha256_hex
from siglip2_cache.store.format.shard import ArrayLayout, encode_shard

PART_LINES = 1024
"""Lines of a part of the catalog: as many parts as a thousand times the rows would have."""

REJECTED_EVERY = 8
"""Of so many units of images one has a rejected row, its first."""


def grow(root: Path, num_units: int) -> None:
    """Replace what a small cache holds with ``num_units`` whole units of images and of texts.

    Every image is one of the small cache's files; every text is its own.
    """
    cache = open_cache(root)
    [teacher] = cache.teachers
    for modality in MODALITIES:
        for name in cache.files.names(layout.commits_folder(teacher)):
            cache.files.remove(f"{layout.commits_folder(teacher)}/{name}")
        (root / layout.shard(teacher, modality, 0)).unlink()
    (root / layout.images_part(teacher, 0)).unlink()
    _grow_catalog(cache, num_units * cache.shard_rows)
    cache = open_cache(root)
    description: dict[str, Any] = {}
    for modality in MODALITIES:
        array = cache.manifest.array_layout(modality, cache.teacher().embed_dim)
        metadata = json.dumps(array.metadata()).encode()
        path = layout.array_metadata(teacher, modality)
        description[path] = _write(root, path, metadata)
        _write_units(root, teacher, array, num_units)
    _change_record(root / layout.teacher_record(teacher), {"files": description})


def _grow_catalog(cache: Cache, num_rows: int) -> None:
    small = cache.table("files").collect()
    row = pl.int_range(num_rows, eager=True).alias("row")
    which = row % small.height
    nothing = dict.fromkeys(SCHEMAS["samples"].names)
    tables: dict[Table, pl.DataFrame] = {
        "files": small[which.to_list()].with_columns(file=row),
        "samples": pl.DataFrame({**nothing, "row": row, "file": row}).with_columns(
            key=pl.format("k{}", "row"), **_typed("samples", ("row", "file", "key"))
        ),
        "captions": pl.DataFrame({"row": row, "text_row": row}).with_columns(
            lang=pl.lit(None, pl.String), kind=pl.lit(None, pl.String)
        ),
        "texts": pl.DataFrame({"text_row": row}).with_columns(
            text=pl.format("text {}", "text_row")
        ),
    }
    for part in cache.manifest.latest.parts:
        cache.files.remove(part.path)
    description: dict[str, Any] = {}
    for table, frame in tables.items():
        for number, lines in enumerate(frame.iter_slices(PART_LINES)):
            path = layout.catalog_part(table, number)
            data = encode_part(table, lines)
            facts = {"table": table, "num_rows": lines.height}
            description[path] = {**facts, **_write(Path(str(cache.root)), path, data)}
    span = {"first": 0, "count": num_rows}
    counts = {"rows": span, "text_rows": span, "num_captions": num_rows, "files": description}
    _change_record(Path(str(cache.root)) / layout.CACHE_RECORD, counts)


def _typed(table: Table, but: tuple[str, ...]) -> dict[str, pl.Expr]:
    empty: Any = pl.from_arrow(SCHEMAS[table].empty_table())
    return {name: pl.lit(None, dtype) for name, dtype in empty.schema.items() if name not in but}


def _write_units(root: Path, teacher: str, array: ArrayLayout, num_units: int) -> None:
    modality, count = array.modality, array.shard_rows
    values = np.random.default_rng(0).normal(size=(count, *array.row_shape))
    values = (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float16)
    whole = bytes(encode_shard(array, values))
    values[0] = np.nan
    rejecting = bytes(encode_shard(array, values))
    for unit in range(num_units):
        first = unit * count
        is_rejecting = modality == "image" and unit % REJECTED_EVERY == 0
        shard = layout.shard(teacher, modality, unit)
        files = {shard: _write(root, shard, rejecting if is_rejecting else whole)}
        if modality == "image":
            frame = pl.DataFrame({"row": range(first, first + count)}).with_columns(
                width=pl.lit(64), height=pl.lit(64), sha256=pl.lit(bytes(32))
            )
            if is_rejecting:
                is_first = pl.col("row") == first
                frame = frame.with_columns(
                    pl.when(~is_first).then(name).alias(name) for name in frame.columns[1:]
                )
            images = layout.images_part(teacher, unit)
            files[images] = _write(root, images, encode_table(frame, IMAGES_SCHEMA))
        fields = {
            "modality": modality,
            "unit": unit,
            "attempt": 0,
            "first_row": first,
            "num_rows": count,
            "num_rejected": int(is_rejecting),
            "rejected": [{"row": first, "reason": "no such file"}] if is_rejecting else [],
            "batch_size": 4,
            "provenance": PROVENANCE,
            "files": files,
        }
        _write(root, layout.unit_record(teacher, modality, unit), encode_record(fields))


def _write(root: Path, path: str, data: bytes) -> dict[str, Any]:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(data)
    return {"num_bytes": len(data), "sha256": sha256_hex(data)}


def _change_record(record: Path, changes: Mapping[str, Any]) -> None:
    fields = decode_record(record.read_bytes(), where=str(record))
    del fields["format_version"]
    record.write_bytes(encode_record({**fields, **changes}))
