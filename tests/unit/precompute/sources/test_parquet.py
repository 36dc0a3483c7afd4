"""Parquet files that hold the images: plain bytes, the struct of ``datasets``, img2dataset's shards."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit.privileges import open_folder, unprivileged

from siglip2_cache.errors import SettingError, SourceError
from siglip2_cache.images.image_bytes import ImageLocation, read_image_bytes
from siglip2_cache.images.parquet_cells import ReadError
from siglip2_cache.precompute.sources import Problem, Sample, TableColumns, open_source
from siglip2_cache.precompute.sources.base import Source
from siglip2_cache.precompute.sources.fields.caption_endings import CaptionChoice
from siglip2_cache.precompute.sources.parquet import ParquetSource
from siglip2_cache.precompute.sources.readers.parquet_footer import read_null_counts
from siglip2_cache.precompute.sources.table import TableSource


def write(path: Path, rows: Sequence[dict[str, Any]], **settings: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path, **settings)
    return path


def rows_of(numbers: Sequence[int], **more: Any) -> list[dict[str, Any]]:
    return [{"image": b"image %d" % i, "caption": f"text {i}", **more} for i in numbers]


def samples_of(location: Path, columns: TableColumns | None = None) -> list[Sample]:
    items = open_source(location, columns=columns).scan()
    return [item for item in items if isinstance(item, Sample)]


def problems_of(location: Path, columns: TableColumns | None = None) -> list[tuple[str, str]]:
    items = open_source(location, columns=columns).scan()
    root = f"{location if location.is_dir() else location.parent}/"
    return [(p.place.removeprefix(root), p.reason) for p in items if isinstance(p, Problem)]


def bytes_of(source: Source, sample: Sample) -> bytes:
    return read_image_bytes(
        ImageLocation(
            path=source.root / sample.path,
            member=sample.member,
            row_group=sample.row_group,
            index=sample.index,
            file_bytes=sample.num_bytes,
        )
    )


# --- what is a corpus of this kind --------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param("image", pa.binary(), id="image"),
        pytest.param("jpg", pa.large_binary(), id="jpg, large"),
        pytest.param("content", pa.binary(), id="content"),
        pytest.param("Image Bytes", pa.binary(), id="image bytes"),
        pytest.param("image", pa.struct({"bytes": pa.binary(), "path": pa.string()}), id="struct"),
        pytest.param("img", pa.struct({"bytes": pa.large_binary()}), id="struct without a path"),
    ],
)
def test_a_column_of_bytes_is_found_by_its_usual_names(
    tmp_path: Path, name: str, kind: pa.DataType
) -> None:
    cells = [{"bytes": b"%d" % i} if pa.types.is_struct(kind) else b"%d" % i for i in range(5)]
    table = pa.table({name: pa.array(cells, kind), "caption": [f"c{i}" for i in range(5)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    source = open_source(tmp_path / "a.parquet")
    samples = samples_of(tmp_path / "a.parquet")
    assert source.kind == "parquet"
    assert [(s.key, s.row_group, s.index) for s in samples] == [
        ("a/0", 0, 0), ("a/1", 0, 1), ("a/2", 1, 0), ("a/3", 1, 1), ("a/4", 2, 0),
    ]  # fmt: skip
    assert [bytes_of(source, sample) for sample in samples] == [b"%d" % i for i in range(5)]
    assert [s.captions[0].text for s in samples] == [f"c{i}" for i in range(5)]


PICTURES = [b"one", b"two", None, b"", b"five!"]
STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


@pytest.mark.parametrize(
    "column",
    [
        pytest.param(pa.array(PICTURES, pa.binary()).dictionary_encode(), id="dictionary"),
        pytest.param(
            pa.array([None if p is None else list(p) for p in PICTURES], pa.list_(pa.uint8())),
            id="numbers",
        ),
        pytest.param(
            pa.array(
                [[b"one"], [b"two"], None, [b""], [b"five!"]],
                pa.list_(pa.field("item", pa.large_binary())),
            ),
            id="lists",
        ),
        pytest.param(
            pa.array(
                [[{"bytes": p}] if p is not None else [] for p in PICTURES],
                pa.large_list(STRUCT),
            ),
            id="lists of structs",
        ),
    ],
)
def test_bytes_of_any_shape_are_read_where_a_row_has_one_picture(
    tmp_path: Path, column: pa.Array
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": column, "key": list("abcde")}), path, row_group_size=2)
    source, found = open_source(path), {sample.key: sample for sample in samples_of(path)}
    assert {k: bytes_of(source, found[k]) for k in "abe"} == {
        "a": b"one",
        "b": b"two",
        "e": b"five!",
    }
    assert "a.parquet, index 2" in [place for place, _ in problems_of(path)]
    if "d" in found:  # of numbers an empty list looks like null, where all others are
        with pytest.raises(ReadError, match=r"^empty: 0 bytes$"):
            bytes_of(source, found["d"])


def test_bytes_of_one_size_are_pictures_where_the_column_is_called_so(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": pa.array([b"abc", b"def"], pa.binary(3))}), path)
    assert [bytes_of(open_source(path), s) for s in samples_of(path)] == [b"abc", b"def"]


def test_a_row_with_several_pictures_is_rejected_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [[b"1"], [b"2", b"3"], [b"4"]]}), path)
    source, (first, second, third) = open_source(path), samples_of(path)
    assert [bytes_of(source, s) for s in (first, third)] == [b"1", b"4"]
    with pytest.raises(
        ReadError, match=r"^its row holds 2 images, expected one; write a row for each$"
    ):
        bytes_of(source, second)


def test_rows_of_one_name_and_one_image_share_an_id(tmp_path: Path) -> None:
    rows = [(b"1", "a.jpg"), (b"1", "a.jpg"), (b"2", "a.jpg"), (b"1", "b.jpg"), (b"1", None)]
    cells = [{"image": {"bytes": data, "path": path}} for data, path in rows]
    ids = [s.image_id for s in samples_of(write(tmp_path / "a.parquet", cells))]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 4
    assert ids[4] is None
    apart = [s.image_id for s in samples_of(write(tmp_path / "b.parquet", cells[2:]))]
    assert apart == [None] * 3  # no name stands twice: no image is read


def test_the_only_column_of_bytes_is_the_image_whatever_its_name(tmp_path: Path) -> None:
    row = {"blob": b"one", "caption": "x", "sha256": b"12", "embedding": b"3"}
    path = write(tmp_path / "a.parquet", [row])
    assert [bytes_of(open_source(path), s) for s in samples_of(path)] == [b"one"]
    write(path, [{**row, "other": b"two"}])
    with pytest.raises(SourceError, match=r"no column of images .*name it with --image-column"):
        samples_of(path)


@pytest.mark.parametrize("told", ["data.img", "data.img.bytes", "odd.name"])
def test_a_column_of_bytes_may_be_named_with_dots(tmp_path: Path, told: str) -> None:
    row = {"data": {"img": {"bytes": b"nested"}, "n": 1}, "odd.name": b"odd", "text": "x"}
    path = write(tmp_path / "a.parquet", [row])
    columns = TableColumns(image=told)
    (sample,) = samples_of(path, columns)
    assert bytes_of(open_source(path, columns=columns), sample) == (
        b"odd" if told == "odd.name" else b"nested"
    )
    assert open_source(path, columns=columns).settings == {"image": told}


def test_a_column_that_datasets_calls_an_image_is_found_whatever_its_name(tmp_path: Path) -> None:
    features = {"pixels": {"_type": "Image"}, "mask": {"_type": "Image"}, "y": {"_type": "Value"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cells = pa.array([{"bytes": b"x"}], kind)
    table = pa.table({"pixels": cells, "mask": cells}).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "a.parquet")
    assert [s.member for s in samples_of(tmp_path / "a.parquet")] == ["pixels.bytes"]


def test_a_column_of_paths_stays_a_table(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [{"image": "a.jpg", "caption": "x", "extra": b"1"}])
    assert isinstance(open_source(path), TableSource)
    write(tmp_path / "b.parquet", [{"image": "a.jpg", "caption": "x"}])
    with pytest.raises(SourceError, match="names 2 tables; give each as a separate source"):
        open_source(tmp_path / "*.parquet")


def test_a_folder_is_read_file_by_file_top_first_and_hidden_names_are_passed_by(
    tmp_path: Path,
) -> None:
    for i, name in enumerate(["data/b-1.parquet", "data/b-0.parquet", "z.parquet", ".x/h.parquet"]):
        write(tmp_path / name, rows_of([i]))
    (tmp_path / "README.md").write_text("a hub repository")
    source = open_source(tmp_path)
    assert [piece.name for piece in source.parts()] == [
        "z.parquet", "data/b-0.parquet", "data/b-1.parquet",
    ]  # fmt: skip
    assert [s.key for s in samples_of(tmp_path)] == ["z/0", "data/b-0/0", "data/b-1/0"]
    assert [bytes_of(source, s) for s in samples_of(tmp_path)] == [
        b"image 2",
        b"image 1",
        b"image 0",
    ]


def test_a_pattern_names_files_and_a_missing_one_is_missed(tmp_path: Path) -> None:
    for i in (0, 2):
        write(tmp_path / f"train-{i}.parquet", rows_of([i]))
    assert [s.key for s in samples_of(tmp_path / "train-*.parquet")] == ["train-0/0", "train-2/0"]
    braces = tmp_path / "train-{0..2}.parquet"
    assert [s.key for s in samples_of(braces)] == ["train-0/0", "train-2/0"]
    ((place, reason),) = problems_of(braces)
    assert place == "train-1.parquet"
    assert "cannot be read as Parquet" in reason


def test_images_beside_parquet_files_are_counted_not_dropped_in_silence(tmp_path: Path) -> None:
    write(tmp_path / "data" / "a.parquet", rows_of([0]))
    for name in ("assets/logo.png", "b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    ((_, reason),) = problems_of(tmp_path)
    assert "2 image files beside the Parquet files are not read" in reason


def put_cache(folder: Path) -> None:
    write(folder / "catalog" / "samples-00000.parquet", [{"key": "a", "image": b"not a corpus"}])
    (folder / "cache.json").write_text("{}")
    (folder / "preview.jpg").write_bytes(b"x")


def test_a_cache_inside_the_corpus_is_no_part_of_it(tmp_path: Path) -> None:
    for i, name in enumerate(["z.parquet", "more/a.parquet"]):
        write(tmp_path / name, rows_of([i]))
    before = open_source(tmp_path).fingerprint()
    put_cache(tmp_path / "more" / "cache")
    assert open_source(tmp_path).fingerprint() == before
    assert [s.key for s in samples_of(tmp_path)] == ["z/0", "more/a/0"]
    assert problems_of(tmp_path) == []


def test_images_with_a_cache_beside_them_are_a_folder_of_images(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"x")
    put_cache(tmp_path / "cache")
    assert open_source(tmp_path).kind == "folder"


def test_a_folder_that_merely_holds_a_cache_json_is_read(tmp_path: Path) -> None:
    write(tmp_path / "data" / "a.parquet", rows_of([0]))
    (tmp_path / "data" / "cache.json").write_text("{}")
    assert [s.key for s in samples_of(tmp_path)] == ["data/a/0"]


def test_a_folder_of_images_with_a_parquet_of_other_things_stays_one(tmp_path: Path) -> None:
    write(tmp_path / "meta.parquet", [{"url": "x", "hash": "y"}])
    (tmp_path / "a.jpg").touch()
    assert open_source(tmp_path).kind == "folder"
    with pytest.raises(SettingError, match=r"is a folder without any; only columns of captions"):
        open_source(tmp_path, columns=TableColumns(key="url"))


def test_a_folder_of_which_no_parquet_can_be_read_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(SourceError, match=r"a\.parquet cannot be read as Parquet"):
        open_source(tmp_path)


def test_the_columns_that_were_asked_for_must_be_there(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", rows_of([0]))
    with pytest.raises(SourceError, match="has no column 'kee', it has 'image', 'caption'"):
        samples_of(path, TableColumns(key="kee"))
    with pytest.raises(SourceError, match=r"no column 'imag[e]?s?'.*|'caption' holds"):
        samples_of(path, TableColumns(image="images"))


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=r"a\.parquet has no rows"):
        samples_of(tmp_path / "a.parquet")


# --- fields -------------------------------------------------------------------------------------


def test_keys_captions_languages_and_labels_are_those_of_a_table(tmp_path: Path) -> None:
    rows = [
        {"image": b"1", "id": 7, "caption": [{"text": "ein Hund", "lang": "de"}], "label": "dog"},
        {"image": b"2", "id": 8, "caption": [{"text": "a cat", "lang": "en"}], "label": "cat"},
    ]
    samples = samples_of(write(tmp_path / "a.parquet", rows))
    assert [(s.key, s.label) for s in samples] == [("7", "dog"), ("8", "cat")]
    assert [(c.text, c.lang) for s in samples for c in s.captions] == [
        ("ein Hund", "de"), ("a cat", "en"),
    ]  # fmt: skip


def test_an_object_of_lists_is_a_list_of_captions(tmp_path: Path) -> None:
    captions = {"text": ["ein Hund", "a dog"], "lang": ["de", "en"]}
    path = write(tmp_path / "a.parquet", [{"image": b"1", "captions": captions}])
    assert [(c.text, c.lang) for c in samples_of(path)[0].captions] == [
        ("ein Hund", "de"), ("a dog", "en"),
    ]  # fmt: skip


def test_a_class_is_called_as_datasets_says(tmp_path: Path) -> None:
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.Table.from_pylist([{"image": b"x", "label": n} for n in (1, 0, -1, None, 5)])
    path = tmp_path / "a.parquet"
    pq.write_table(table.replace_schema_metadata(metadata), path)
    assert [s.label for s in samples_of(path)] == ["dog", "cat", None, None, None]
    assert problems_of(path) == [
        ("a.parquet, index 4", "the label is 5, but there are 2 classes"),
    ]


# --- rows without bytes -------------------------------------------------------------------------


@pytest.mark.parametrize("has_statistics", [True, False])
def test_a_row_without_bytes_is_the_file_that_it_names(
    tmp_path: Path, has_statistics: bool
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "plain.picture").write_bytes(b"a plain file")
    cells: list[Any] = [
        {"bytes": b"inside", "path": "other.jpg"},
        {"bytes": None, "path": "plain.picture"},
        {"bytes": None, "path": None},
        None,
        {"bytes": None, "path": "https://example.org/a.jpg"},
        {"bytes": None, "path": str(tmp_path / "data" / "plain.picture")},
    ]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    path = tmp_path / "data" / "a.parquet"
    table = pa.table({"image": pa.array(cells, kind)})
    pq.write_table(table, path, row_group_size=3, write_statistics=has_statistics)
    samples = samples_of(tmp_path)
    assert [(s.key, s.path, s.row_group, s.num_bytes) for s in samples[1:]] == [
        ("data/a/1", "data/plain.picture", None, 12),
        ("data/a/5", "data/plain.picture", None, 12),
    ]
    assert (samples[0].row_group, samples[0].member) == (0, "image.bytes")
    assert problems_of(tmp_path) == [
        ("data/a.parquet, index 2", "the image has no bytes and no path"),
        ("data/a.parquet, index 3", "the image has no bytes and no path"),
        (
            "data/a.parquet, index 4",
            "the image is a URL, expected a file (img2dataset downloads such): 'https://example.org/a.jpg'",
        ),
    ]


def test_planning_reads_no_image(tmp_path: Path) -> None:
    rows = [{"image": os.urandom(1 << 16), "caption": f"{i}"} for i in range(64)]
    path = write(tmp_path / "a.parquet", rows, row_group_size=16, compression="none")
    data = bytearray(path.read_bytes())
    for row in rows:  # every image overwritten: reading the column would fail
        at = data.find(row["image"])
        assert at > 0
        data[at : at + (1 << 16)] = bytes(1 << 16)
        data[max(4, at - 32) : at] = b"\xff" * (at - max(4, at - 32))
    path.write_bytes(data)
    assert len(samples_of(path)) == 64
    assert problems_of(path) == []


# --- damage, other schemas ----------------------------------------------------------------------


def test_files_that_cannot_be_read_are_named_and_the_others_built(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", rows_of([0, 1]))
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    write(tmp_path / "c.parquet", [{"url": "x", "caption": "y"}])
    write(tmp_path / "d.parquet", rows_of([3]))
    assert [s.key for s in samples_of(tmp_path)] == ["a/0", "a/1", "d/0"]
    (truncated, other) = problems_of(tmp_path)
    assert truncated[0] == "b.parquet"
    assert truncated[1].startswith("cannot be read as Parquet (")
    assert other[0] == "c.parquet"
    assert other[1].startswith("has no column of images (binary, or a struct with 'bytes')")
    with pytest.raises(SourceError, match=r"b\.parquet cannot be read as Parquet"):
        samples_of(tmp_path / "b.parquet")


def test_a_file_that_may_not_be_read_is_a_problem_until_it_may() -> None:
    with open_folder() as root:
        for i, name in enumerate(["a.parquet", "b.parquet"]):
            write(root / name, rows_of([i])).chmod(0o644)
        (root / "a.parquet").chmod(0)
        with unprivileged(root):
            before = open_source(root).fingerprint()
            ((place, reason),) = problems_of(root)
            assert place == "a.parquet"
            assert "Permission denied" in reason
            assert [sample.key for sample in samples_of(root)] == ["b/0"]
        (root / "a.parquet").chmod(0o644)
        with unprivileged(root):
            assert open_source(root).fingerprint() != before
            assert [sample.key for sample in samples_of(root)] == ["a/0", "b/0"]


def test_a_damaged_row_group_costs_its_own_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [{"image": b"x", "caption": f"a caption of some length {i}"} for i in range(300)]
    write(path, rows, row_group_size=100, compression="gzip", use_dictionary=False)
    data = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(1).column(1).data_page_offset
    data[start + 60 : start + 200] = b"\xff" * 140
    path.write_bytes(data)
    assert [int(s.key[2:]) for s in samples_of(path)] == [*range(100), *range(200, 300)]
    ((_, reason),) = problems_of(path)
    assert reason.startswith("rows 100 to 199 (row group 1) cannot be read (")


# --- img2dataset --------------------------------------------------------------------------------


def shard(path: Path, first: int, statuses: Sequence[tuple[str, str | None]]) -> Path:
    """Write what img2dataset's ParquetSampleWriter writes for these links."""
    rows = [
        {
            "caption": f"caption {i}",
            "url": f"https://example.org/{i}.jpg",
            "key": f"{i:09d}",
            "status": status,
            "error_message": message,
            "width": 64,
            "sha256": f"{i:064x}" if status == "success" else None,
            "jpg": b"%d" % i if status == "success" else None,
            "txt": f"caption {i}" if status == "success" else None,
        }
        for i, (status, message) in enumerate(statuses, first)
    ]
    path.with_name(f"{path.stem}_stats.json").write_text("{}")
    return write(path, rows, row_group_size=100)


