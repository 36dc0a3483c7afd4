"""verify_cache: what is whole passes, and every kind of damage is named."""

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
from kit.memory_bucket import MemoryBucket, memory_bucket

from siglip2_cache import open_cache
from siglip2_cache.errors import CacheError, DamagedCacheError
from siglip2_cache.store.format.records import decode_record, encode_record, sha256_hex
from siglip2_cache.store.format.row_encoding import DTYPE
from siglip2_cache.store.format.transaction import Transaction, roll_forward
from siglip2_cache.store.io import local as files
from siglip2_cache.store.io.local import LocalStorage
from siglip2_cache.store.targets.targets import Targets
from siglip2_cache.store.verify.shard_reader import ShardReader
from siglip2_cache.store.verify.verify import Report, verify_cache

if TYPE_CHECKING:
    from tests.foreign_cache import ForeignCache

GOLDEN = Path(__file__).parents[3] / "data" / "cache-v1"
COMMITS = "teachers/tiny/commits"


@pytest.fixture
def copied(foreign: "ForeignCache", tmp_path: Path) -> Path:
    """A copy of the foreign cache, to be damaged."""
    return shutil.copytree(foreign.root, tmp_path / "copy")


@pytest.fixture(params=["foreign", "ours"])
def each(request: pytest.FixtureRequest, foreign: "ForeignCache", tmp_path: Path) -> Path:
    """A copy of the foreign cache, and one of a cache that a build made."""
    source = foreign.root if request.param == "foreign" else GOLDEN
    return shutil.copytree(source, tmp_path / "copy")


@pytest.fixture
def bucket() -> Iterator[MemoryBucket]:
    with memory_bucket() as made:
        yield made


def verify(root: Path) -> Report:
    return verify_cache(open_cache(root))


def faults(root: Path) -> list[str]:
    """What ``siglip2-cache verify`` prints: its faults, or the one error that ends it."""
    try:
        return verify(root).faults
    except CacheError as error:
        return [str(error)]


def all_files(root: Path) -> list[str]:
    found = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    assert len(found) > 30
    return sorted(found)


def rewrite(root: Path, path: str, data: bytes, *, record: str) -> None:
    """Replace a file and make its record say so: damage that no checksum shows."""
    (root / path).write_bytes(data)

    def describe(fields: dict[str, Any]) -> None:
        fields["files"][path] |= {"num_bytes": len(data), "sha256": sha256_hex(data)}

    change_record(root, record, describe)


def change_record(root: Path, record: str, change: Callable[[dict[str, Any]], None]) -> None:
    fields = decode_record((root / record).read_bytes(), where=record)
    change(fields)
    (root / record).write_bytes(encode_record(fields))


def change_rows(root: Path, modality: str, unit: int, change: Callable[[np.ndarray], None]) -> None:
    """Change the values of a unit, (n, [views,] embed_dim), under a record that fits."""
    is_image = modality == "image"
    row_shape = (2, 8) if is_image else (8,)
    path = f"teachers/tiny/{modality}.zarr/c/{unit}/" + ("0/0" if is_image else "0")
    data = bytearray((root / path).read_bytes())
    num_rows = open_cache(root).commits().units_of(modality)[unit].num_rows  # type: ignore[arg-type]
    count = num_rows * int(np.prod(row_shape))
    change(np.frombuffer(data, DTYPE, count).reshape(num_rows, *row_shape))
    rewrite(root, path, bytes(data), record=f"{COMMITS}/{modality}-{unit:05d}.json")


def change_part(
    root: Path, path: str, change: Callable[[pl.DataFrame], pl.DataFrame], *, record: str
) -> None:
    changed = change(pl.read_parquet(root / path))
    changed.write_parquet(root / path)
    rewrite(root, path, (root / path).read_bytes(), record=record)


# -- what is whole


def test_an_unharmed_foreign_cache_has_no_fault(foreign: "ForeignCache") -> None:
    report = verify(foreign.root)
    assert (report.faults, report.notes, report.is_sound) == ([], [], True)
    assert report.num_rows == {"image": 19, "text": 13}
    assert report.num_rejected == 4


