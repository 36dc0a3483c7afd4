"""The suite of tests that every Storage passes: this machine, fsspec in memory, S3."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from siglip2_cache.store.format.records import sha256_hex
from siglip2_cache.store.format.transaction import Transaction, clear_garbage, roll_forward
from siglip2_cache.store.io.download_cache import LocalCopies
from siglip2_cache.store.io.location import parse_location
from siglip2_cache.store.io.storage import Storage, open_storage

RECORD = "teachers/t/commits/image-00000.json"


@pytest.fixture(params=["local", "memory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return open_storage(tmp_path / "cache")
    if request.param == "memory":
        root = f"{request.getfixturevalue('memory')}/cache"
    else:
        root = f"{request.getfixturevalue('s3').url}/cache"
    return open_storage(parse_location(root), LocalCopies(tmp_path / "copies"))


def describe(data: bytes) -> dict[str, object]:
    return {"num_bytes": len(data), "sha256": sha256_hex(data)}


def test_an_empty_storage_has_no_files(storage: Storage) -> None:
    assert storage.root_kind() == "missing"
    assert storage.names("") == []
    assert storage.names("x") == []
    assert list(storage.walk()) == []
    assert storage.num_bytes("x") is None
    assert not storage.exists("x")
    for read in (storage.read, storage.describe, lambda path: list(storage.pieces(path))):
        with pytest.raises(FileNotFoundError):
            read("x")
    with pytest.raises(FileNotFoundError):
        storage.read_head("x", 4)


def test_a_name_can_be_created_exclusively_in_every_storage(storage: Storage) -> None:
    storage.check_exclusive()
    assert list(storage.walk()) == []


def test_what_was_written_is_read(storage: Storage) -> None:
    storage.write("a/b/one", b"1")
    storage.write("a/b/one", bytearray(b"once more"))
    storage.write("a/two", memoryview(b"2"))
    storage.write_unsynced("three", b"33")
    storage.sync_folders(["a/b/one", "a/two"])
    assert storage.root_kind() == "folder"
    assert storage.read("a/b/one") == b"once more"
    assert storage.read_head("a/b/one", 4) == b"once"
    assert b"".join(storage.pieces("a/b/one")) == b"once more"
    assert storage.describe("a/b/one") == describe(b"once more")
    assert storage.num_bytes("a/b/one") == 9
    assert storage.num_bytes("a/b") is None
    assert storage.exists("a/two")
    assert not storage.exists("a/b")
    assert storage.names("a") == ["b", "two"]
    assert sorted(storage.walk()) == ["a/b/one", "a/two", "three"]


def test_a_large_file_is_read_in_pieces(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("local", "remote"):
        monkeypatch.setattr(f"siglip2_cache.store.io.{module}.READ_BYTES", 4)
    storage.write("a", b"0123456789")
    assert list(storage.pieces("a")) == [b"0123", b"4567", b"89"]
    assert storage.describe("a") == describe(b"0123456789")


def test_a_large_file_is_written_in_pieces(storage: Storage) -> None:
    with storage.writing("a/large") as append:
        append(b"1" * 10)
        append(b"2")
    assert storage.read("a/large") == b"1" * 10 + b"2"


def test_a_file_whose_writer_fails_does_not_exist(storage: Storage) -> None:
    with pytest.raises(ValueError, match="stop"), storage.writing("a") as append:  # noqa: PT012
        append(b"1")
        raise ValueError("stop")
    assert not storage.exists("a")


def test_a_rename_replaces_the_target_and_says_whether_there_was_a_source(storage: Storage) -> None:
    storage.write("one", b"1")
    storage.write("two", b"2")
    assert storage.rename("two", "one")
    assert not storage.rename("two", "one")
    assert storage.read("one") == b"2"
    storage.write("three", b"3")
    assert storage.rename_all({"four": "three", "five": "gone"}) == {"four": True, "five": False}
    assert sorted(storage.walk()) == ["four", "one"]


def test_a_name_is_created_once_and_can_be_replaced(storage: Storage) -> None:
    assert storage.create("a/new", b"n", token="t")
    assert not storage.create("a/new", b"other", token="u")
    assert storage.read("a/new") == b"n"
    storage.replace("a/new", b"m")
    assert storage.read("a/new") == b"m"
    assert list(storage.walk()) == ["a/new"]


def test_files_are_removed_if_they_exist(storage: Storage) -> None:
    for path in ("a", "b", "c"):
        storage.write(path, b"1")
    storage.remove("a")
    storage.remove("a")
    storage.remove_all(["a", "b"])
    assert list(storage.walk()) == ["c"]


def test_a_file_is_fetched_to_this_machine(storage: Storage) -> None:
    storage.write("a/one", b"1")
    storage.write("a/two", b"22")
    found = storage.fetch("a/one", describe(b"1"))
    assert found.read_bytes() == b"1"
    both = storage.fetch_all([("a/two", describe(b"22")), ("a/one", describe(b"1"))])
    assert [path.read_bytes() for path in both] == [b"22", b"1"]
    assert storage.fits_locally(3)
    assert storage.local_path("a/one") == (None if storage.is_remote else found)
    with pytest.raises(FileNotFoundError):
        storage.fetch("gone", describe(b"other")).read_bytes()


def test_a_path_is_named_in_full_in_messages(storage: Storage) -> None:
    assert storage.where("a/one") == f"{storage.root}/a/one"


def test_a_free_folder_can_be_locked(storage: Storage) -> None:
    with storage.locked("a") as is_alone:
        assert is_alone
    assert list(storage.walk()) == []


def test_a_commit_is_published_whole_by_one_of_many(storage: Storage) -> None:
    def make(who: int) -> bool:
        commit = Transaction(storage, RECORD)
        commit.add("teachers/t/image.zarr/c/0/0/0", bytes([who]) * 100)
        commit.add("teachers/t/images/00000.parquet", bytes([who]) * 10)
        return commit.commit({"who": who})

    with ThreadPoolExecutor(6) as pool:
        won = list(pool.map(make, range(6)))
    assert won.count(True) == 1
    who = won.index(True)
    assert storage.read("teachers/t/image.zarr/c/0/0/0") == bytes([who]) * 100
    assert storage.read("teachers/t/images/00000.parquet") == bytes([who]) * 10
    clear_garbage(storage)
    assert len(list(storage.walk())) == 3


class DiedError(Exception):
    """The process that commits is killed."""


def test_a_commit_whose_maker_died_is_finished_by_the_next(storage: Storage) -> None:
    def die(source: str, target: str) -> bool:
        raise DiedError

    commit = Transaction(storage, RECORD)
    commit.add("shard", b"s")
    commit.files.__dict__["rename"] = die
    with pytest.raises(DiedError):
        commit.commit({"who": 1})
    del commit.files.__dict__["rename"]
    assert not storage.exists(RECORD)
    assert roll_forward(storage, RECORD)
    assert storage.read("shard") == b"s"
    assert sorted(storage.walk()) == ["shard", RECORD]
