"""open_cache and reading targets, on a cache that our writer never touched."""

import json
import multiprocessing
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
import zarr
from kit.patience import PATIENCE_S

import siglip2_cache
from siglip2_cache import Cache, open_cache
from siglip2_cache.errors import (
    DamagedCacheError,
    DiskFullError,
    FormatVersionError,
    NotACacheError,
    RowUnavailableError,
    SettingError,
)
from siglip2_cache.store.convert import convert_cache
from siglip2_cache.store.describe import describe, describe_lines
from siglip2_cache.store.format.catalog import Table
from siglip2_cache.store.format.manifest import Span
from siglip2_cache.store.format.records import decode_record, encode_record
from siglip2_cache.store.format.shard import ArrayLayout
from siglip2_cache.store.format.views import draw_view
from siglip2_cache.store.io.download_cache import LocalCopies
from siglip2_cache.store.io.local import LocalStorage
from siglip2_cache.store.io.location import parse_location

if TYPE_CHECKING:
    from tests.foreign_cache import ForeignCache

WriteForeignCache = Callable[..., "ForeignCache"]

# What the foreign cache holds: rows 0-14, a gap of 15-17, rows 18-21; 8, 9 and 20 rejected.
IMAGES = [0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14, 18, 19, 21]
TEXTS = [0, 1, 2, 4, 5, 6, 7, 8, 9, 12, 13, 14]


@pytest.fixture(scope="module")
def compressed(
    write_foreign_cache: WriteForeignCache, tmp_path_factory: pytest.TempPathFactory
) -> "ForeignCache":
    """The same cache with zstd inside its shards: no memory map can read it."""
    return write_foreign_cache(tmp_path_factory.mktemp("foreign") / "zstd", compressed=True)


@pytest.fixture(scope="module", params=["map", "zarr"])
def either(
    request: pytest.FixtureRequest, foreign: "ForeignCache", compressed: "ForeignCache"
) -> "ForeignCache":
    """The foreign cache, read in either way."""
    return foreign if request.param == "map" else compressed


@pytest.fixture
def copied(foreign: "ForeignCache", tmp_path: Path) -> Path:
    """A copy of the foreign cache, to be changed."""
    return shutil.copytree(foreign.root, tmp_path / "copy")


# -- reading targets


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(IMAGES, id="all"),
        pytest.param([21, 0, 13, 6], id="out of order, across units"),
        pytest.param([4, 4, 18, 4], id="repeated"),
        pytest.param([14], id="last of a short unit"),
        pytest.param([], id="none"),
    ],
)
@pytest.mark.parametrize("views", [None, 0, 1])
def test_images_come_in_the_order_asked(
    either: "ForeignCache", rows: list[int], views: int | None
) -> None:
    found = open_cache(either.root).image_targets().read(rows, views)
    expected = either.targets["tiny", "image"][np.array(rows, int), views or 0]
    assert (found.dtype, found.shape) == (np.float16, (len(rows), 8))
    assert found.tobytes() == expected.tobytes()


def test_each_row_may_have_a_view_of_its_own(either: "ForeignCache") -> None:
    rows, views = [21, 0, 0, 13], [1, 0, 1, 1]
    found = open_cache(either.root).image_targets().read(rows, views)
    assert found.tobytes() == either.targets["tiny", "image"][rows, views].tobytes()


@pytest.mark.parametrize("rows", [TEXTS, [14, 0, 9, 9], []])
def test_texts_come_in_the_order_asked(either: "ForeignCache", rows: list[int]) -> None:
    found = open_cache(either.root).text_targets().read(rows)
    expected = either.targets["tiny", "text"][np.array(rows, int)]
    assert found.tobytes() == expected.tobytes()


def test_what_is_read_is_a_copy_that_may_be_written(foreign: "ForeignCache") -> None:
    targets = open_cache(foreign.root).text_targets()
    targets.read([0])[:] = 0
    assert (targets.read([0]) != 0).any()