def test_an_unharmed_compressed_cache_has_no_fault(
    write_foreign_cache: Callable[..., "ForeignCache"], tmp_path: Path
) -> None:
    report = verify(write_foreign_cache(tmp_path / "c", compressed=True, teachers=("a", "b")).root)
    assert report.faults == []
    assert report.num_rows == {"image": 38, "text": 26}


def test_an_unharmed_cache_of_ours_has_no_fault() -> None:
    report = verify(GOLDEN)
    assert (report.faults, report.notes) == ([], [])
    assert report.num_rejected == 1


def test_every_file_that_a_record_names_is_read_once(foreign: "ForeignCache") -> None:
    seen: list[str] = []
    report = verify_cache(open_cache(foreign.root), on_file=seen.append)
    records = [path for path in all_files(foreign.root) if _is_record(path)]
    assert sorted(seen) == sorted(set(all_files(foreign.root)) - set(records))
    assert report.num_files == len(seen)
    assert report.num_bytes == sum((foreign.root / path).stat().st_size for path in seen)


# -- bytes


def test_a_flipped_bit_in_any_file_is_named(each: Path) -> None:
    randoms = random.Random(0)
    for path in all_files(each):
        whole = (each / path).read_bytes()
        for _ in range(4):
            damaged = bytearray(whole)
            damaged[randoms.randrange(len(whole))] ^= 1 << randoms.randrange(8)
            (each / path).write_bytes(damaged)
            found = faults(each)
            assert path in found[0], (path, found)
            # A unit whose record is damaged is also one that is not embedded.
            assert len(found) == (2 if "/commits/image" in path or "/commits/text" in path else 1)
        (each / path).write_bytes(whole)
    assert verify(each).is_sound


def test_a_missing_file_is_named(each: Path) -> None:
    for path in all_files(each):
        whole = (each / path).read_bytes()
        (each / path).unlink()
        if not _is_record(path):
            [fault] = faults(each)
            assert path in fault
            assert "cannot be read (No such file or directory); " in fault
        else:
            assert faults(each), path
        (each / path).write_bytes(whole)


def test_a_file_cut_short_is_named_with_both_lengths(copied: Path) -> None:
    path = copied / "catalog/texts-00000.parquet"
    length = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    [fault] = faults(copied)
    assert fault == (
        f"catalog/texts-00000.parquet is damaged: {length - 1:,} bytes, {length:,} were "
        "written; restore it from a backup, or build the cache again"
    )


def test_a_damaged_shard_says_how_to_mend_it(copied: Path) -> None:
    path = copied / "teachers/tiny/text.zarr/c/1/0"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    [fault] = faults(copied)
    assert fault == (
        "teachers/tiny/text.zarr/c/1/0 is damaged: its bytes have changed; "
        f"remove {COMMITS}/text-00001.*json and run the same build again to embed the unit again"
    )


def test_an_orphan_is_named(copied: Path) -> None:
    for path in (
        "notes.txt",
        "catalog/samples-copy.parquet",
        "teachers/notes.txt",
        "teachers/tiny/image.zarr/c/9/0/0",
    ):
        (copied / path).parent.mkdir(parents=True, exist_ok=True)
        (copied / path).write_bytes(b"x")
        assert faults(copied) == [f"{path} is in no record; remove it unless you put it there"]
        (copied / path).unlink()


_COPY_IT = "copy it from where the cache came from, and remove nothing"


def test_without_the_record_of_a_teacher_its_files_are_no_orphans(each: Path) -> None:
    [record] = each.glob("teachers/*/teacher.json")
    files = [path for path in record.parent.rglob("*") if path.is_file() and path != record]
    index = each / "indexes" / record.parent.name / "image.json"
    index.parent.mkdir(parents=True)
    index.write_bytes(b"{}")
    record.unlink()
    report = verify(each)
    [fault] = report.faults
    assert fault.startswith(
        f"{record.relative_to(each)} is missing, without which {len(files)} files (first: teachers/"
    )
    assert fault.endswith(f") cannot be used; {_COPY_IT}")
    assert report.notes == []