def test_rows_that_img2dataset_could_not_download_are_counted_by_reason(tmp_path: Path) -> None:
    gone = ("failed_to_download", "HTTP Error 404: Not Found")
    odd = ("failed_to_resize", "Image decoding\nerror")
    shard(tmp_path / "00000.parquet", 0, [("success", None), gone, gone, odd])
    shard(tmp_path / "00001.parquet", 10, [("success", None)])
    samples = samples_of(tmp_path)
    assert [(s.key, s.path, s.index) for s in samples] == [
        ("000000000", "00000.parquet", 0), ("000000010", "00001.parquet", 0),
    ]  # fmt: skip
    assert [[c.text for c in s.captions] for s in samples] == [["caption 0"], ["caption 10"]]
    assert [s.source_sha256 for s in samples] == [bytes(32), bytes(31) + b"\x0a"]
    assert problems_of(tmp_path) == [
        ("00000.parquet", "2 of 4 rows were not downloaded: HTTP Error 404: Not Found"),
        ("00000.parquet", "1 of 4 rows were not decoded or resized: Image decoding error"),
    ]


def test_a_shard_that_img2dataset_has_not_finished_is_named_and_passed_by(tmp_path: Path) -> None:
    for i in range(3):
        shard(tmp_path / f"0000{i}.parquet", 10 * i, [("success", None)])
    whole = open_source(tmp_path).fingerprint()
    (tmp_path / "00001_stats.json").unlink()
    (tmp_path / "00001.parquet").write_bytes(b"PAR1 and a half")
    assert [s.key for s in samples_of(tmp_path)] == ["000000000", "000000020"]
    ((place, reason),) = problems_of(tmp_path)
    assert place == "00001.parquet"
    assert reason.startswith(
        "img2dataset has not finished it, skipped (there is no 00001_stats.json; "
    )
    unfinished = open_source(tmp_path).fingerprint()
    (tmp_path / "00001_stats.json").touch()
    assert len({whole, unfinished, open_source(tmp_path).fingerprint()}) == 3