@pytest.mark.parametrize("dtype", [np.int16, np.uint32, np.int64, np.uint64])
def test_rows_may_be_integers_of_any_width(foreign: "ForeignCache", dtype: type) -> None:
    targets = open_cache(foreign.root).text_targets()
    found = targets.read(np.array([5, 0], dtype))
    assert found.tobytes() == foreign.targets["tiny", "text"][[5, 0]].tobytes()


@pytest.mark.parametrize("rows", [[0.0], [True], [[0]], 0, ["a"]])
def test_rows_that_are_no_integers_are_refused(foreign: "ForeignCache", rows: Any) -> None:
    with pytest.raises(ValueError, match=r"rows must be \(B,\) integers, got "):
        open_cache(foreign.root).image_targets().read(rows)


def test_shapes_count_gaps(foreign: "ForeignCache") -> None:
    cache = open_cache(foreign.root)
    assert cache.image_targets().shape == (22, 2, 8)
    assert cache.text_targets().shape == (15, 8)
    assert (len(cache.image_targets()), len(cache.text_targets())) == (22, 15)
    assert (cache.num_samples, cache.num_texts) == (19, 13)


def test_the_rows_that_have_a_target_are_known(either: "ForeignCache") -> None:
    cache = open_cache(either.root)
    images, texts = cache.image_targets(), cache.text_targets()
    assert images.available_rows().tolist() == IMAGES
    assert texts.available_rows().tolist() == TEXTS
    assert np.flatnonzero(images.available(np.arange(-5, 40))).tolist() == [r + 5 for r in IMAGES]


@pytest.mark.parametrize(
    ("modality", "row", "message"),
    [
        ("image", -1, "row -1 is not in {}, which holds rows 0..21; it is probably from"),
        ("image", 22, "row 22 is not in {}, which holds rows 0..21; it is probably from"),
        ("text", 2**40, f"text_row {2**40} is not in {{}}, which holds text_rows 0..14; "),
        ("image", 16, "row 16 of {} is a gap without a sample"),
        ("text", 11, "text_row 11 of {} is a gap without a sample"),
        (
            *("image", 8),
            "row 8 of {} was rejected by tiny: no such file; siglip2-cache build --retry-rejected "
            "retries it",
        ),
        ("text", 3, "text_row 3 of {} was rejected by tiny: the teacher returned an embedding"),
    ],
)
def test_a_row_without_target_is_named_with_the_reason(
    foreign: "ForeignCache", modality: str, row: int, message: str
) -> None:
    cache = open_cache(foreign.root)
    targets = cache.image_targets() if modality == "image" else cache.text_targets()
    with pytest.raises(RowUnavailableError) as caught:
        targets.read([0, row, 99])  # the first is named
    assert str(caught.value).startswith(message.format(foreign.root))


def test_a_row_of_an_uncommitted_unit_says_how_to_go_on(copied: Path) -> None:
    (copied / "teachers/tiny/commits/image-00001.json").unlink()
    targets = open_cache(copied).image_targets()
    assert targets.available_rows().tolist() == [r for r in IMAGES if not 6 <= r < 12]
    with pytest.raises(
        RowUnavailableError,
        match=r"row 7 of .* has no target by tiny yet: image unit 1 is not committed; run the same",
    ):
        targets.read([0, 7])
    with pytest.raises(RowUnavailableError, match="image unit 1 is not committed"):
        targets.read_unit(1)


@pytest.mark.parametrize("view", [-1, 2, [0, 2]])
def test_a_view_that_was_never_made_is_refused(foreign: "ForeignCache", view: Any) -> None:
    wrong = view if isinstance(view, int) else 2
    with pytest.raises(
        RowUnavailableError, match=rf"view {wrong} is not in .*, which holds views 0\.\.1 of each"
    ):
        open_cache(foreign.root).image_targets().read([0, 1], view)