@pytest.mark.parametrize("has_parts", [True, False])
def test_without_the_record_of_a_generation_its_files_are_no_orphans(
    each: Path, has_parts: bool
) -> None:
    record = each / "catalog/append-00001.json"
    fields = decode_record(record.read_bytes(), where="")
    record.unlink()
    if not has_parts:  # the records of its units show that it was there
        for part in fields["files"]:
            (each / part).unlink()
    [fault] = faults(each)
    assert fault.startswith("catalog/append-00001.json is missing, without which ")
    assert fault.endswith(f") cannot be used; {_COPY_IT}")


def test_only_the_first_missing_generation_is_named(copied: Path) -> None:
    fields = decode_record((copied / "catalog/append-00001.json").read_bytes(), where="")
    later = copied / "catalog/append-00003.json"
    later.write_bytes(encode_record({**fields, "generation": 3}))
    assert faults(copied) == [
        "catalog/append-00002.json is missing, without which 1 file (first: catalog/append-00003.json) "
        f"cannot be used; {_COPY_IT}"
    ]


def test_a_record_that_was_written_since_the_cache_was_opened_is_a_note(copied: Path) -> None:
    record = copied / "catalog/append-00001.json"
    data = record.read_bytes()
    record.unlink()
    before = open_cache(copied)
    record.write_bytes(data)
    report = verify_cache(before)
    assert report.faults == []
    assert "catalog/append-00001.json was written meanwhile; verify again" in report.notes


def test_what_unfinished_commits_left_is_a_note(copied: Path) -> None:
    for path in ("cache.json.0123456789ab.partial", f"{COMMITS}/x.0123456789ab.partial"):
        (copied / path).write_bytes(b"x")
    report = verify(copied)
    assert report.is_sound
    assert report.notes == [
        "2 temporary files of interrupted commits; a finished build removes them"
    ]


# -- a cache in progress


def test_units_to_come_are_counted(copied: Path) -> None:
    for unit in (1, 3):
        (copied / f"{COMMITS}/image-{unit:05d}.json").unlink()
    assert faults(copied) == [
        "tiny: 2 image units are not embedded yet (first: 1); run the same build again"
    ]


class Killed(BaseException):
    pass


class DyingFiles(LocalStorage):
    """Files of a process that is killed once it has renamed so many."""

    def __init__(self, root: Path, *, num_renames: int) -> None:
        super().__init__(root)
        self._left = num_renames

    def rename(self, source: str, target: str) -> bool:
        if self._left == 0:
            raise Killed
        self._left -= 1
        return super().rename(source, target)


def commit_and_die(root: Path, record: str, files: dict[str, bytes], **options: int) -> str:
    """Commit anew what a record names, with such bytes; return the record that does not stand."""
    fields = decode_record((root / record).read_bytes(), where=record)
    attempt = options.get("attempt", 0)
    if attempt == 0:
        (root / record).unlink()
    else:
        record = record.replace(".json", f".r{attempt}.json")
    commit = Transaction(DyingFiles(root, num_renames=options["num_renames"]), record)
    for path, data in files.items():
        commit.add(path, data)
    del fields["files"]
    with pytest.raises(Killed):
        commit.commit({**fields, "attempt": attempt})
    return record


@pytest.mark.parametrize("num_renames", [0, 1])
def test_a_unit_whose_commit_was_not_finished_is_a_note(copied: Path, num_renames: int) -> None:
    paths = ["teachers/tiny/image.zarr/c/3/0/0", "teachers/tiny/images/00003.parquet"]
    files = {path: (copied / path).read_bytes() for path in paths}
    for path in paths:
        (copied / path).unlink()
    record = commit_and_die(copied, f"{COMMITS}/image-00003.json", files, num_renames=num_renames)
    report = verify(copied)
    assert (report.faults, report.is_sound) == ([], True)
    assert report.notes == [f"{record} is unfinished; run the same build again"]
    assert roll_forward(LocalStorage(copied), record)
    assert verify(copied).notes == []


