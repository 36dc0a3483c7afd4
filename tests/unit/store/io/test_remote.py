"""Storage in an object store: few requests, retries, and stores that do not fit."""

import threading
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from siglip2_cache.errors import DamagedCacheError, SettingError, StorageError
from siglip2_cache.store.format.records import sha256_hex
from siglip2_cache.store.format.transaction import Transaction, clear_garbage, roll_forward
from siglip2_cache.store.io import remote as remote_module
from siglip2_cache.store.io import requests
from siglip2_cache.store.io.download_cache import LocalCopies
from siglip2_cache.store.io.location import parse_location
from siglip2_cache.store.io.remote import RemoteStorage
from siglip2_cache.store.io.storage import Storage, open_storage

if TYPE_CHECKING:
    from kit.s3 import S3

RECORD = "teachers/t/commits/image-00000.json"


def describe(data: bytes) -> dict[str, object]:
    return {"num_bytes": len(data), "sha256": sha256_hex(data)}


class DiedError(Exception):
    """The process that commits is killed."""


def die_before_the_record(files: Storage, names: list[str]) -> None:
    """Commit some files, and die when they have their names and the record is to be written."""
    commit = Transaction(files, RECORD)
    for name in names:
        commit.add(name, name.encode())
    create = files.create

    def die(path: str, data: bytes, *, token: str) -> bool:
        if path == RECORD:
            raise DiedError
        return create(path, data, token=token)

    files.__dict__["create"] = die
    with pytest.raises(DiedError):
        commit.commit({})
    del files.__dict__["create"]


