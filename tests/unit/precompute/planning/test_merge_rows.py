"""Rows of one picture: one sample with the captions of all, whatever keys the rows have."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siglip2_cache import open_cache
from siglip2_cache.errors import DuplicateKeyError, SettingError
from siglip2_cache.precompute.planning.config import PlanConfig
from siglip2_cache.precompute.planning.findings import Findings, finding_lines
from siglip2_cache.precompute.planning.plan import make_plan
from siglip2_cache.precompute.planning.spill import Scratch
from siglip2_cache.precompute.sources import TableColumns, open_source
from siglip2_cache.store.io.local import LocalStorage
from siglip2_cache.store.verify.verify import verify_cache

SCRATCHES: dict[str, Callable[[], Scratch]] = {
    "one bucket": Scratch,
    "many buckets": partial(Scratch, bucket_rows=2, memory_limit_bytes=1),
}


def write(folder: Path, *rows: dict[str, Any], name: str = "t.jsonl") -> Path:
    """A table of pictures that are not there: a plan looks at no pixel."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def row(image: str, caption: str, **more: Any) -> dict[str, Any]:
    return {"image": image, "caption": caption, **more}


def plan(tmp_path: Path, *sources: Path | str, scratch: Any = Scratch, **settings: Any) -> Findings:
    config = PlanConfig(sources=tuple(map(str, sources)), **settings)
    found = make_plan(config, LocalStorage(tmp_path / "cache"), scratch=scratch).findings
    [fault] = verify_cache(open_cache(tmp_path / "cache")).faults  # of the catalog there is none
    assert fault.startswith("the cache has no teacher")
    return found


def samples(tmp_path: Path) -> dict[str, list[str]]:
    """The captions of each key, in order."""
    cache = open_cache(tmp_path / "cache")
    texts = dict(cache.texts().collect().iter_rows())
    found: dict[str, list[str]] = {}
    captions = cache.captions().collect()
    assert captions["row"].is_sorted()
    for at, key in cache.samples().select("row", "key").collect().iter_rows():
        found[key] = [texts[t] for t in captions.filter(pl.col("row") == at)["text_row"]]
    return found


@pytest.mark.parametrize("scratch", SCRATCHES.values(), ids=SCRATCHES)
@pytest.mark.parametrize("ids", [None, "id"], ids=["no key", "a key for each row"])
def test_rows_of_one_picture_are_one_sample_though_others_stand_between(
    tmp_path: Path, scratch: Callable[[], Scratch], ids: str | None
) -> None:
    names = ["a", "b", "a", "c", "b", "a", "c", "a"]
    rows = [row(f"{n}.jpg", f"{n} {i}", **({ids: i} if ids else {})) for i, n in enumerate(names)]
    found = plan(tmp_path, write(tmp_path, *rows), scratch=scratch)
    a, b, c = "013" if ids else "abc"
    assert samples(tmp_path) == {
        a: ["a 0", "a 2", "a 5", "a 7"],
        b: ["b 1", "b 4"],
        c: ["c 3", "c 6"],
    }
    assert (found.num_samples, found.num_captions, found.num_texts) == (3, 8, 8)
    assert (found.num_merged_rows, found.num_merged_images) == (5, 3)
    assert (
        "merged     8 rows name 3 images: each is one sample, with the captions of all its rows and "
        "the key of the first"
    ) in finding_lines(found, "")


def test_a_caption_that_two_rows_of_a_picture_repeat_stands_once(tmp_path: Path) -> None:
    plan(tmp_path, write(tmp_path, row("a.jpg", "x"), row("a.jpg", "y"), row("a.jpg", "x")))
    assert samples(tmp_path) == {"a": ["x", "y"]}


def test_the_same_picture_in_two_sources_is_two_samples(tmp_path: Path) -> None:
    one, two = (write(tmp_path, row("a.jpg", n), name=f"{n}.jsonl") for n in ("one", "two"))
    plan(tmp_path, one, two)
    assert samples(tmp_path) == {"one/a": ["one"], "two/a": ["two"]}


def test_the_first_label_is_taken_and_others_are_told(tmp_path: Path) -> None:
    rows = [
        row("a.jpg", "1"),
        *(row("a.jpg", str(i), label=label) for i, label in enumerate(["cat", "dog", "cat"])),
        *(row("b.jpg", str(i), label=label) for i, label in enumerate(["x", *"12345"])),
    ]
    found = plan(tmp_path, write(tmp_path, *rows))
    cache = open_cache(tmp_path / "cache")
    assert cache.samples().select("key", "label").collect().rows() == [("a", "cat"), ("b", "x")]
    assert found.num_problems == 4
    reasons = cache.table("problems").collect()["reason"].to_list()
    assert reasons[0] == "its image already has the label 'cat'; 'dog' is unused"
    assert reasons[-1] == "3 more rows have a label that differs from their image's"