@pytest.mark.parametrize("num_renames", [0, 1])
def test_another_attempt_at_a_unit_that_was_not_finished_is_a_note(
    copied: Path, num_renames: int
) -> None:
    paths = ["teachers/tiny/image.zarr/c/3/0/0", "teachers/tiny/images/00003.parquet"]
    values = bytearray((copied / paths[0]).read_bytes())
    values[:16] = values[16:32]
    files = {paths[0]: bytes(values), paths[1]: (copied / paths[1]).read_bytes()}
    record = commit_and_die(
        copied, f"{COMMITS}/image-00003.json", files, attempt=1, num_renames=num_renames
    )
    report = verify(copied)
    assert (report.faults, report.is_sound) == ([], True)
    assert report.notes == [f"{record} is unfinished; run the same build again"]
    damaged = copied / paths[1]  # by somebody else, though a commit stands open
    damaged.write_bytes(damaged.read_bytes()[:-1])
    [fault] = faults(copied)
    assert fault.startswith(f"{paths[1]} is damaged")


def test_files_of_a_plan_that_was_not_finished_are_no_orphans(copied: Path) -> None:
    path = "catalog/samples-00003.parquet"
    fields = decode_record((copied / "catalog/append-00001.json").read_bytes(), where="")
    files = DyingFiles(copied, num_renames=1)
    commit = Transaction(files, "catalog/append-00002.json")
    commit.add(path, b"x")
    commit.add("catalog/texts-00003.parquet", b"x")
    with pytest.raises(Killed):
        commit.commit({**fields, "generation": 2})
    assert (copied / path).exists()
    report = verify(copied)
    assert report.faults == []
    assert report.notes == ["catalog/append-00002.json is unfinished; run the same build again"]


def test_a_torn_intent_is_named_with_what_to_do(copied: Path) -> None:
    (copied / f"{COMMITS}/image-00009.json.intent").write_bytes(b"{")
    [fault] = faults(copied)
    assert fault.startswith(f"{COMMITS}/image-00009.json.intent is not a complete record")
    assert fault.endswith("remove that file and run the same build again")


def test_a_plan_without_teacher_is_no_finished_cache(copied: Path) -> None:
    shutil.rmtree(copied / "teachers")
    assert faults(copied) == ["the cache has no teacher and no embeddings; run siglip2-cache build"]


def test_arrays_that_did_not_grow_with_the_catalog_are_named(copied: Path) -> None:
    (copied / f"{COMMITS}/arrays-00001.json").unlink()
    for modality, num_rows, row_shape in (("image", 15, [2, 8]), ("text", 10, [8])):
        path = f"teachers/tiny/{modality}.zarr/zarr.json"
        metadata = json.loads((copied / path).read_text())
        metadata["shape"] = [num_rows, *row_shape]
        record = "teachers/tiny/teacher.json"
        rewrite(copied, path, json.dumps(metadata).encode(), record=record)
    assert faults(copied) == [
        "teachers/tiny/image.zarr/zarr.json has shape [15, 2, 8], the catalog needs [22, 2, 8]; "
        "run the same build again",
        "teachers/tiny/text.zarr/zarr.json has shape [10, 8], the catalog needs [15, 8]; "
        "run the same build again",
    ]


def test_the_record_of_an_older_attempt_is_no_orphan(copied: Path) -> None:
    fields = decode_record((copied / f"{COMMITS}/image-00001.json").read_bytes(), where="")
    (copied / f"{COMMITS}/image-00001.r1.json").write_bytes(encode_record({**fields, "attempt": 1}))
    assert verify(copied).is_sound


# -- values: the checksums fit, what they protect does not


def _set(row: int, value: float) -> Callable[[np.ndarray], None]:
    def change(rows: np.ndarray) -> None:
        rows[row, ..., :] = value

    return change


def _scale(row: int, factor: float) -> Callable[[np.ndarray], None]:
    def change(rows: np.ndarray) -> None:
        rows[row] *= factor

    return change


