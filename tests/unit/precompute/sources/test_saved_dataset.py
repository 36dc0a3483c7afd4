"""Folders that the library ``datasets`` saved, read without it."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from siglip2_cache.errors import SourceError
from siglip2_cache.images.image_bytes import ImageLocation, read_image_bytes
from siglip2_cache.precompute.sources import Problem, Sample, TableColumns, open_source, packed_rows
from siglip2_cache.precompute.sources import saved_dataset as arrow
from siglip2_cache.precompute.sources.base import Source
from siglip2_cache.precompute.sources.readers.arrow_file import ArrowFile

datasets.disable_progress_bars()

FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "caption": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["cat", "dog"]),
    }
)


def dataset_of(numbers: Sequence[int]) -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {
            "image": [{"bytes": b"image %d" % i, "path": None} for i in numbers],
            "caption": [f"text {i}" for i in numbers],
            "label": [i % 2 for i in numbers],
        },
        features=FEATURES,
    )


def write_arrow(
    folder: Path, table: pa.Table, options: Any = None, *, is_file: bool = False
) -> Path:
    """Write what save_to_disk would, but with pyarrow alone."""
    folder.mkdir(parents=True, exist_ok=True)
    opener = pa.ipc.new_file if is_file else pa.ipc.new_stream
    with opener(str(folder / "data.arrow"), table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=3)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    return folder


def samples_of(location: Path, columns: TableColumns | None = None) -> list[Sample]:
    items = open_source(location, columns=columns).scan()
    return [item for item in items if isinstance(item, Sample)]


def problems_of(location: Path) -> list[tuple[str, str]]:
    items = open_source(location).scan()
    return [
        (p.place.removeprefix(f"{location}/"), p.reason) for p in items if isinstance(p, Problem)
    ]


def bytes_of(source: Source, sample: Sample) -> bytes:
    return read_image_bytes(
        ImageLocation(
            path=source.root / sample.path,
            offset=sample.offset,
            length=sample.length,
            file_bytes=sample.num_bytes,
        )
    )


def test_a_saved_dataset_is_read_in_place_file_by_file(tmp_path: Path) -> None:
    dataset_of(range(11)).save_to_disk(tmp_path / "d", num_shards=3)
    source = open_source(tmp_path / "d")
    samples = samples_of(tmp_path / "d")
    assert source.kind == "datasets"
    assert [piece.name for piece in source.parts()] == [
        f"data-0000{i}-of-00003.arrow" for i in range(3)
    ]
    assert [s.key for s in samples] == [str(i) for i in range(11)]
    assert [bytes_of(source, s) for s in samples] == [b"image %d" % i for i in range(11)]
    assert [s.captions[0].text for s in samples] == [f"text {i}" for i in range(11)]
    assert [s.label for s in samples] == ["cat", "dog"] * 5 + ["cat"]
    assert {(s.member, s.row_group, s.index) for s in samples} == {(None, None, None)}


def test_the_splits_come_in_their_order_and_start_their_keys(tmp_path: Path) -> None:
    splits = {"train": dataset_of([5, 6]), "eval": dataset_of([7])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "d")
    source = open_source(tmp_path / "d")
    samples = samples_of(tmp_path / "d")
    assert [s.key for s in samples] == ["train/0", "train/1", "eval/0"]
    assert [bytes_of(source, s) for s in samples] == [b"image 5", b"image 6", b"image 7"]


def test_a_selection_a_shuffle_and_a_filter_are_saved_as_the_rows_that_they_are(
    tmp_path: Path,
) -> None:
    whole = dataset_of(range(10))
    odd = whole.select([9, 2, 4, 4, 7]).filter(
        lambda caption: caption != "text 7", input_columns=["caption"]
    )
    odd.save_to_disk(tmp_path / "d")
    source = open_source(tmp_path / "d")
    assert [bytes_of(source, s) for s in samples_of(tmp_path / "d")] == [
        b"image 9", b"image 2", b"image 4", b"image 4",
    ]  # fmt: skip


def test_a_selection_saved_by_an_old_datasets_is_refused(tmp_path: Path) -> None:
    dataset_of(range(3)).save_to_disk(tmp_path / "d")
    state = json.loads((tmp_path / "d" / "state.json").read_text())
    state["_indices_data_files"] = [{"filename": "indices.arrow"}]
    (tmp_path / "d" / "state.json").write_text(json.dumps(state))
    with pytest.raises(SourceError, match=r"is a selection .* call flatten_indices\(\) and save"):
        samples_of(tmp_path / "d")


def test_files_that_the_state_does_not_name_are_not_read(tmp_path: Path) -> None:
    dataset_of(range(2)).save_to_disk(tmp_path / "d")
    stray = (tmp_path / "d" / "data-00000-of-00001.arrow").read_bytes()
    (tmp_path / "d" / "cache-0123.arrow").write_bytes(stray)
    assert len(samples_of(tmp_path / "d")) == 2


def test_an_image_that_was_left_outside_is_a_plain_file(tmp_path: Path) -> None:
    (tmp_path / "plain.jpg").write_bytes(b"a plain file")
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cells: list[Any] = [
        {"bytes": b"inside", "path": "x.jpg"},
        {"bytes": None, "path": str(tmp_path / "plain.jpg")},
        {"bytes": None, "path": "../plain.jpg"},
        None,
        {"bytes": None, "path": "zip://a.jpg::b.zip"},
    ]
    folder = write_arrow(tmp_path / "d", pa.table({"image": pa.array(cells, kind)}))
    source = open_source(folder)
    samples = samples_of(folder)
    assert [bytes_of(source, s) for s in samples] == [b"inside", b"a plain file", b"a plain file"]
    assert [s.key for s in samples] == ["0", "1", "2"]
    assert [s.offset for s in samples][1:] == [None, None]
    assert problems_of(folder) == [
        ("data.arrow, index 3", "the image has no bytes and no path"),
        (
            "data.arrow, index 4",
            "the image is a URL, expected a file (img2dataset downloads such): 'zip://a.jpg::b.zip'",
        ),
    ]


@pytest.mark.parametrize("kind", ["binary", "large_binary", "binary_view"])
@pytest.mark.parametrize("is_file", [False, True])
def test_every_kind_of_binary_and_of_arrow_file_is_read(
    tmp_path: Path, kind: str, is_file: bool
) -> None:
    images = [b"%d" % i * i for i in (1, 5, 30, 0, 12, 13, 200)]
    column = pa.array([*images, None], getattr(pa, kind)())
    folder = write_arrow(tmp_path / "d", pa.table({"jpg": column}), is_file=is_file)
    source = open_source(folder)
    found = samples_of(folder)
    assert [s.length for s in found] == [len(image) for image in images]
    data = (folder / "data.arrow").read_bytes()
    assert [data[s.offset :][: s.length] for s in found] == images
    assert bytes_of(source, found[-1]) == images[-1]
    assert [s.key for s in found] == [str(i) for i in range(7)]


IMAGES = [b"one", b"two", None, b"five!", b"one"]


@pytest.mark.parametrize(
    "column",
    [
        pytest.param(pa.array(IMAGES, pa.binary()).dictionary_encode(), id="dictionary"),
        pytest.param(
            pa.array([i and list(i) for i in IMAGES], pa.list_(pa.uint8())), id="list of uint8"
        ),
        pytest.param(
            pa.array([[i] if i else [] for i in IMAGES], pa.large_list(pa.binary())), id="lists"
        ),
        pytest.param(
            pa.array(
                [[{"bytes": i, "path": "x"}] if i else None for i in IMAGES],
                pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()})),
            ),
            id="lists of structs",
        ),
        pytest.param(pa.array([i and {"bytes": i} for i in IMAGES]), id="struct of bytes"),
    ],
)
@pytest.mark.parametrize("is_file", [False, True])
def test_images_of_any_shape_are_read_in_place(
    tmp_path: Path, column: pa.Array, is_file: bool
) -> None:
    folder = write_arrow(tmp_path / "d", pa.table({"image": column}), is_file=is_file)
    source = open_source(folder)
    found = {sample.key: bytes_of(source, sample) for sample in samples_of(folder)}
    assert found == {"0": b"one", "1": b"two", "3": b"five!", "4": b"one"}
    assert problems_of(folder) == [("data.arrow, index 2", "the image has no bytes and no path")]


def test_images_of_one_size_are_read_in_place(tmp_path: Path) -> None:
    column = pa.array([b"one", None, b"two", b"six"], pa.binary(3))
    folder = write_arrow(tmp_path / "d", pa.table({"image": column}))
    assert [bytes_of(open_source(folder), s) for s in samples_of(folder)] == [
        b"one",
        b"two",
        b"six",
    ]


def test_a_row_of_several_images_is_named_with_their_number(tmp_path: Path) -> None:
    folder = write_arrow(tmp_path / "d", pa.table({"image": [[b"1"], [b"2", b"3"]]}))
    assert [bytes_of(open_source(folder), s) for s in samples_of(folder)] == [b"1"]
    reason = "the row holds 2 images, expected one; write a row for each"
    assert problems_of(folder) == [("data.arrow, index 1", reason)]


@pytest.mark.parametrize("column", [["../a.jpg", None], [{"path": "../a.jpg"}, {"path": None}]])
def test_a_column_of_paths_will_do(tmp_path: Path, column: list[Any]) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a plain file")
    folder = write_arrow(tmp_path / "d", pa.table({"image": column, "key": ["x", "y"]}))
    [sample] = samples_of(folder)
    assert (sample.key, bytes_of(open_source(folder), sample)) == ("x", b"a plain file")
    assert problems_of(folder) == [("data.arrow, index 1", "the image has no bytes and no path")]


def test_a_compressed_file_is_refused(tmp_path: Path) -> None:
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    folder = write_arrow(tmp_path / "d", pa.table({"image": [b"x" * 5000] * 4}), options)
    with pytest.raises(SourceError, match=r"data\.arrow is compressed, .* write it without"):
        samples_of(folder)


def test_a_file_cut_short_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    dataset_of(range(4)).save_to_disk(tmp_path / "d", num_shards=2)
    path = tmp_path / "d" / "data-00000-of-00002.arrow"
    data = path.read_bytes()
    for length in (0, 5, 100, len(data) // 2, len(data) - 8, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(
            SourceError, match=r"data-00000-of-00002\.arrow (is cut|cannot be read)"
        ):
            samples_of(tmp_path / "d")
    path.unlink()
    with pytest.raises(SourceError, match=r"data-00000-of-00002\.arrow cannot be read as Arrow"):
        samples_of(tmp_path / "d")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("state.json", "{", r"state\.json is not JSON"),
        ("state.json", '{"_data_files": [{"filename": "../x.arrow"}]}', "does not list its files"),
        ("dataset_dict.json", "[]", r"dataset_dict\.json holds no object"),
        ("dataset_dict.json", '{"splits": ["../x"]}', "names no splits"),
        ("dataset_dict.json", '{"splits": ["test"]}', r"test/state\.json cannot be read"),
    ],
)
def test_a_folder_that_does_not_say_what_it_holds_is_refused(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    dataset_of(range(2)).save_to_disk(tmp_path / "d")
    (tmp_path / "d" / name).write_text(text)
    with pytest.raises(SourceError, match=message):
        samples_of(tmp_path / "d")


def test_columns_may_be_named_and_captions_are_those_of_a_table(tmp_path: Path) -> None:
    rows = [{"pic": {"bytes": b"1"}, "words": {"de": "Hund", "en": ["dog", "a dog"]}, "name": "k"}]
    folder = write_arrow(tmp_path / "d", pa.Table.from_pylist(rows))
    columns = TableColumns(image="pic", captions=("words",), key="name")
    (sample,) = samples_of(folder, columns)
    assert sample.key == "k"
    assert [(c.text, c.lang) for c in sample.captions] == [
        ("Hund", "de"), ("dog", "en"), ("a dog", "en"),
    ]  # fmt: skip
    with pytest.raises(SourceError, match=r"data\.arrow has no column of images"):
        samples_of(write_arrow(tmp_path / "e", pa.table({"caption": ["x"]})))


def test_a_piece_is_known_by_the_files_up_to_it(tmp_path: Path) -> None:
    dataset_of(range(6)).save_to_disk(tmp_path / "d", num_shards=3)
    first = [piece.fingerprint for piece in open_source(tmp_path / "d").parts()]
    path = tmp_path / "d" / "data-00001-of-00003.arrow"
    path.write_bytes(path.read_bytes() + b"\xff\xff\xff\xff\0\0\0\0")
    second = [piece.fingerprint for piece in open_source(tmp_path / "d").parts()]
    assert [a == b for a, b in zip(first, second, strict=True)] == [True, False, False]


def test_a_file_is_opened_twice_and_checked_once_however_many_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_files = 12
    dataset_of(range(2 * num_files)).save_to_disk(tmp_path / "d", num_shards=num_files)
    opened: list[Path] = []
    checked: list[int] = []
    looked_at: list[str] = []
    is_at, check = arrow.size_and_time, ArrowFile._check  # pyright: ignore[reportPrivateUsage]

    def open_one(path: Path) -> ArrowFile:
        opened.append(path)
        return ArrowFile(path)

    def check_one(self: ArrowFile, batch: Any) -> None:
        checked.append(len(batch))
        check(self, batch)

    def look_at(path: str) -> tuple[int | None, int | None]:
        looked_at.append(path)
        return is_at(path)

    monkeypatch.setattr(arrow, "ArrowFile", open_one)
    monkeypatch.setattr(ArrowFile, "_check", check_one)
    monkeypatch.setattr(arrow, "size_and_time", look_at)
    monkeypatch.setattr(packed_rows, "size_and_time", look_at)
    assert [s.key for s in samples_of(tmp_path / "d")] == [str(i) for i in range(2 * num_files)]
    assert checked == [2] * num_files
    assert max(opened.count(path) for path in opened) == 2  # to count its rows, to read them
    assert max(looked_at.count(path) for path in looked_at) == 2  # fingerprint, and its samples


def test_a_file_has_the_same_numbers_whether_those_before_were_scanned_or_not(
    tmp_path: Path,
) -> None:
    splits = {"train": dataset_of(range(7)), "eval": dataset_of(range(5))}
    shards = {"train": 3, "eval": 2}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "d", num_shards=shards)
    whole = samples_of(tmp_path / "d")
    pieces = list(open_source(tmp_path / "d").parts())
    found = [item for piece in reversed(pieces) for item in reversed(list(piece.scan()))]
    assert found[::-1] == whole


def test_datasets_is_not_imported(tmp_path: Path) -> None:
    dataset_of(range(2)).save_to_disk(tmp_path / "d")
    code = (
        "import sys; from siglip2_cache.precompute.sources import open_source; "
        "print(len(list(open_source(sys.argv[1]).scan())), 'datasets' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "d"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "2 False\n"


@settings(max_examples=75, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10_000), value=st.integers(0, 255))
def test_any_flipped_byte_gives_samples_problems_or_a_source_error(
    tmp_path: Path, at: int, value: int
) -> None:
    rows = [{"image": {"bytes": b"x" * i, "path": "p"}, "caption": ["a", "b"]} for i in range(5)]
    folder = write_arrow(tmp_path / "d", pa.Table.from_pylist(rows))
    data = bytearray((folder / "data.arrow").read_bytes())
    data[at % len(data)] = value
    (folder / "data.arrow").write_bytes(data)
    try:
        for item in open_source(folder).scan():
            if isinstance(item, Sample) and item.offset is not None and item.length is not None:
                assert 0 <= item.offset <= item.offset + item.length <= len(data)
    except SourceError as error:
        assert "\n" not in str(error)  # noqa: PT017 - which error may come is left open
