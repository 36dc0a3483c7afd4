"""Catalog tables: their bytes, columns and size."""

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siglip2_cache.store.format.catalog import (
    IMAGES_SCHEMA,
    SCHEMAS,
    Table,
    encode_part,
    encode_table,
    scan_table,
)
from siglip2_cache.store.format.views import ViewPolicy, draw_view

NUM_ROWS = 70_000  # more than a row group

LINES: dict[Table, tuple[Any, ...]] = {
    "files": (0, "photos", "a/ä.jpg", None, 1_700_000_000_000_000_000),
    "samples": (0, "photos/ä", 0, "a/ä.jpg", 512, 7, None, None, "cat", b"x" * 32),
    "captions": (0, 3, None, "alt"),
    "texts": (3, "eine Katze\n猫"),
    "views": (0, 1, 0.1, 0.25, 0.5, 0.75, True, 0.5, 1.0, 1.25, -0.125, False, 0.0, 256),
    "prompts": (4, "cat", "a photo of a {}", "en"),
    "problems": ("photos", "line 3", None, "no image is named"),
}


def make_frame(table: Table) -> pl.DataFrame:
    return pl.from_arrow(pa.table([[value] for value in LINES[table]], schema=SCHEMAS[table]))  # type: ignore[return-value]


@pytest.mark.parametrize("table", SCHEMAS)
def test_a_part_has_the_columns_of_its_schema_for_any_reader(table: Table) -> None:
    frame = make_frame(table)
    data = encode_part(table, frame)
    read = pq.read_table(io.BytesIO(data))
    assert read.schema.equals(SCHEMAS[table])
    assert [tuple(row.values()) for row in read.to_pylist()] == frame.rows()
    assert pl.read_parquet(data).equals(frame)


@pytest.mark.parametrize("table", SCHEMAS)
def test_an_empty_part_keeps_its_columns(table: Table) -> None:
    data = encode_part(table, make_frame(table).clear())
    assert pq.read_table(io.BytesIO(data)).schema.equals(SCHEMAS[table])
    assert pl.read_parquet(data).height == 0


def test_pictures_have_hashes_of_32_bytes_and_may_lack_them() -> None:
    lines = [(7, 640, 480, b"x" * 32), (8, None, None, None)]
    schema = {"row": pl.Int64, "width": pl.Int32, "height": pl.Int32, "sha256": pl.Binary}
    data = encode_table(pl.DataFrame(lines, schema=schema, orient="row"), IMAGES_SCHEMA)
    read = pq.read_table(io.BytesIO(data))
    assert read.schema.field("sha256").type == pa.binary(32)
    assert [tuple(row.values()) for row in read.to_pylist()] == lines
    assert pl.read_parquet(data).rows() == lines


def test_a_missing_name_is_refused() -> None:
    frame = make_frame("texts").with_columns(text=pl.lit(None, pl.String))
    with pytest.raises(ValueError, match="null"):
        encode_part("texts", frame)


def test_equal_frames_give_equal_bytes_however_they_came_about() -> None:
    frame = make_samples(1000)
    pieces = pl.concat([frame[:10], frame[10:999], frame[999:]], rechunk=False)
    shuffled = frame.sample(fraction=1, shuffle=True, seed=1).sort("row")
    other_order = frame.select(reversed(frame.columns))
    expected = encode_part("samples", frame)
    for same in (pieces, shuffled, other_order, frame.rechunk()):
        assert encode_part("samples", same) == expected


@pytest.mark.slow
def test_texts_of_more_than_2_gib_make_a_part() -> None:
    frame = make_frame("texts").clear()
    lines = pl.DataFrame({"text_row": range(70_000)}, schema_overrides={"text_row": pl.Int64})
    frame = lines.with_columns(text=pl.lit("x" * 31_000)).select(frame.columns)
    data = encode_part("texts", frame)
    read = pq.ParquetFile(io.BytesIO(data))
    assert read.metadata.num_rows == 70_000
    assert len(read.read_row_group(1)["text"][0].as_py()) == 31_000


def test_a_part_names_no_machine_and_no_library_schema() -> None:
    metadata = pq.read_metadata(io.BytesIO(encode_part("texts", make_frame("texts"))))
    assert metadata.metadata is None