@pytest.mark.parametrize(
    ("modality", "unit", "change", "expected"),
    [
        (
            "image",
            3,
            _set(1, np.nan),
            "1 image rows of unit 3 are not finite although not rejected",
        ),
        ("text", 0, _set(1, np.inf), "1 text rows of unit 0 are not finite although not rejected"),
        ("image", 3, _set(1, 0), "1 image rows of unit 3 are zero (first: row 19"),
        ("image", 3, _scale(1, 1.01), "1 image rows of unit 3 are not of norm 1 (first: row 19"),
        ("text", 2, _scale(0, 0.99), "1 text rows of unit 2 are not of norm 1 (first: row 12"),
        (
            "image",
            1,
            _set(2, 0.25),
            "1 image rows of unit 1 are rejected but not NaN (first: row 8",
        ),
    ],
)
def test_wrong_values_are_named_with_their_first_row(
    copied: Path,
    modality: str,
    unit: int,
    change: Callable[[np.ndarray], None],
    expected: str,
) -> None:
    change_rows(copied, modality, unit, change)
    [fault] = faults(copied)
    assert fault.startswith(f"tiny: {expected}")
    assert f"{COMMITS}/{modality}-{unit:05d}.json" in fault


def test_one_view_of_a_row_is_enough_to_be_wrong(copied: Path) -> None:
    def change(rows: np.ndarray) -> None:
        rows[0, 1] = 0  # row 0, view 1
        rows[2, 0] = np.nan

    change_rows(copied, "image", 0, change)
    zero, not_finite = sorted(faults(copied), reverse=True)
    assert "1 image rows of unit 0 are zero (first: row 0, " in zero
    assert "1 image rows of unit 0 are not finite although not rejected (first: row 2" in not_finite


def test_a_unit_of_another_length_is_named(copied: Path) -> None:
    record = f"{COMMITS}/image-00002.json"
    change_record(copied, record, lambda fields: fields.update(num_rows=4))
    assert faults(copied) == [f"{record} has 4 rows, 3 were planned"]


def test_a_shard_that_is_not_its_units_is_named(copied: Path) -> None:
    path = "teachers/tiny/text.zarr/c/2/0"
    other = (copied / "teachers/tiny/text.zarr/c/0/0").read_bytes()
    rewrite(copied, path, other, record=f"{COMMITS}/text-00002.json")
    [fault] = faults(copied)
    assert "c/2/0 " in fault
    assert "does not match the record of its unit (3 rows" in fault


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda frame: frame[1:], "does not contain the rows of "),
        (lambda frame: frame.with_columns(pl.col("row") + 1), "does not contain the rows of "),
        (
            lambda frame: frame.with_columns(
                sha256=pl.when(pl.col("row") == 19).then(None).otherwise("sha256")
            ),
            "has other rejected rows than ",
        ),
    ],
)
def test_pictures_that_do_not_fit_their_unit_are_named(
    copied: Path, change: Callable[[pl.DataFrame], pl.DataFrame], expected: str
) -> None:
    path, record = "teachers/tiny/images/00003.parquet", f"{COMMITS}/image-00003.json"
    change_part(copied, path, change, record=record)
    assert faults(copied)[0].startswith(f"{path} {expected}{record}")


# -- the catalog


@pytest.mark.parametrize(
    ("table", "change", "expected"),
    [
        (
            "samples",
            lambda frame: frame[:-1],
            ["catalog: the rows of samples (18) differ from the plan (19)"],
        ),
        (
            "samples",
            lambda frame: frame.reverse(),
            ["catalog: the rows of samples (19) differ from the plan (19)"],
        ),
        (
            "samples",
            lambda frame: frame.with_columns(key=pl.lit("photos/0000")),
            ["catalog: 4 keys are repeated"],
        ),
        (
            "texts",
            lambda frame: frame.with_columns(text=pl.lit("a cat")),
            ["catalog: 3 texts are repeated"],
        ),
        (
            "captions",
            lambda frame: frame.with_columns(row=pl.lit(16, pl.Int64)),
            ["catalog: 4 captions refer to a row that does not exist"],
        ),
        (
            "captions",
            lambda frame: frame.with_columns(text_row=pl.lit(10, pl.Int64)),
            ["catalog: 4 captions refer to a text_row that does not exist"],
        ),
        (
            "captions",
            lambda frame: frame[1:],
            ["catalog: 14 captions, 15 were planned"],
        ),
        ("views", lambda frame: frame[1:], ["catalog: not every sample has 2 views"]),
        (
            "views",
            lambda frame: frame.with_columns(
                top=pl.when(pl.int_range(pl.len()) >= 3).then("top"),
                flip=pl.lit(None, pl.Boolean),
            )[:4],
            ["catalog: 3 views have no top", "catalog: 4 views have no flip"],
        ),
    ],
)
def test_a_catalog_that_contradicts_itself_is_named(
    copied: Path, table: str, change: Callable[[pl.DataFrame], pl.DataFrame], expected: list[str]
) -> None:
    number = 2 if table == "samples" else 1
    path = f"catalog/{table}-{number:05d}.parquet"
    change_part(copied, path, change, record="catalog/append-00001.json")
    assert [fault for fault in faults(copied) if fault in expected] == expected
    assert all(fault.startswith("catalog: ") for fault in faults(copied))