def test_texts_have_no_views(foreign: "ForeignCache") -> None:
    with pytest.raises(ValueError, match="texts have no views"):
        open_cache(foreign.root).text_targets().read([0], 0)


@pytest.mark.parametrize("views", [None, 1, "array"])
def test_a_masked_read_marks_what_is_missing(either: "ForeignCache", views: Any) -> None:
    rows = np.array([21, -1, 8, 0, 16, 9, 22, 13, 2**40])
    views = np.arange(9) % 2 if views == "array" else views
    found, valid = open_cache(either.root).image_targets().read_masked(rows, views)
    assert valid.tolist() == [True, False, False, True, False, False, False, True, False]
    assert (found.dtype, found.shape) == (np.float16, (9, 8))
    assert np.isnan(found[~valid]).all()
    views_B = np.broadcast_to(0 if views is None else views, 9)
    expected = either.targets["tiny", "image"][rows[valid], views_B[valid]]
    assert found[valid].tobytes() == expected.tobytes()


def test_a_whole_unit_is_read_as_it_is(either: "ForeignCache") -> None:
    cache = open_cache(either.root)
    for unit, rows in enumerate([slice(0, 6), slice(6, 12), slice(12, 15), slice(18, 22)]):
        found = cache.image_targets().read_unit(unit)
        np.testing.assert_array_equal(found, either.targets["tiny", "image"][rows])
    with pytest.raises(RowUnavailableError, match="row 24 is not in"):
        cache.image_targets().read_unit(4)


def test_zarr_python_reads_the_same_bytes_as_we(foreign: "ForeignCache") -> None:
    targets = open_cache(foreign.root).image_targets()
    array = zarr.open_array(foreign.root / "teachers/tiny/image.zarr", mode="r")
    assert targets.read(IMAGES, 1).tobytes() == array[:][IMAGES, 1].tobytes()


def test_a_damaged_shard_is_refused_only_when_it_is_read(copied: Path) -> None:
    shard = copied / "teachers/tiny/image.zarr/c/1/0/0"
    shard.write_bytes(shard.read_bytes()[:-1])
    targets = open_cache(copied).image_targets()
    targets.read([0, 12])
    with pytest.raises(DamagedCacheError, match=r"shard .*/c/1/0/0 .* run siglip2-cache verify"):
        targets.read([0, 7])


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff"])
def test_damaged_array_metadata_is_an_error_of_ours(copied: Path, content: bytes | None) -> None:
    path = copied / "teachers/tiny/text.zarr/zarr.json"
    path.unlink() if content is None else path.write_bytes(content)
    targets = open_cache(copied).text_targets()
    with pytest.raises(
        DamagedCacheError, match=r"text\.zarr/zarr\.json is missing or damaged; run"
    ):
        targets.read([0])


# -- processes and many shards