@pytest.mark.parametrize("table", SCHEMAS)
def test_a_table_without_parts_is_empty_with_its_columns(table: Table) -> None:
    frame = scan_table(table, []).collect()
    assert frame.height == 0
    assert frame.columns == SCHEMAS[table].names
    assert frame.schema == make_frame(table).schema


def test_parts_are_read_in_the_order_given(tmp_path: Path) -> None:
    frame = make_samples(10)
    paths = [tmp_path / name for name in ("b=1.parquet", "a[0].parquet")]
    for path, rows in zip(paths, (frame[:4], frame[4:]), strict=True):
        path.write_bytes(encode_part("samples", rows))
    assert scan_table("samples", paths).collect().equals(frame)


# -- bytes a row: DESIGN.md expects samples 7, texts 34, views 16 a view, images 36


def make_samples(count: int) -> pl.DataFrame:
    columns: dict[str, Any] = {
        "row": range(count),
        "key": [f"train/{i:09d}" for i in range(0, 7 * count, 7)],
        "file": range(count),
    }
    schema = make_frame("samples").schema
    return pl.DataFrame({name: columns.get(name) for name in schema}, schema=schema)


def test_a_sample_takes_at_most_7_bytes() -> None:
    assert len(encode_part("samples", make_samples(NUM_ROWS))) < 7 * NUM_ROWS


def test_sorted_keys_store_only_what_differs_from_the_one_before() -> None:
    numbers = sorted(random.Random(0).sample(range(600_000), NUM_ROWS))
    keys = [f"train/{number:012d}" for number in numbers]
    frame = make_samples(NUM_ROWS).with_columns(key=pl.Series(keys))
    assert len(encode_part("samples", frame)) < 1.8 * NUM_ROWS  # 1.6; plain strings take 2.0


def test_a_sample_in_an_archive_takes_at_most_10_bytes() -> None:
    randoms = random.Random(0)
    lengths = [randoms.randrange(10_000, 200_000) for _ in range(NUM_ROWS)]
    offsets = np.cumsum([0, *[-(-length // 512) * 512 + 512 for length in lengths[:-1]]])
    frame = make_samples(NUM_ROWS).with_columns(
        file=pl.col("row") // 10_000,
        member=pl.col("key") + ".jpg",
        offset=pl.Series(offsets),
        length=pl.Series(lengths),
    )
    assert len(encode_part("samples", frame)) < 10 * NUM_ROWS


def test_captions_in_order_take_about_a_byte() -> None:
    columns = {"row": np.arange(NUM_ROWS) // 5, "text_row": np.arange(NUM_ROWS)}
    frame = pl.DataFrame(columns).with_columns(lang=pl.lit("en"), kind=pl.lit("alt"))
    assert len(encode_part("captions", frame)) < NUM_ROWS


def test_a_text_takes_at_most_34_bytes() -> None:
    words = [f"{a}{b}" for a in ("ma", "ne", "ti", "lo", "rus", "gan") for b in "aeioukpt"]
    randoms = random.Random(0)
    texts = [" ".join(randoms.choices(words, k=10)) for _ in range(NUM_ROWS)]  # some 40 letters
    frame = pl.DataFrame({"text_row": range(NUM_ROWS), "text": texts})
    assert len(encode_part("texts", frame)) < 34 * NUM_ROWS


def test_a_crop_takes_at_most_17_bytes() -> None:
    policy = ViewPolicy(num_views=2)
    boxes = [draw_view(policy, str(row), 1) for row in range(NUM_ROWS)]
    columns = {name: [getattr(box, name) for box in boxes] for name in policy.columns}
    rows = {"row": range(NUM_ROWS), "view": [1] * NUM_ROWS}
    frame = pl.DataFrame({**rows, **columns})
    assert len(encode_part("views", frame)) < 17 * NUM_ROWS


def test_a_picture_takes_at_most_37_bytes() -> None:
    random_bytes = np.random.default_rng(0).bytes(32 * NUM_ROWS)
    sizes = np.random.default_rng(1).choice([426, 480, 500, 640], (2, NUM_ROWS))
    columns = {
        "row": range(NUM_ROWS),
        "width": sizes[0],
        "height": sizes[1],
        "sha256": [random_bytes[32 * i : 32 * i + 32] for i in range(NUM_ROWS)],
    }
    assert len(encode_table(pl.DataFrame(columns), IMAGES_SCHEMA)) < 37 * NUM_ROWS
