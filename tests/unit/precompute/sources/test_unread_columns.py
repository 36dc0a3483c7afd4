"""Columns that hold text and are not taken: said with the option that uses them."""

import json
from pathlib import Path

import polars as pl
import pytest

from siglip2_cache.precompute.sources import Sample, TableColumns, Unused, open_source

Rows = list[dict[str, object]]


def write(path: Path, rows: Rows) -> Path:
    match path.suffix:
        case ".jsonl":
            path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        case ".csv":
            pl.DataFrame(rows).write_csv(path)
        case _:
            pl.DataFrame(rows).write_parquet(path)
    return path


def notes_of(path: Path, columns: TableColumns | None = None) -> dict[str, int]:
    found = open_source(path, columns=columns).scan()
    return {each.reason.split("'")[1]: each.count for each in found if isinstance(each, Unused)}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_text_columns_of_a_table_without_captions_are_named(tmp_path: Path, kind: str) -> None:
    rows: Rows = [
        {
            "image": f"{i}.jpg",
            "remark": "a dog runs",
            "n": 7,
            "source_url": "http x y",
            "key": str(i),
        }
        for i in range(3)
    ]
    path = write(tmp_path / f"t.{kind}", rows)
    assert notes_of(path) == {"remark": 3}
    assert notes_of(path, TableColumns(captions=("remark",))) == {}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_title_beside_captions_is_named_and_nothing_else(tmp_path: Path, kind: str) -> None:
    row: dict[str, object] = {"image": "a.jpg", "caption": "x", "title": "the big dog"}
    path = write(tmp_path / f"t.{kind}", [row | {"story": "once upon a time"}])
    [note] = [each for each in open_source(path).scan() if isinstance(each, Unused)]
    assert (note.reason, note.count, note.place) == (
        *("rows with text in column 'title', not used as a caption", 1),
        str(path),
    )
    assert (
        note.remedy
        == "--caption-column title uses them (beside the others: --caption-column caption)"
    )


def test_rows_behind_those_that_were_looked_into_count(tmp_path: Path) -> None:
    rows: Rows = [{"image": f"{i}.jpg", "remark": "a dog"} for i in range(1500)]
    rows += [{"image": "x.jpg", "remark": None}]
    assert notes_of(write(tmp_path / "t.jsonl", rows)) == {"remark": 1500}


def test_columns_of_identifiers_and_numbers_are_not_named(tmp_path: Path) -> None:
    row: dict[str, object] = {"image": "a.jpg", "code": "A7", "size": "1 2", "many": "3 4"}
    assert notes_of(write(tmp_path / "t.csv", [row])) == {}


def test_text_columns_beside_packed_images_are_named_by_their_type(tmp_path: Path) -> None:
    rows: Rows = [
        {"image": {"bytes": b"x", "path": None}, "remark": "a dog", "remarks": ["a"], "n": 1}
    ]
    path = write(tmp_path / "t.parquet", rows * 4)
    assert notes_of(path) == {"remark": 4, "remarks": 4}
    assert sum(isinstance(each, Sample) for each in open_source(path).scan()) == 4