def test_a_commit_of_objects_that_have_their_names_is_finished_without_fetching_them(
    memory: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = open_storage(parse_location(f"{memory}/cache"), LocalCopies(tmp_path / "copies"))
    names = [f"part-{number}" for number in range(20)]
    die_before_the_record(files, names)
    fetched: list[str] = []
    real = MemoryFileSystem.cat_file

    def cat_file(self: MemoryFileSystem, path: str, **options: Any) -> bytes:
        fetched.append(path)
        return real(self, path, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    assert roll_forward(files, RECORD)
    assert fetched == [f"/bucket/cache/{RECORD}.intent"]
    assert sorted(files.walk()) == [*sorted(names), RECORD]


@pytest.mark.parametrize("age", ["older", "other size"])
def test_an_object_that_may_be_of_an_earlier_attempt_is_compared(
    age: str, memory: str, tmp_path: Path
) -> None:
    files = open_storage(parse_location(f"{memory}/cache"), LocalCopies(tmp_path / "copies"))
    die_before_the_record(files, ["shard"])
    objects = fsspec.filesystem("memory").store
    files.write("shard", b"SHARD" if age == "older" else b"before")
    if age == "older":
        objects["/bucket/cache/shard"].created -= timedelta(hours=1)
    with pytest.raises(DamagedCacheError, match=r"shard does not match the unfinished commit"):
        roll_forward(files, RECORD)
    files.write("shard", b"shard")
    objects["/bucket/cache/shard"].created -= timedelta(hours=1)
    assert roll_forward(files, RECORD)


def test_objects_get_their_names_many_at_a_time(
    memory: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = open_storage(parse_location(f"{memory}/cache"), LocalCopies(tmp_path / "copies"))
    together = threading.Barrier(4)
    real = MemoryFileSystem.cp_file

    def cp_file(self: MemoryFileSystem, *paths: str, **options: Any) -> None:
        together.wait(60)  # until three others are being copied too
        real(self, *paths, **options)

    monkeypatch.setattr(MemoryFileSystem, "cp_file", cp_file)
    commit = Transaction(files, RECORD)
    for number in range(8):
        commit.add(f"part-{number}", b"x")
    assert commit.commit({})
    assert len(list(files.walk())) == 9


def test_an_object_whose_answer_was_lost_is_known_as_ones_own(
    s3: "S3", remote: RemoteStorage
) -> None:
    from kit.s3 import Fault

    s3.inject(Fault(what="lose-answer", kinds=("put-new",), times=1))
    assert remote.create("record", b"mine", token="")
    assert not remote.create("record", b"another's", token="")
    assert remote.read("record") == b"mine"


@pytest.mark.parametrize("what", ["slow-down", "internal-error", "cut-answer", "lose-answer"])
def test_every_operation_is_made_again_until_it_succeeds(
    s3: "S3", remote: RemoteStorage, what: str
) -> None:
    from kit.s3 import Fault

    s3.inject(Fault(what=what, every=3))  # type: ignore[arg-type]
    remote.write("a/one", b"1" * 1000)
    assert remote.read("a/one") == b"1" * 1000
    assert remote.create("a/two", b"2", token="")
    assert remote.rename("a/two", "a/three")
    assert remote.names("a") == ["one", "three"]
    assert remote.exists("a/three")
    remote.remove("a/three")
    assert not remote.exists("a/three")
    assert sum(request.fault is not None for request in s3.requests()) >= 2


def test_a_source_stays_until_a_store_that_copies_later_has_copied(
    memory: str, fast_retries: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Azure: the copy is an object without bytes at first, and fails where its source goes away."""
    store = fsspec.filesystem("memory")
    started: list[tuple[str, str]] = []
    plain_info = store.info

    def copy(self: object, source: str, target: str) -> None:
        store.pipe_file(target, b"")
        started.append((source, target))

    def info(self: object, path: str) -> object:
        found = plain_info(path)
        if path in [target for _, target in started] and len(started) < 3:
            started.append(started[0])  # asked for once more
        elif started and store.exists(started[0][0]):
            store.store[started[0][1]] = store.store[started[0][0]]
        return found

    monkeypatch.setattr(remote_module, "_ASYNCHRONOUS_COPY", ("memory",))
    monkeypatch.setattr(type(store), "cp_file", copy)
    monkeypatch.setattr(type(store), "info", info)
    files = open_storage(parse_location(f"{memory}/cache"))
    files.write("a.partial", b"12345")
    assert files.rename("a.partial", "a")
    assert files.read("a") == b"12345"
    assert not files.exists("a.partial")


def test_a_store_that_does_not_answer_is_named_and_no_secret_is(
    s3: "S3", remote: RemoteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kit.s3 import KEY_ID, SECRET, Fault

    remote.write("a", b"1")
    s3.inject(Fault(what="slow-down"))
    monkeypatch.setattr(requests, "_WAITS_S", ())
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    with pytest.raises(
        StorageError, match=r"^s3://bucket-\d+/cache/a is unreachable: .*request rate"
    ) as raised:
        remote.read("a")
    assert "run the same command again" in str(raised.value)
    assert KEY_ID not in str(raised.value)
    assert SECRET not in str(raised.value)


def test_denied_access_is_said_at_once(s3: "S3", remote: RemoteStorage) -> None:
    from kit.s3 import Fault

    s3.inject(Fault(what="access-denied"))
    with pytest.raises(PermissionError, match="the store denies access"):
        remote.read("a")
    assert len(s3.requests()) == 1


def test_a_store_that_creates_a_name_twice_is_refused(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = fsspec.get_filesystem_class("memory")
    plain = kind.pipe_file
    monkeypatch.setattr(
        kind, "pipe_file", lambda self, path, value, mode="overwrite": plain(self, path, value)
    )
    with pytest.raises(SettingError, match="memory://bucket/c ignores If-None-Match"):
        open_storage(parse_location("memory://bucket/c")).check_exclusive()


def test_a_store_is_not_refused_because_another_process_clears_garbage(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = RemoteStorage(parse_location(f"{memory}/c"))
    files.write("cache.json", b"a cache")
    create, created = files.create, list[str]()

    def clear_behind_the_first(path: str, data: bytes, *, token: str) -> bool:
        created.append(path)
        found = create(path, data, token=token)
        if len(created) == 1:
            assert clear_garbage(files) == [path]
        return found

    monkeypatch.setattr(files, "create", clear_behind_the_first)
    files.check_exclusive()
    assert len(created) == 4
    assert files.names("") == ["cache.json"]