def test_a_damaged_plan_cannot_be_opened_at_all(copied: Path) -> None:
    (copied / "cache.json").write_bytes(b"{}")
    with pytest.raises(DamagedCacheError, match=r"cache\.json is not a complete record"):
        verify(copied)


def _is_record(path: str) -> bool:
    is_plan = path == "cache.json" or path.startswith("catalog/append-")
    is_settings = path.endswith(("/teacher.json", "/pixels.json"))
    return is_plan or is_settings or "/commits/" in path


# -- how much of it is read, and held


def test_each_object_of_a_cache_in_a_store_is_fetched_once(
    bucket: MemoryBucket, each: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SIGLIP2_CACHE_DIR", str(tmp_path / "copies"))
    cache = open_cache(bucket.put_folder(each, "c"))
    cache.commits()  # records, which are read when a cache is opened
    fetched: Counter[str] = Counter()

    def note(method: str, path: str) -> None:
        fetched.update([path.partition("/c/")[2]] * (method == "cat_file"))

    bucket.before = note
    report = verify_cache(cache)
    assert report.faults == []
    whole = {path for path in all_files(each) if not _is_record(path)}
    assert {path: fetched[path] for path in whole} == dict.fromkeys(whole, 1)
    assert report.num_files == len(whole)
    assert not (tmp_path / "copies").exists()  # nor is the disk filled with copies


def test_damage_in_a_store_is_named_though_a_sound_copy_lies_here(
    bucket: MemoryBucket, copied: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SIGLIP2_CACHE_DIR", str(tmp_path / "copies"))
    url = bucket.put_folder(copied, "c")
    cache = open_cache(url)
    cache.text_targets().read([0])
    cache.samples().collect()
    for path in ("catalog/samples-00000.parquet", "teachers/tiny/text.zarr/c/0/0"):
        whole = (copied / path).read_bytes()
        bucket.put(f"c/{path}", bytes([whole[0] ^ 1]) + whole[1:])
        [fault] = verify_cache(open_cache(url)).faults
        assert fault.startswith(f"{path} is damaged")
        bucket.put(f"c/{path}", whole)


def test_no_file_is_held_whole(each: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "READ_BYTES", 100)
    largest: list[int] = []
    real = LocalStorage.read

    def read(self: LocalStorage, path: str) -> bytes:
        assert _is_record(path), f"{path} is read whole"
        return real(self, path)

    monkeypatch.setattr(LocalStorage, "read", read)
    take = ShardReader.take
    monkeypatch.setattr(
        ShardReader, "take", lambda self, piece: (largest.append(len(piece)), take(self, piece))
    )
    whole = verify(each)
    assert whole.is_sound
    assert whole.num_rows["image"] > 0
    assert max(largest) == 100


def test_what_reads_rows_is_made_once_an_array_not_once_a_unit(
    write_foreign_cache: Callable[..., "ForeignCache"],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[str] = []
    real = Targets.__init__

    def init(self: Targets, *args: Any) -> None:
        made.append(args[3])
        real(self, *args)

    monkeypatch.setattr(Targets, "__init__", init)
    assert verify(write_foreign_cache(tmp_path / "raw").root).is_sound
    assert made == []
    assert verify(write_foreign_cache(tmp_path / "packed", compressed=True).root).is_sound
    assert made == ["tiny", "tiny"]  # images, texts