# --- fingerprints, hypothesis -------------------------------------------------------------------


def test_a_piece_is_known_by_its_size_and_time(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.parquet"):
        write(tmp_path / name, rows_of([0]))
        os.utime(tmp_path / name, ns=(1, 1))
    first = [piece.fingerprint for piece in open_source(tmp_path).parts()]
    whole = open_source(tmp_path).fingerprint()
    os.utime(tmp_path / "b.parquet", ns=(1, 2))
    second = [piece.fingerprint for piece in open_source(tmp_path).parts()]
    assert first[0] == second[0]
    assert first[1] != second[1]
    assert open_source(tmp_path).fingerprint() != whole
    assert (
        ParquetSource(tmp_path, CaptionChoice(columns=TableColumns(key="caption"))).fingerprint()
        != whole
    )


CELL = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.datetimes()
    | st.decimals(allow_nan=False, allow_infinity=False, places=2, max_value=1000, min_value=0),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["bytes", "path", "text", "lang", "de", ""]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
NAMES = """image image.bytes jpg content path key id caption text caption_de lang label txt status
error_message sha256"""
NAME = st.sampled_from(["", *NAMES.split()])


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    columns=st.dictionaries(NAME, st.lists(CELL, min_size=3, max_size=3), min_size=1, max_size=6),
    told=st.none() | NAME | st.just("image.path"),
    is_odd=st.booleans(),
)
def test_any_schema_and_any_cells_give_samples_problems_or_a_source_error(
    tmp_path: Path, columns: dict[str, list[Any]], told: str | None, is_odd: bool
) -> None:
    arrays: dict[str, pa.Array] = {}
    for name, cells in columns.items():
        try:
            arrays[name] = pa.array(cells)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            arrays[name] = pa.array([b"\xff", None, b"x"]).view(
                pa.string() if is_odd else pa.binary()
            )
    try:
        pq.write_table(pa.table(arrays), tmp_path / "a.parquet", row_group_size=2)
    except pa.ArrowException:
        return  # such as a struct without fields
    try:
        source = open_source(
            tmp_path / "a.parquet", columns=TableColumns(image=told) if told is not None else None
        )
        found = list(source.scan())
    except (SourceError, SettingError) as error:
        assert "\n" not in str(error)  # noqa: PT017 - which error may come is left open
        return
    rows = {item.place for item in found}
    assert len(rows) == 3 or any("rows were" in i.reason for i in found if isinstance(i, Problem))


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(at=st.integers(0, 10_000), value=st.integers(0, 255))
def test_any_flipped_byte_gives_samples_problems_or_a_source_error(
    tmp_path: Path, at: int, value: int
) -> None:
    path = write(tmp_path / "b.parquet", rows_of(range(6), label="x"), row_group_size=3)
    data = bytearray(path.read_bytes())
    data[at % len(data)] = value
    path.write_bytes(data)
    try:
        list(open_source(path).scan())
    except SourceError as error:
        assert "\n" not in str(error)  # noqa: PT017