@pytest.mark.parametrize("scratch", SCRATCHES.values(), ids=SCRATCHES)
def test_rows_that_an_older_cache_has_as_samples_stay_samples(
    tmp_path: Path, scratch: Callable[[], Scratch], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = [row("a.jpg", "one", id=1), row("a.jpg", "two", id=2)]
    with monkeypatch.context() as before:
        before.setattr("siglip2_cache.precompute.planning.freeze.KINDS", set[str]())
        plan(tmp_path, write(tmp_path, *old))
    assert samples(tmp_path) == {"1": ["one"], "2": ["two"]}
    found = plan(tmp_path, write(tmp_path, *old, row("b.jpg", "three", id=3)), scratch=scratch)
    assert samples(tmp_path) == {"1": ["one"], "2": ["two"], "3": ["three"]}
    assert (found.num_gone, found.num_kept) == (0, 0)


def test_a_row_put_before_a_recorded_picture_belongs_to_its_sample(tmp_path: Path) -> None:
    plan(tmp_path, write(tmp_path, row("a.jpg", "one", id=7)))
    source = write(tmp_path, row("a.jpg", "zero", id=6), row("a.jpg", "one", id=7))
    with pytest.raises(SettingError, match=r"^1 sample of .*\(captions of 1: '7'\)"):
        plan(tmp_path, source)


# -- rows that hold their images


def write_packed(folder: Path, kind: str, table: pa.Table) -> Path:
    """Write a Parquet file, or what datasets would save."""
    folder.mkdir()
    if kind == "parquet":
        pq.write_table(table, folder / "p.parquet", row_group_size=3)
        return folder / "p.parquet"
    with pa.ipc.new_stream(str(folder / "data.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    return folder


PACKED = pytest.mark.parametrize("kind", ["parquet", "datasets"])


@PACKED
@pytest.mark.parametrize("by", ["key", "path"])
def test_packed_rows_of_one_name_and_one_image_are_one_sample(
    tmp_path: Path, kind: str, by: str
) -> None:
    names = ["a", "b", "a", "c", "c", "a"]
    columns: dict[str, Any] = {"caption": [f"{n} {i}" for i, n in enumerate(names)]}
    if by == "key":
        columns |= {"image": [n.encode() for n in names], "key": names}
    else:
        columns |= {"image": [{"bytes": n.encode(), "path": f"{n}.png"} for n in names]}
    found = plan(tmp_path, write_packed(tmp_path / "d", kind, pa.table(columns)))
    captions = [["a 0", "a 2", "a 5"], ["b 1"], ["c 3", "c 4"]]
    assert list(samples(tmp_path).values()) == captions
    assert (found.num_samples, found.num_merged_rows) == (3, 3)
    if by == "key":
        assert list(samples(tmp_path)) == ["a", "b", "c"]


@PACKED
def test_packed_rows_of_one_path_and_other_bytes_are_samples_of_their_own(
    tmp_path: Path, kind: str
) -> None:
    images = [{"bytes": data, "path": "image.jpg"} for data in (b"1", b"2", b"1")]
    table = pa.table({"image": images, "caption": ["x", "y", "z"]})
    plan(tmp_path, write_packed(tmp_path / "d", kind, table))
    assert list(samples(tmp_path).values()) == [["x", "z"], ["y"]]


@PACKED
def test_packed_rows_of_one_key_and_other_bytes_are_refused(tmp_path: Path, kind: str) -> None:
    table = pa.table({"image": [b"1", b"2"], "key": ["a", "a"]})
    source = write_packed(tmp_path / "d", kind, table)
    keys = {"parquet": "FILE/ROW", "datasets": "row numbers"}[open_source(source).kind]
    remedy = rf"use another --key-column or --key-column '' \(keys are {keys}\)$"
    with pytest.raises(
        DuplicateKeyError, match=rf"^key 'a' is given twice, .* in a cache: {remedy}"
    ):
        plan(tmp_path, source)
    plan(tmp_path, source, columns=TableColumns(key=""))
    assert [key.rpartition("/")[2] for key in samples(tmp_path)] == ["0", "1"]
    assert plan(tmp_path, source).num_samples == 0  # the column is not asked for again


def test_a_table_without_its_key_column_has_the_paths_as_keys(tmp_path: Path) -> None:
    source = write(tmp_path, row("x/a.jpg", "1", key="k"), row("b.jpg", "2", key="k"))
    plan(tmp_path, source, columns=TableColumns(key=""))
    assert samples(tmp_path) == {"x/a": ["1"], "b": ["2"]}
    assert open_cache(tmp_path / "cache").manifest.sources[0].settings == {"key": ""}
    plan(tmp_path, write(tmp_path, row("x/a.jpg", "1", key="k"), row("c.jpg", "3", key="k")))
    assert samples(tmp_path) == {"x/a": ["1"], "b": ["2"], "c": ["3"]}


def test_images_without_a_caption_are_counted_once_their_rows_are_one_sample(
    tmp_path: Path,
) -> None:
    rows = [row("a.jpg", ""), row("a.jpg", "x"), row("b.jpg", ""), row("b.jpg", "")]
    [note] = plan(tmp_path, write(tmp_path, *rows)).notes
    assert (note.what, note.count) == ("images without a caption, where others have one", 1)
    assert note.first.endswith("t.jsonl line 3")


# -- keys


def test_pictures_that_differ_in_their_ending_alone_are_told_apart_by_prefixes(
    tmp_path: Path,
) -> None:
    source = write(tmp_path, row("x/a.jpg", "1"), row("x/a.png", "2"), row("b.jpg", "3", key="k"))
    with pytest.raises(DuplicateKeyError, match=r"^key 'x/a' is given twice, .*--prefix-keys"):
        plan(tmp_path, source)
    plan(tmp_path, source, prefix_keys=True)
    assert samples(tmp_path) == {"x/a.jpg": ["1"], "x/a.png": ["2"], "b.jpg/k": ["3"]}


def test_pictures_of_one_path_in_a_table_get_no_advice_that_cannot_help(tmp_path: Path) -> None:
    source = write(tmp_path, row("a.jpg", "1"), row("a.png", "2"))
    with pytest.raises(DuplicateKeyError, match=r"\(its file[^)]*\) or another --key-column$"):
        plan(tmp_path, source)
    recorded = f"m={write(tmp_path, row('c.jpg', '3'), name='c.jsonl')}"
    plan(tmp_path, recorded)
    source = write(tmp_path, row("a.jpg", "1", key="k"), row("b.jpg", "2", key="k"))
    with pytest.raises(DuplicateKeyError, match=r"in a cache: rename or remove one of them$"):
        plan(tmp_path, f"n={source}", recorded)  # whose keys are not prefixed


def test_a_second_picture_in_a_recorded_folder_has_to_be_renamed(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "2.jpg").write_bytes(b"x")
    plan(tmp_path, folder)
    (folder / "2.png").write_bytes(b"y")
    remedy = (
        r"in a cache, and those of a source in it are made as before: rename or remove the second of "
        r"them, or build a new cache$"
    )
    with pytest.raises(DuplicateKeyError, match=remedy):
        plan(tmp_path, folder)


def test_prefixes_are_recorded_and_go_on_without_being_asked_again(tmp_path: Path) -> None:
    plan(tmp_path, write(tmp_path, row("a.jpg", "1")), prefix_keys=True)
    source = write(tmp_path, row("a.jpg", "1"), row("b.jpg", "2"))
    assert plan(tmp_path, source).num_existing == 1
    assert samples(tmp_path) == {"a.jpg": ["1"], "b.jpg": ["2"]}


def test_prefixes_are_refused_where_the_cache_has_keys_without(tmp_path: Path) -> None:
    source = write(tmp_path, row("a.jpg", "1"))
    plan(tmp_path, source)
    with pytest.raises(SettingError, match=r"recorded without .*; leave out --prefix-keys"):
        plan(tmp_path, source, prefix_keys=True)


def test_keys_that_prefixes_do_not_tell_apart_get_no_advice_to_prefix(tmp_path: Path) -> None:
    plan(tmp_path, write(tmp_path, row("b.jpg", "1", key="b/a.jpg/x")))
    other = write(tmp_path, row("a.jpg", "3", key="x"), name="other.jsonl")
    with pytest.raises(DuplicateKeyError, match=r"cache: give the new source another name"):
        plan(tmp_path, f"b={other}", prefix_keys=True)


# -- a corpus that changed


def test_what_changed_is_skipped_counted_and_leaves_no_trace(tmp_path: Path) -> None:
    old = [row(f"{n}.jpg", n, label="l", key=n) for n in "abcdef"]
    plan(tmp_path, write(tmp_path, *old))
    now = [
        *(row(f"{n}.jpg", f"{n} edited", label="l", key=n) for n in "abcd"),
        row("e.jpg", "e", label="other", key="e"),
        row("f.jpg", "f", label="l", key="f"),
        row(
            "g.jpg", "a edited", label="l", key="g"
        ),  # a new sample whose text a changed one has, too
        row("h.jpg", "a", label="l", key="h"),
    ]
    source = write(tmp_path, *now)
    with pytest.raises(SettingError, match=r"^5 samples of ") as error:
        plan(tmp_path, source)
    differences = (
        "captions of 4: 'a', 'b', 'c', ...; location or label of 1: 'e' had label 'l' and now has "
        "'other'"
    )
    assert f"({differences})" in str(error.value)
    found = plan(tmp_path, source, changed="skip")
    assert samples(tmp_path) == {**{n: [n] for n in "abcdef"}, "g": ["a edited"], "h": ["a"]}
    assert (found.num_samples, found.num_texts, found.num_kept) == (2, 1, 5)
    assert (
        f"kept       5 samples as recorded, though changed in the corpus: {differences}"
    ) in finding_lines(found, "")


def test_a_sample_with_another_label_and_other_captions_is_counted_once(tmp_path: Path) -> None:
    plan(tmp_path, write(tmp_path, row("a.jpg", "one", label="x")))
    source = write(tmp_path, row("a.jpg", "two", label="y"))
    assert plan(tmp_path, source, changed="skip").num_kept == 1


def test_another_word_for_changed_is_refused() -> None:
    with pytest.raises(SettingError, match=r"changed 'x' is not one of refuse, skip"):
        PlanConfig(sources=("a",), changed="x")  # pyright: ignore[reportArgumentType]
