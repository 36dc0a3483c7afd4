"""Files that rows name otherwise than they are called on disk."""

import json
import os
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siglip2_cache.precompute.sources import Sample, listing, open_source
from siglip2_cache.precompute.sources.named_files import find_named

NFC, NFD = (unicodedata.normalize(form, "K\u00e4fer") for form in ("NFC", "NFD"))


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"pixels")


def scan(path: Path) -> list[tuple[str, str, int | None]]:
    return [(s.key, s.path, s.num_bytes) for s in open_source(path).scan() if isinstance(s, Sample)]


@pytest.mark.parametrize(
    ("on_disk", "written"),
    [
        ("images/a.jpg", "images\\a.jpg"),
        ("images/b/a.jpg", ".\\images/b\\a.jpg"),
        (f"{NFD}/{NFD}.jpg", f"{NFC}/{NFC}.jpg"),
        (f"{NFC}.jpg", f"{NFD}.jpg"),
        (f"b/{NFD}.jpg", f"b\\{NFC}.jpg"),
    ],
)
def test_a_row_finds_its_image_with_other_separators_and_accents(
    tmp_path: Path, on_disk: str, written: str
) -> None:
    put(tmp_path, on_disk)
    (tmp_path / "t.jsonl").write_text(json.dumps({"image": written}))
    assert scan(tmp_path / "t.jsonl") == [(on_disk.removesuffix(".jpg"), on_disk, 6)]
    images = [{"bytes": None, "path": written}, {"bytes": b"x", "path": "x"}]
    pq.write_table(pa.table({"image": images, "id": ["a", "b"]}), tmp_path / "t.parquet")
    assert scan(tmp_path / "t.parquet")[0] == ("a", on_disk, 6)


def test_rows_that_spell_one_image_in_two_ways_name_one_file(tmp_path: Path) -> None:
    put(tmp_path, "images/a.jpg")
    (tmp_path / "t.csv").write_text("image,caption\nimages/a.jpg,dog\nimages\\a.jpg,cat\n")
    assert scan(tmp_path / "t.csv") == [("images/a", "images/a.jpg", 6)] * 2


@pytest.mark.parametrize("written", ["images\\a.jpg", f"{NFC}.jpg", f"{NFD}.jpg"])
def test_a_file_that_is_called_as_written_is_looked_up_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    put(tmp_path, "images/a.jpg", f"{NFC}.jpg", f"{NFD}.jpg", written)
    seen: list[str] = []
    stat = os.stat

    def counted(path: str) -> os.stat_result:
        seen.append(path)
        return stat(path)

    monkeypatch.setattr(listing.os, "stat", counted)
    assert find_named(tmp_path, written)[0] == written
    assert seen == [f"{tmp_path}/{written}"]


@pytest.mark.parametrize("written", ["images\\a.jpg", "\\", f"{NFC}.jpg", "C:\\images\\a.jpg"])
def test_a_file_that_is_not_there_keeps_its_path(tmp_path: Path, written: str) -> None:
    assert find_named(tmp_path, written) == (written, (None, None))