ASK_PYARROW = """
import sys
import pyarrow.parquet as pq
metadata = pq.ParquetFile(sys.argv[1]).metadata
[metadata.row_group(g).column(0).statistics for g in range(metadata.num_row_groups)]
"""


def test_a_footer_that_contradicts_itself_costs_its_rows_and_not_the_process(
    tmp_path: Path,
) -> None:
    rows = rows_of(range(6), label="x")
    path = write(tmp_path / "b.parquet", rows, row_group_size=3)
    whole, ends_pyarrow = path.read_bytes(), False
    for at in range(len(whole) - 1):
        if whole[at : at + 2] != b"\x15\x0c":  # in a footer: the type of a column is BYTE_ARRAY
            continue
        path.write_bytes(whole[: at + 1] + b"\x00" + whole[at + 2 :])  # now it is BOOLEAN
        if not ends_pyarrow:
            command = [sys.executable, "-c", ASK_PYARROW, str(path)]
            ends_pyarrow = subprocess.run(command, stderr=subprocess.DEVNULL).returncode < 0
        with contextlib.suppress(SourceError):
            found = list(open_source(path).scan())
            assert len(found) == 6 or any(isinstance(item, Problem) for item in found)
    assert ends_pyarrow, "no byte of this file is one that ends pyarrow"
    path.write_bytes(whole)
    assert read_null_counts(str(path), "image", 2) == [0, 0]


@pytest.mark.parametrize(
    "options",
    [{}, {"write_statistics": False}, {"version": "1.0"}, {"data_page_version": "2.0"}],
    ids=str,
)
def test_null_counts_are_those_that_pyarrow_reads(tmp_path: Path, options: dict[str, Any]) -> None:
    images = [{"bytes": bytes(i) if i % 3 else None, "path": None} for i in range(100)]
    lists = [[b"a", None]] * 50 + [[]] * 49 + [None]
    table = pa.table({"image": images, "list": lists, "n": range(100), "null": [None] * 100})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=7, **options)
    metadata = pq.ParquetFile(tmp_path / "a.parquet").metadata
    groups = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
    for i in range(metadata.num_columns):
        statistics = [group.column(i).statistics for group in groups]
        expected = [
            s.null_count if s is not None and s.has_null_count else None for s in statistics
        ]
        name = metadata.schema.column(i).path
        assert read_null_counts(str(tmp_path / "a.parquet"), name, len(groups)) == expected
    assert read_null_counts(str(tmp_path / "a.parquet"), "other", len(groups)) == [None] * len(
        groups
    )
