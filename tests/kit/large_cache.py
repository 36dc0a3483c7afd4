"""A cache of as many units as a billion samples have, made of a small finished one.

The small cache was built by our own build: one unit of images and one of texts, both short. It becomes the
last of many: the records of all units before it are written by the project's own encoders, and say what
those of real units say. Shards are not there: who resumes reads none.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from siglip2_cache import open_cache
from siglip2_cache.store.cache import Cache
from siglip2_cache.store.format import layout
from siglip2_cache.store.format.catalog import PART_ROWS, Table, encode_part, read_part
from siglip2_cache.store.format.layout import MODALITIES, Modality
from siglip2_cache.store.format.records import decode_record, encode_record, sha256_hex

PROVENANCE = {
    "teacher": "google/siglip2-so400m-patch14-384",
    "revision": "e8a487298228002f3d9be3d8f0a4e9a5cd1ee1d1",
    "torch": "2.13.0+cu130",
    "transformers": "5.23.0",
    "tokenizers": "0.23.3",
    "pillow": "13.0.0",
    "device": "cuda",
    "device_name": "NVIDIA H100 80GB HBM3",
    "num_threads": 16,
}
"""What a real teacher says of itself: records are as long as theirs."""

_ROW_COLUMNS: dict[Table, dict[str, Modality]] = {
    "files": {},
    "samples": {"row": "image"},
    "captions": {"row": "image", "text_row": "text"},
    "texts": {"text_row": "text"},
    "views": {"row": "image"},
}
"""Columns that hold rows, which move to the end."""


def enlarge(root: Path, num_units: int) -> None:
    """Put ``num_units`` committed units of each modality before the one unit of a cache, which becomes
    uncommitted; also the parts of the catalog that so many rows have, empty but for the last."""
    cache = open_cache(root)
    [teacher] = cache.teachers
    num_before = num_units * cache.shard_rows
    _enlarge_catalog(cache, num_before)
    for name in cache.files.names(layout.commits_folder(teacher)):
        cache.files.remove(f"{layout.commits_folder(teacher)}/{name}")
    for path, data in _records(teacher, num_units, cache.shard_rows):
        (root / path).write_bytes(data)


def add_shards(root: Path, num_units: int) -> None:
    """Put an empty file in the place of every shard and images table: a walk meets as many names."""
    [teacher] = open_cache(root).teachers
    for modality in MODALITIES:
        for unit in range(num_units):
            shard = root / layout.shard(teacher, modality, unit)
            shard.parent.mkdir(parents=True, exist_ok=True)
            shard.touch()
            if modality == "image":
                images = root / layout.images_part(teacher, unit)
                images.parent.mkdir(exist_ok=True)
                images.touch()


def _enlarge_catalog(cache: Cache, num_before: int) -> None:
    record = cache.files.fetch(layout.CACHE_RECORD, {})
    fields = decode_record(record.read_bytes(), where=str(record))
    descriptions: dict[str, Any] = {}
    for table, columns in _ROW_COLUMNS.items():
        parts = cache.manifest.parts(table)
        if not parts:
            continue
        [part] = parts
        found = read_part(table, cache.files.fetch(part.path, {}))
        frame = found.with_columns(pl.col(name) + num_before for name in columns)
        per_row = part.num_rows // cache.num_samples if table == "views" else 1
        num_rows = num_before * per_row if columns else 0
        stand_in, last = encode_part(table, found[:1]), encode_part(table, frame)
        num_parts = (num_rows + part.num_rows - 1) // PART_ROWS
        for number in range(num_parts):
            path = layout.catalog_part(table, number)
            descriptions[path] = _describe(cache, path, stand_in, table, PART_ROWS)
        path = layout.catalog_part(table, num_parts)
        rest = num_rows + part.num_rows - num_parts * PART_ROWS
        descriptions[path] = _describe(cache, path, last, table, rest)
    fields["rows"]["count"] += num_before
    fields["text_rows"]["count"] += num_before
    fields["files"] = descriptions
    del fields["format_version"]
    record.write_bytes(encode_record(fields))


def _describe(cache: Cache, path: str, data: bytes, table: Table, num_rows: int) -> dict[str, Any]:
    cache.files.fetch(path, {}).write_bytes(data)
    return {
        "table": table,
        "num_rows": num_rows,
        "num_bytes": len(data),
        "sha256": sha256_hex(data),
    }


def _records(teacher: str, num_units: int, shard_rows: int) -> Iterator[tuple[str, bytes]]:
    for modality in MODALITIES:
        for unit in range(num_units):
            paths = [layout.shard(teacher, modality, unit)]
            if modality == "image":
                paths.append(layout.images_part(teacher, unit))
            yield (
                layout.unit_record(teacher, modality, unit),
                encode_record(
                    {
                        "modality": modality,
                        "unit": unit,
                        "attempt": 0,
                        "first_row": unit * shard_rows,
                        "num_rows": shard_rows,
                        "num_rejected": 0,
                        "rejected": [],
                        "batch_size": 256,
                        "provenance": PROVENANCE,
                        "files": {
                            path: {"num_bytes": 37_752_836, "sha256": sha256_hex(path.encode())}
                            for path in paths
                        },
                    }
                ),
            )