def test_a_cache_and_its_targets_survive_pickling(either: "ForeignCache") -> None:
    cache = open_cache(either.root)
    targets = cache.image_targets()
    expected = targets.read([13, 0], 1)  # maps are open now
    again: Cache = pickle.loads(pickle.dumps(cache))
    assert again.image_targets().read([13, 0], 1).tobytes() == expected.tobytes()
    assert pickle.loads(pickle.dumps(targets)).read([13, 0], 1).tobytes() == expected.tobytes()


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_worker_processes_read_the_same(either: "ForeignCache", method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    targets = open_cache(either.root).image_targets()
    expected = either.targets["tiny", "image"][IMAGES, 1]
    targets.read([0])  # one shard is open, and zarr-python's own thread running
    with multiprocessing.get_context(method).Pool(1) as pool:
        found = pool.apply_async(targets.read, (IMAGES, 1)).get(timeout=PATIENCE_S)
    assert found.tobytes() == expected.tobytes()


def test_a_thousand_shards_more_than_files_may_be_open(tmp_path: Path) -> None:
    values = _write_cache_of_one_row_shards(tmp_path, 2000)
    code = (
        "import resource, sys, os, hashlib\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))\n"
        "import numpy as np\n"
        "from siglip2_cache import open_cache\n"
        "targets = open_cache(sys.argv[1]).text_targets()\n"
        "rows = np.random.default_rng(0).permutation(2000)\n"
        "for _ in range(2):\n"
        "    found = targets.read(rows)\n"
        "num_open = len(os.listdir('/dev/fd'))\n"
        "print(num_open, hashlib.sha256(found[np.argsort(rows)].tobytes()).hexdigest())\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    num_open, digest = result.stdout.split()
    assert int(num_open) < 100
    assert digest == _sha256(values.tobytes())


# -- opening


def test_a_folder_that_is_not_there_is_no_cache(tmp_path: Path) -> None:
    with pytest.raises(NotACacheError) as caught:
        open_cache(tmp_path / "c")
    expected = (
        f"no cache at {tmp_path}/c: there is no such folder; create one with siglip2-cache build"
    )
    assert str(caught.value) == expected
    assert isinstance(caught.value, FileNotFoundError)


def test_a_file_is_no_cache(copied: Path) -> None:
    with pytest.raises(
        NotACacheError, match=r"it is a file; name the folder that contains cache\.json"
    ):
        open_cache(copied / "cache.json")


def test_an_empty_folder_is_no_cache(tmp_path: Path) -> None:
    with pytest.raises(
        NotACacheError, match=r"it contains no cache\.json; create one with siglip2-cache build"
    ):
        open_cache(tmp_path)


def test_the_folder_above_a_cache_asks_for_the_cache(copied: Path) -> None:
    with pytest.raises(NotACacheError, match=rf"did you mean {copied}\?"):
        open_cache(copied.parent)


def test_an_unfinished_plan_says_how_to_go_on(copied: Path) -> None:
    (copied / "cache.json").rename(copied / "cache.json.0123456789ab.partial")
    with pytest.raises(
        NotACacheError, match=r"has no cache\.json: its plan is unfinished; run the same build"
    ):
        open_cache(copied)


@pytest.mark.parametrize(
    "record", ["cache.json", "catalog/append-00001.json", "teachers/tiny/teacher.json"]
)
def test_a_record_of_a_later_version_is_refused(copied: Path, record: str) -> None:
    data = (copied / record).read_bytes().replace(b'"format_version": 2', b'"format_version": 6')
    body, mark, _ = data.rpartition(b',\n "checksum": "')
    (copied / record).write_bytes(body + mark + _sha256(body).encode() + b'"\n}\n')
    with pytest.raises(
        FormatVersionError, match=rf"{record} has format version 6, .* versions 1 to 5; "
    ):
        open_cache(copied)


@pytest.mark.parametrize(
    "record", ["cache.json", "catalog/append-00001.json", "teachers/tiny/teacher.json"]
)
def test_a_damaged_or_torn_record_is_named(copied: Path, record: str) -> None:
    whole = (copied / record).read_bytes()
    (copied / record).write_bytes(whole.replace(b'"generation": ', b'"generation":  '))
    with pytest.raises(
        DamagedCacheError, match=rf"{copied}/{record} has checksum .* it was changed"
    ):
        open_cache(copied)
    (copied / record).write_bytes(whole[:100])
    with pytest.raises(
        DamagedCacheError,
        match=rf"{copied}/{record} is not a complete record \(100 bytes\); it was truncated",
    ):
        open_cache(copied)


def test_unfinished_commits_are_not_looked_at(copied: Path, foreign: "ForeignCache") -> None:
    for name in (
        "cache.json.intent",
        "catalog/append-00002.json.intent",
        "catalog/samples-00003.parquet.append-00002.0123456789ab.partial",
        "teachers/tiny/commits/image-00000.r1.json.intent",
        "teachers/tiny/commits/image-00000.r1.json.0123456789ab.partial",
        "teachers/tiny/image.zarr/c/0/0/0.image-00000.r1.0123456789ab.partial",
        "teachers/other/image.zarr/zarr.json.teacher.0123456789ab.partial",
    ):
        (copied / name).parent.mkdir(parents=True, exist_ok=True)
        (copied / name).write_bytes(b"garbage")
    cache = open_cache(copied)
    assert cache.teachers == ("tiny",)
    assert cache.samples().collect().height == 19
    found = cache.image_targets().read(IMAGES)
    assert found.tobytes() == foreign.targets["tiny", "image"][IMAGES, 0].tobytes()


# -- attempts


def test_the_highest_attempt_counts(copied: Path) -> None:
    def retried(fields: dict[str, Any]) -> None:
        fields |= {"attempt": 10, "num_rejected": 1, "rejected": fields["rejected"][1:]}

    _copy_record(copied, "image-00001.json", "image-00001.r10.json", retried)
    _copy_record(copied, "image-00001.json", "image-00001.r9.json", lambda f: f.update(attempt=9))
    cache = open_cache(copied)
    assert cache.image_targets().available([8, 9]).tolist() == [True, False]
    assert cache.commits().units_of("image")[1].attempt == 10
    assert cache.commits().next_attempt["image", 1] == 11


def test_a_torn_highest_attempt_means_the_unit_is_not_committed(copied: Path) -> None:
    (copied / "teachers/tiny/commits/image-00001.r1.json").write_bytes(b"{")
    cache = open_cache(copied)
    with pytest.raises(RowUnavailableError, match="image unit 1 is not committed"):
        cache.image_targets().read([7])
    [message] = cache.commits().damaged
    assert message.startswith(
        f"{copied}/teachers/tiny/commits/image-00001.r1.json is not a complete"
    )


def test_a_torn_lower_attempt_means_nothing(copied: Path, foreign: "ForeignCache") -> None:
    commits = copied / "teachers/tiny/commits"
    _copy_record(copied, "image-00001.json", "image-00001.r1.json", lambda f: f.update(attempt=1))
    (commits / "image-00001.json").write_bytes(b"")
    cache = open_cache(copied)
    assert cache.commits().damaged == []
    found = cache.image_targets().read([7])
    assert found.tobytes() == foreign.targets["tiny", "image"][[7], 0].tobytes()


def test_a_renewed_cache_reads_only_the_records_that_are_new(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_cache(copied)
    known = before.commits().units
    _copy_record(copied, "image-00001.json", "image-00001.r1.json", lambda f: f.update(attempt=1))
    read: list[str] = []
    read_bytes = LocalStorage.read
    monkeypatch.setattr(
        LocalStorage, "read", lambda s, path: read.append(path) or read_bytes(s, path)
    )
    now = before.renewed()
    assert now.commits().units_of("image")[1].attempt == 1
    assert [path for path in read if "/commits/" in path] == [
        "teachers/tiny/commits/image-00001.r1.json"
    ]
    others = now.commits().units.keys() - {("image", 1)}
    assert len(others) > 2
    assert all(now.commits().units[place] is known[place] for place in others)
    assert before.commits().units_of("image")[1].attempt == 0


def test_parts_that_are_left_out_hold_none_of_the_rows(foreign: "ForeignCache") -> None:
    cache = open_cache(foreign.root)
    first_columns: dict[Table, str] = {"files": "file", "samples": "row", "texts": "text_row"}
    for table, column in first_columns.items():
        lines = cache.table(table).collect()
        assert len(cache.manifest.parts(table)) > 1
        for number in lines[column].unique():
            few = cache.table(table, Span(first=number, count=1))
            found = few.filter(pl.col(column) == number).collect()
            assert found.equals(lines.filter(pl.col(column) == number))


# -- tables


def test_samples_have_their_columns_in_row_order(foreign: "ForeignCache") -> None:
    samples = open_cache(foreign.root).samples().collect()
    assert samples.columns == [
        *("row", "key", "file", "member", "offset", "length", "row_group", "index", "label"),
        "source_sha256",
    ]
    assert dict(samples.select("row", "key").iter_rows()) == foreign.keys
    assert samples["row"].to_list() == [*range(15), *range(18, 22)]
    assert samples["file"].to_list() == list(range(19))
    assert samples.filter(row=3)["label"].to_list() == ["cat"]
    assert samples["offset"].null_count() == 19


def test_captions_join_images_and_texts(foreign: "ForeignCache") -> None:
    cache = open_cache(foreign.root)
    captions = cache.captions()
    assert captions.collect_schema().names() == ["row", "text_row", "lang", "kind"]
    joined = captions.join(cache.texts(), on="text_row").join(cache.samples(), on="row")
    found = joined.filter(pl.col("text") == "ein Hund").sort("row").collect()
    assert found["key"].to_list() == ["photos/0000", "photos/0001", "drawings/0018"]
    assert set(captions.collect()["lang"]) == {"en", "de", "nl", None}
    assert captions.collect().height == 15


def test_texts_are_unique_and_in_order(foreign: "ForeignCache") -> None:
    texts = open_cache(foreign.root).texts().collect()
    assert texts.columns == ["text_row", "text"]
    assert texts["text_row"].to_list() == [*range(10), 12, 13, 14]
    assert texts.filter(text_row=4)["text"].to_list() == ["猫"]
    assert texts["text"].is_unique().all()


def test_prompts_are_texts_but_no_captions(foreign: "ForeignCache") -> None:
    cache = open_cache(foreign.root)
    prompts = cache.table("prompts").collect()
    assert prompts.columns == ["text_row", "label", "template", "lang"]
    assert prompts.rows() == [
        (8, "cat", "a photo of a {}", "en"),
        (9, "dog", "a photo of a {}", "en"),
    ]
    captions = cache.captions().collect()
    assert not set(prompts["text_row"]) & set(captions["text_row"])
    cache.text_targets().read(prompts["text_row"].to_numpy())


def test_views_are_those_that_our_planner_draws(foreign: "ForeignCache") -> None:
    cache = open_cache(foreign.root)
    lines = cache.table("views").collect().rows()
    assert {line[:2]: line[2:] for line in lines} == foreign.views
    for row, view, *box in lines:
        ours = draw_view(cache.view_policy, foreign.keys[row], view)
        assert (ours.top, ours.left, ours.height, ours.width, ours.flip) == tuple(box)


def test_files_and_problems_are_tables_too(foreign: "ForeignCache") -> None:
    cache = open_cache(foreign.root)
    files = cache.table("files").collect()
    assert files.columns == ["file", "source", "path", "num_bytes", "mtime_ns"]
    assert files["source"].to_list() == ["photos"] * 15 + ["drawings"] * 4
    problems = cache.table("problems").collect()
    assert problems.rows() == [("photos", "line 9", None, "no image is named")]


def test_rejected_rows_are_listed_with_keys_and_reasons(foreign: "ForeignCache") -> None:
    rejected = open_cache(foreign.root).rejected().collect()
    assert rejected.columns == ["teacher", "modality", "row", "key", "reason"]
    assert rejected.rows() == [
        ("tiny", "image", 8, "photos/0008", "no such file"),
        ("tiny", "image", 9, "photos/0009", "empty: 0 bytes"),
        ("tiny", "image", 20, "drawings/0020", "damaged image: truncated"),
        ("tiny", "text", 3, None, "the teacher returned an embedding that is not finite"),
    ]


@pytest.mark.parametrize(("first", "units"), [(0, []), (1, [1]), (2, [1]), (3, [1, 3])])
def test_the_first_rejected_rows_are_found_without_a_look_at_the_others(
    foreign: "ForeignCache", first: int, units: list[int]
) -> None:
    looked_at: list[int] = []

    class Noted(dict[int, str]):
        def items(self) -> Any:
            looked_at.extend({row // 6 for row in self})  # rows of a unit
            return super().items()

    cache = open_cache(foreign.root)
    commits = cache.commits()
    for place, commit in commits.units.items():
        commits.units[place] = replace(commit, rejected=Noted(commit.rejected))
    found = cache.rejected(first=first).collect()
    assert found.equals(open_cache(foreign.root).rejected().collect()[:first])
    assert looked_at == units


# -- teachers, corpora, descriptions


@pytest.fixture(scope="module")
def twice(
    write_foreign_cache: WriteForeignCache, tmp_path_factory: pytest.TempPathFactory
) -> "ForeignCache":
    """A cache of two teachers."""
    root = tmp_path_factory.mktemp("foreign") / "two"
    return write_foreign_cache(root, teachers=("large", "base"))


def test_each_teacher_has_its_own_targets(twice: "ForeignCache") -> None:
    cache = open_cache(twice.root)
    assert cache.teachers == ("base", "large")
    for name in cache.teachers:
        found = cache.image_targets(name).read(IMAGES)
        assert found.tobytes() == twice.targets[name, "image"][IMAGES, 0].tobytes()
    assert cache.rejected().collect().height == 8
    assert cache.rejected("large").collect()["teacher"].unique().to_list() == ["large"]


def test_of_several_teachers_one_must_be_named(twice: "ForeignCache") -> None:
    cache = open_cache(twice.root)
    with pytest.raises(SettingError, match=r"has several teachers: base, large; name one"):
        cache.image_targets()
    with pytest.raises(SettingError, match=r"no teacher 'huge' in .*; it has base, large"):
        cache.text_targets("huge")


def test_a_plan_without_teacher_opens(copied: Path) -> None:
    shutil.rmtree(copied / "teachers")
    cache = open_cache(copied)
    assert (cache.teachers, cache.num_samples) == ((), 19)
    assert cache.rejected().collect().height == 0
    with pytest.raises(NotACacheError, match="has no teacher yet; run siglip2-cache build"):
        cache.image_targets()


def test_a_teachers_record_is_read(foreign: "ForeignCache") -> None:
    record = open_cache(foreign.root).teacher()
    assert (record.name, record.source, record.embed_dim) == ("tiny", "example/tiny", 8)
    assert (record.logit_scale, record.logit_bias) == (4.75, -16.799999237060547)
    assert record.batch_size == {"image": 4, "text": 8}


@pytest.mark.parametrize(
    ("moved", "expected"),
    [
        ({}, "/corpora/photos"),
        ({"/corpora/photos": "/new"}, "/new"),
        ({"/corpora": "/new"}, "/new/photos"),
        ({"/corpora": "/no", "/corpora/photos": "/new"}, "/new"),  # the longest counts
        ({"/corpora/pho": "/new", "/other": "/new"}, "/corpora/photos"),  # whole names only
        ({"/": "/new"}, "/new/corpora/photos"),
    ],
)
def test_a_corpus_that_moved_is_found(
    foreign: "ForeignCache", moved: dict[str, str], expected: str
) -> None:
    cache = open_cache(foreign.root, corpus_roots=moved)
    assert list(cache.sources) == ["photos", "drawings"]
    assert cache.corpus_root("photos") == Path(expected)


def test_a_cache_is_described(foreign: "ForeignCache") -> None:
    cache = open_cache(foreign.root)
    found = json.loads(json.dumps(describe(cache)))
    assert (found["samples"], found["captions"], found["texts"], found["prompts"]) == (
        19,
        15,
        13,
        2,
    )
    assert found["languages"] == {"de": 5, "en": 6, "none": 3, "nl": 1}
    teacher = found["teachers"]["tiny"]
    assert teacher["is_complete"] is True
    assert teacher["image"]["rejected"] == 3
    assert teacher["image"]["shape"] == [22, 2, 8]
    text = "\n".join(describe_lines(found))
    assert "19" in text
    assert "complete" in text
    assert "19 samples, 13 texts, tiny" in repr(cache)


def test_the_package_names_what_people_use(foreign: "ForeignCache") -> None:
    assert siglip2_cache.open_cache is open_cache
    assert isinstance(siglip2_cache.open_cache(str(foreign.root)), siglip2_cache.Cache)


# -- helpers


def _sha256(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


def _copy_record(
    root: Path, source: str, target: str, change: Callable[[dict[str, Any]], None]
) -> None:
    folder = root / "teachers/tiny/commits"
    fields = decode_record((folder / source).read_bytes(), where=source)
    change(fields)
    (folder / target).write_bytes(encode_record(fields))


def _write_cache_of_one_row_shards(root: Path, count: int) -> np.ndarray:
    """Write a cache of texts without catalog, a unit a row, and return its targets."""
    values = np.random.default_rng(0).normal(size=(count, 4)).astype(np.float16)
    layout = ArrayLayout(modality="text", num_rows=count, num_views=1, embed_dim=4, shard_rows=1)
    array = zarr.create_array(
        root / "teachers/t/text.zarr",
        shape=values.shape,
        shards=(1, 4),
        chunks=(1, 4),
        dtype="float16",
        compressors=None,
        filters=None,
        fill_value=float("nan"),
    )
    array[:] = values
    assert layout.matches_map(json.loads((root / "teachers/t/text.zarr/zarr.json").read_text()))
    policy = {
        "num_views": 1,
        "seed": 0,
        "min_area": 0.25,
        "max_aspect": 1.5,
        "flip_probability": 0,
    }
    nothing = {"num_captions": 0, "num_problems": 0, "sources": [], "files": {}}
    plan = {
        "generation": 0,
        "rows": {"first": 0, "count": 0},
        "text_rows": {"first": 0, "count": count},
        "digest": "",
        "prompts_fingerprint": "",
        "shard_rows": 1,
        "views": policy,
        **nothing,
    }
    (root / "cache.json").write_bytes(encode_record(plan))
    teacher = {
        "name": "t",
        "source": "t",
        "identity": {},
        "embed_dim": 4,
        "logit_scale": 1.0,
        "logit_bias": 0.0,
        "batch_size": {"image": 1, "text": 1},
        "generation": 0,
        "files": {},
    }
    (root / "teachers/t/teacher.json").write_bytes(encode_record(teacher))
    (root / "teachers/t/commits").mkdir()
    for unit in range(count):
        record = {
            "modality": "text",
            "unit": unit,
            "attempt": 0,
            "first_row": unit,
            "num_rows": 1,
            "rejected": [],
            "files": {},
            "batch_size": 1,
            "provenance": {},
        }
        path = root / f"teachers/t/commits/text-{unit:05d}.json"
        path.write_bytes(encode_record(record))
    return values


def test_parts_that_do_not_fit_together_into_the_local_copies_are_refused_before_any_is_read(
    foreign: "ForeignCache", memory: str, tmp_path: Path
) -> None:
    """Fetching the last would remove the first before it is read."""
    convert_cache(open_cache(foreign.root), parse_location(f"{memory}/c"), targets="float16")
    sizes = [
        part.description["num_bytes"] for part in open_cache(f"{memory}/c").manifest.parts("texts")
    ]
    assert len(sizes) == 2
    for limit, fits in ((sum(sizes), True), (sum(sizes) - 1, False)):
        copies = LocalCopies(tmp_path / str(limit), limit)
        cache = open_cache(f"{memory}/c", copies=copies)
        if fits:
            assert cache.texts().collect().height == cache.num_texts
        else:
            with pytest.raises(
                DiskFullError, match=r"the 2 parts of a table of .* take .* together"
            ):
                cache.texts()
