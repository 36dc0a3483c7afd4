"""Tables that are one JSON text: a list of rows, a list inside an object, COCO's annotations."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from siglip2_cache import open_cache
from siglip2_cache.errors import SourceError
from siglip2_cache.precompute.planning.config import PlanConfig
from siglip2_cache.precompute.planning.plan import make_plan
from siglip2_cache.precompute.sources import Sample, TableColumns, open_source
from siglip2_cache.precompute.sources.readers import json_records
from siglip2_cache.store.io.local import LocalStorage

ROWS = [{"image": f"{i}.jpg", "caption": f"caption {i}", "more": [i, {"x": 1.5}]} for i in range(4)]


def write(path: Path, value: Any, **how: Any) -> Path:
    path.write_text(json.dumps(value, **how))
    return path


def samples(table: Path, columns: TableColumns | None = None) -> list[tuple[str, list[str]]]:
    found = open_source(table, columns=columns).scan()
    return [(s.key, [c.text for c in s.captions]) for s in found if isinstance(s, Sample)]


def reasons(table: Path) -> dict[str, str]:
    found = open_source(table).scan()
    return {s.place.removeprefix(f"{table} "): s.reason for s in found if not isinstance(s, Sample)}


@pytest.mark.parametrize("num_characters", [1, 2, 7, 65_536])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", [None, "data"])
def test_a_list_of_rows_is_a_table_wherever_a_reading_ends(
    tmp_path: Path,
    name: str | None,
    indent: int | None,
    num_characters: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(json_records, "_CHUNK", num_characters)
    value = ROWS if name is None else {"version": 12, "info": {"a": [1]}, name: ROWS, "last": None}
    table = write(tmp_path / "t.json", value, indent=indent)
    assert samples(table) == [(str(i), [f"caption {i}"]) for i in range(4)]
    assert reasons(table) == {}


def test_ndjson_is_jsonl(tmp_path: Path) -> None:
    (tmp_path / "t.ndjson").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert samples(tmp_path / "t.ndjson") == [(str(i), [f"caption {i}"]) for i in range(4)]


COCO: dict[str, Any] = {
    "info": {"year": 2017},
    "licenses": [],
    "images": [
        {"id": 9, "file_name": "b.jpg", "coco_url": "http://x/b.jpg"},
        {"id": 4, "file_name": "a.jpg"},
        {"id": 5, "file_name": "none.jpg"},
    ],
    "annotations": [
        {"id": 1, "image_id": 4, "caption": "one"},
        {"id": 2, "image_id": 9, "caption": "two"},
        {"id": 3, "image_id": 4, "caption": "three"},
        {"id": 4, "image_id": 77, "caption": "lost"},
        {"id": 5, "image_id": 9, "bbox": [1, 2, 3, 4]},
    ],
}


@pytest.mark.parametrize("names", [list(COCO), list(reversed(COCO))], ids=["as given", "reversed"])
def test_coco_annotations_are_joined_with_their_images(tmp_path: Path, names: list[str]) -> None:
    table = write(tmp_path / "captions.json", {name: COCO[name] for name in names})
    config = PlanConfig(sources=(str(table),))
    found = make_plan(config, LocalStorage(tmp_path / "cache")).findings
    cache = open_cache(tmp_path / "cache")
    texts = dict(cache.texts().collect().iter_rows())
    captions = cache.captions().collect().select("row", "text_row").rows()
    assert cache.samples().collect()["key"].to_list() == ["b", "a", "none"]
    assert [(row, texts[text]) for row, text in captions] == [(0, "two"), (1, "one"), (1, "three")]
    assert found.num_problems == 1
    assert found.problems == [
        f"{table} annotations entry 4: its image_id '77' does not belong to an image of the file"
    ]


def test_images_with_their_sentences_are_rows(tmp_path: Path) -> None:
    images = [{"filename": "a.jpg", "sentences": [{"raw": "one"}, {"raw": "two"}], "cocoid": 3}]
    table = write(tmp_path / "dataset_coco.json", {"images": images, "dataset": "coco"})
    assert samples(table) == [("a", ["one", "two"])]


def test_an_entry_that_is_no_object_costs_itself_alone(tmp_path: Path) -> None:
    table = write(tmp_path / "t.json", [ROWS[0], 5, ROWS[1]])
    assert [key for key, _ in samples(table)] == ["0", "1"]
    assert reasons(table) == {"entry 2": "expected an object of named values, got a number"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"image": "a.jpg"}, {"image"', r"is not JSON: expected a value at '\{\"image\"'"),
        ('[{"image": "a.jpg"} {}]', r"expected , at '\{\}\]'"),
        ('{"image": "a.jpg"}\n{"image": "b.jpg"}\n', r"should be a list of rows, .*as \.jsonl$"),
        ('"text"', r"should begin with \[ or \{"),
        ('{"a": [{}], "b": [{}]}', r"it has lists: a, b; write one object per line as \.jsonl$"),
        ("[]", r"should be a list of rows"),
        ("", r"is not JSON"),
        ("[" * 100_000, r"is not JSON: expected less deeply nested values"),
    ],
)
def test_a_json_that_is_no_table_is_one_short_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(SourceError, match=message) as error:
        samples(tmp_path / "t.json")
    assert len(str(error.value).removeprefix(str(tmp_path))) < 250


def test_a_long_list_takes_the_memory_of_a_part(tmp_path: Path) -> None:
    rows = [{"image": f"{i}.jpg", "caption": "x" * 650} for i in range(4_000)]
    table = write(tmp_path / "t.json", rows)  # 2.8 MB
    tracemalloc.start()
    try:
        assert sum(isinstance(item, Sample) for item in open_source(table).scan()) == len(rows)
        assert tracemalloc.get_traced_memory()[1] < 1_500_000
    finally:
        tracemalloc.stop()
