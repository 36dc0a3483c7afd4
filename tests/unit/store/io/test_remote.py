"""A cache's files, wherever they lie: the same operations give the same, and a store's faults are met."""

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from kit.vectors import write_vectors

from siglip2_cache import open_cache
from siglip2_cache.errors import DamagedCacheError, DiskFullError, SettingError, StorageError
from siglip2_cache.store.format.records import sha256_hex
from siglip2_cache.store.format.transaction import Transaction, clear_garbage, roll_forward
from siglip2_cache.store.io import location as locations
from siglip2_cache.store.io.download_cache import LocalCopies, copies_of
from siglip2_cache.store.io.local import LocalFiles
from siglip2_cache.store.io.location import parse_location
from siglip2_cache.store.io.remote import ObjectFiles
from siglip2_cache.store.io.storage import Files, open_files

if TYPE_CHECKING:
    from kit.s3 import S3

RECORD = "teachers/t/commits/image-00000.json"


@pytest.fixture
def memory() -> Iterator[str]:
    """An empty place in fsspec's store in memory."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    yield "memory://bucket"
    store.store.clear()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is tried again be tried at once, and no longer than needed."""
    monkeypatch.setattr(locations, "_WAITS_S", (0.01,) * 6)


@pytest.fixture(params=["local", "memory", "s3"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    if request.param == "local":
        return open_files(tmp_path / "cache")
    if request.param == "memory":
        root = f"{request.getfixturevalue('memory')}/cache"
    else:
        root = f"{request.getfixturevalue('s3').url}/cache"
    return open_files(parse_location(root), LocalCopies(tmp_path / "copies"))


@pytest.fixture
def remote(s3: "S3", soon: None, tmp_path: Path) -> ObjectFiles:
    found = open_files(parse_location(f"{s3.url}/cache"), LocalCopies(tmp_path / "copies"))
    assert isinstance(found, ObjectFiles)
    return found


def described(data: bytes) -> dict[str, object]:
    return {"num_bytes": len(data), "sha256": sha256_hex(data)}


def test_every_storage_does_the_same(files: Files) -> None:
    assert files.root_kind() == "missing"
    assert files.names("") == []
    assert list(files.walk()) == []
    files.check_exclusive()
    files.write("a/b/one", b"1")
    files.write("a/b/one", bytearray(b"once more"))
    files.write("a/two", memoryview(b"2"))
    assert files.root_kind() == "folder"
    assert files.read("a/b/one") == b"once more"
    assert files.read_head("a/b/one", 4) == b"once"
    assert files.describe("a/b/one") == described(b"once more")
    assert (files.num_bytes("a/b/one"), files.num_bytes("a/b"), files.num_bytes("x")) == (
        9,
        None,
        None,
    )
    assert (files.exists("a/two"), files.exists("a/b"), files.exists("a/x")) == (True, False, False)
    assert files.names("a") == ["b", "two"]
    assert files.names("x") == []
    assert sorted(files.walk()) == ["a/b/one", "a/two"]
    assert files.rename("a/two", "a/b/one")
    assert not files.rename("a/two", "a/b/one")
    assert files.read("a/b/one") == b"2"
    assert files.create("a/new", b"n", token="t")
    assert not files.create("a/new", b"other", token="u")
    assert files.read("a/new") == b"n"
    files.replace("a/new", b"m")
    files.sync_folders(["a/new"])
    with files.writing("a/large") as append:
        append(b"1" * 10)
        append(b"2")
    assert files.read("a/large") == b"1" * 10 + b"2"
    files.remove("a/new")
    files.remove("a/new")
    with pytest.raises(FileNotFoundError):
        files.read("a/new")
    with pytest.raises(FileNotFoundError):
        files.describe("a/new")
    assert files.fetch("a/large", described(b"1" * 10 + b"2")).read_bytes() == b"1" * 10 + b"2"
    assert "a/large" in files.where("a/large")


def test_a_commit_is_published_whole_by_one_of_many(files: Files) -> None:
    def make(who: int) -> bool:
        commit = Transaction(files, RECORD)
        commit.add("teachers/t/image.zarr/c/0/0/0", bytes([who]) * 100)
        commit.add("teachers/t/images/00000.parquet", bytes([who]) * 10)
        return commit.commit({"who": who})

    with ThreadPoolExecutor(6) as pool:
        won = list(pool.map(make, range(6)))
    assert won.count(True) == 1
    who = won.index(True)
    assert files.read("teachers/t/image.zarr/c/0/0/0") == bytes([who]) * 100
    assert files.read("teachers/t/images/00000.parquet") == bytes([who]) * 10
    clear_garbage(files)
    assert len(list(files.walk())) == 3


def test_a_commit_whose_maker_died_is_finished_by_the_next(files: Files) -> None:
    def die(source: str, target: str) -> bool:
        raise DiedError

    commit = Transaction(files, RECORD)
    commit.add("shard", b"s")
    commit.files.__dict__["rename"] = die
    with pytest.raises(DiedError):
        commit.commit({"who": 1})
    del commit.files.__dict__["rename"]
    assert not files.exists(RECORD)
    assert roll_forward(files, RECORD)
    assert files.read("shard") == b"s"
    assert sorted(files.walk()) == ["shard", RECORD]


class DiedError(Exception):
    """The process that commits is killed."""


def die_before_the_record(files: Files, names: list[str]) -> None:
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
    files = open_files(parse_location(f"{memory}/cache"), LocalCopies(tmp_path / "copies"))
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
    files = open_files(parse_location(f"{memory}/cache"), LocalCopies(tmp_path / "copies"))
    die_before_the_record(files, ["shard"])
    objects = fsspec.filesystem("memory").store
    files.write("shard", b"SHARD" if age == "older" else b"before")
    if age == "older":
        objects["/bucket/cache/shard"].created -= timedelta(hours=1)
    with pytest.raises(DamagedCacheError, match=r"shard is not what the unfinished commit"):
        roll_forward(files, RECORD)
    files.write("shard", b"shard")
    objects["/bucket/cache/shard"].created -= timedelta(hours=1)
    assert roll_forward(files, RECORD)


def test_objects_get_their_names_many_at_a_time(
    memory: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = open_files(parse_location(f"{memory}/cache"), LocalCopies(tmp_path / "copies"))
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
    s3: "S3", remote: ObjectFiles
) -> None:
    from kit.s3 import Fault

    s3.inject(Fault(what="lose-answer", kinds=("put-new",), times=1))
    assert remote.create("record", b"mine", token="")
    assert not remote.create("record", b"another's", token="")
    assert remote.read("record") == b"mine"


@pytest.mark.parametrize("what", ["slow-down", "internal-error", "cut-answer", "lose-answer"])
def test_every_operation_is_made_again_until_it_succeeds(
    s3: "S3", remote: ObjectFiles, what: str
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
    memory: str, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Azure: the copy is an object without bytes at first, and fails where its source goes away."""
    from siglip2_cache.store.io import remote as object_files

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

    monkeypatch.setattr(object_files, "_COPY_LATER", ("memory",))
    monkeypatch.setattr(type(store), "cp_file", copy)
    monkeypatch.setattr(type(store), "info", info)
    files = open_files(parse_location(f"{memory}/cache"))
    files.write("a.partial", b"12345")
    assert files.rename("a.partial", "a")
    assert files.read("a") == b"12345"
    assert not files.exists("a.partial")


def test_a_store_that_does_not_answer_is_named_and_no_secret_is(
    s3: "S3", remote: ObjectFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kit.s3 import KEY_ID, SECRET, Fault

    remote.write("a", b"1")
    s3.inject(Fault(what="slow-down"))
    monkeypatch.setattr(locations, "_WAITS_S", ())
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    with pytest.raises(
        StorageError, match=r"^s3://bucket-\d+/cache/a cannot be had: .*request rate"
    ) as told:
        remote.read("a")
    assert "run the same command again" in str(told.value)
    assert KEY_ID not in str(told.value)
    assert SECRET not in str(told.value)


def test_denied_access_is_said_at_once(s3: "S3", remote: ObjectFiles) -> None:
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
        open_files(parse_location("memory://bucket/c")).check_exclusive()


def test_a_store_is_not_refused_because_another_process_clears_garbage(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = ObjectFiles(parse_location(f"{memory}/c"))
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


class TestCopies:
    """What is fetched of a store is checked, kept, shared and bounded."""

    def test_a_second_look_asks_nothing(self, s3: "S3", remote: ObjectFiles) -> None:
        remote.write("a", b"x" * 100)
        first = remote.fetch("a", described(b"x" * 100))
        s3.forget()
        assert remote.fetch("a", described(b"x" * 100)) == first
        assert s3.requests() == []

    def test_many_at_once_fetch_it_once(self, s3: "S3", remote: ObjectFiles) -> None:
        data = bytes(range(256)) * 400
        remote.write("a", data)
        s3.forget()
        start = threading.Barrier(8)

        def fetch(_: int) -> bytes:
            start.wait()
            return remote.fetch("a", described(data)).read_bytes()

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(fetch, range(8))) == {data}
        assert s3.counts() == {"get-range": 1}

    def test_an_object_that_changed_is_found_out(self, s3: "S3", remote: ObjectFiles) -> None:
        remote.write("a", b"other bytes")
        with pytest.raises(
            DamagedCacheError, match=r"cache/a is not what its record describes \(11 bytes"
        ):
            remote.fetch("a", described(b"their bytes"))
        assert not list(Path(remote.copies.folder or "").rglob("[0-9a-f]" * 64))

    def test_the_oldest_give_way(self, memory: str, tmp_path: Path) -> None:
        import os
        import time

        copies = LocalCopies(tmp_path, max_bytes=2500)
        files = ObjectFiles(parse_location(memory), copies)
        paths: list[Path] = []
        for i in range(4):
            data = bytes([i]) * 1000
            files.write(f"{i}", data)
            paths.append(files.fetch(f"{i}", described(data)))
            os.utime(paths[-1], (time.time() - 100 + i,) * 2)
        assert [path.exists() for path in paths] == [False, False, True, True]

    def test_a_failed_copy_leaves_nothing(self, memory: str, tmp_path: Path) -> None:
        files = ObjectFiles(parse_location(memory), LocalCopies(tmp_path))
        files.write("a", b"other bytes")
        with pytest.raises(DamagedCacheError):
            files.fetch("a", described(b"their bytes"))
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []

    def test_what_a_killed_process_left_gives_way_and_foreign_files_stay(
        self, memory: str, tmp_path: Path
    ) -> None:
        import os

        digest = "ab" * 32
        left = tmp_path / "ab" / f"{digest}.0123456789ab.partial"
        at_work = tmp_path / "ab" / f"{digest}.ba9876543210.partial"
        foreign = [tmp_path / "blobs" / digest, tmp_path / "ab" / "cache.json.partial"]
        for path in (left, at_work, *foreign):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(bytes(1000))
        for path in (left, *foreign):
            os.utime(path, (0, 0))
        files = ObjectFiles(parse_location(memory), LocalCopies(tmp_path, max_bytes=2500))
        files.write("a", b"x" * 1000)
        files.fetch("a", described(b"x" * 1000))
        assert not left.exists()
        assert at_work.exists()
        assert all(path.exists() for path in foreign)

    def test_without_locks_no_copy_is_written_by_two(
        self, memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As on a network file system that has none: one copy begins while another is half done."""
        from siglip2_cache.store.io import download_cache as copies
        from siglip2_cache.store.io import locks

        monkeypatch.setattr(locks, "try_lock", lambda descriptor: True)
        monkeypatch.setattr(copies, "_PIECE_BYTES", 4)
        files = ObjectFiles(parse_location(memory), LocalCopies(tmp_path))
        data = b"abcdefgh"
        files.write("a", data)
        plain, is_half = copies.read_bytes, False

        def read(location: locations.Location, start: int, length: int) -> bytes:
            nonlocal is_half
            if start == 4 and not is_half:
                is_half = True
                assert files.fetch("a", described(data)).read_bytes() == data
            return plain(location, start, length)

        monkeypatch.setattr(copies, "read_bytes", read)
        assert files.fetch("a", described(data)).read_bytes() == data

    def test_the_first_failure_ends_fetching(
        self, memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        files = ObjectFiles(parse_location(memory), LocalCopies(tmp_path))
        asked: list[str] = []

        def fetch(path: str, told: object) -> Path:
            asked.append(path)
            threading.Event().wait(0.01)
            raise StorageError(path)

        monkeypatch.setattr(files, "fetch", fetch)
        with pytest.raises(StorageError, match=r"^0$"):
            files.fetch_all([(f"{i}", {}) for i in range(200)])
        assert len(asked) < 100

    def test_what_never_fits_is_refused(self, memory: str, tmp_path: Path) -> None:
        files = ObjectFiles(parse_location(memory), LocalCopies(tmp_path, max_bytes=10))
        files.write("a", b"x" * 11)
        with pytest.raises(
            DiskFullError, match=r"a copy of 11 B does not fit into .*--cache-limit"
        ):
            files.fetch("a", described(b"x" * 11))

    def test_a_limit_is_a_number_of_bytes(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        assert copies_of(None, "1.5 TB") == LocalCopies(None, 1_500_000_000_000)
        with pytest.raises(
            SettingError, match=r"--cache-limit must be .* such as 500GB, got 'much'"
        ):
            copies_of(None, "much")
        monkeypatch.setenv("SIGLIP2_CACHE_LIMIT", "0.5 pints")
        with pytest.raises(SettingError, match=re.escape("$SIGLIP2_CACHE_LIMIT must be")):
            LocalCopies(tmp_path).holds(1)


class TestReading:
    """A cache in a store gives the bits of the same cache on this machine."""

    @pytest.fixture
    def both(self, memory: str, tmp_path: Path) -> tuple[Path, str]:
        draw = np.random.default_rng(0)
        local = write_vectors(
            tmp_path / "local",
            {
                "image": draw.normal(size=(300, 3, 16)).astype(np.float16),
                "text": draw.normal(size=(500, 16)).astype(np.float16),
            },
            shard_rows=128,
        )
        files, root = open_files(parse_location(f"{memory}/cache")), LocalFiles(local)
        for path in root.walk():
            files.write(path, root.read(path))
        return local, f"{memory}/cache"

    @pytest.mark.parametrize("limit", [None, 50_000, 20_000])
    def test_rows_are_those_of_the_local_cache(
        self, both: tuple[Path, str], tmp_path: Path, limit: int | None
    ) -> None:
        local, url = both
        here, there = open_cache(local), open_cache(url, copies=LocalCopies(tmp_path / "c", limit))
        draw = np.random.default_rng(1)
        rows, views = draw.integers(0, 300, 400), draw.integers(0, 3, 400)
        expected = here.image_targets().read(rows, views)
        np.testing.assert_array_equal(there.image_targets().read(rows, views), expected)
        texts = draw.permutation(500)
        np.testing.assert_array_equal(
            there.text_targets().read(texts), here.text_targets().read(texts)
        )
        found, valid = there.image_targets().read_masked(np.array([299, 300, 0]))
        assert valid.tolist() == [True, False, True]
        np.testing.assert_array_equal(found[[0, 2]], here.image_targets().read(np.array([299, 0])))
        held = sum(path.stat().st_size for path in (tmp_path / "c").rglob("*") if path.is_file())
        assert held <= (limit or held)

    def test_it_survives_a_pickle(self, both: tuple[Path, str], tmp_path: Path) -> None:
        import pickle

        targets = open_cache(both[1], copies=LocalCopies(tmp_path / "c")).text_targets()
        again = pickle.loads(pickle.dumps(targets))
        np.testing.assert_array_equal(again.read([3, 1]), targets.read([3, 1]))

    def test_a_forked_process_reads_on(self, s3: "S3", tmp_path: Path) -> None:
        import os

        local = write_vectors(
            tmp_path / "local",
            {"text": np.arange(1, 1025, dtype=np.float16).reshape(64, 16)},
            shard_rows=32,
        )
        files, root = open_files(parse_location(f"{s3.url}/cache")), LocalFiles(local)
        for path in root.walk():
            files.write(path, root.read(path))
        for limit in (None, 100):  # shards copied, and rows asked for one by one
            copies = LocalCopies(tmp_path / f"copies-{limit}", limit)
            cache = open_cache(f"{s3.url}/cache", copies=copies)
            targets = cache.text_targets()
            targets.read([0, 20])
            child = os.fork()
            if child == 0:
                import signal

                signal.alarm(20)
                try:
                    os._exit(0 if targets.read([63, 40]).all() else 1)
                except BaseException:
                    os._exit(2)
            assert os.waitpid(child, 0)[1] == 0, limit

    def test_no_rows_are_no_requests(self, both: tuple[Path, str], tmp_path: Path) -> None:
        cache = open_cache(both[1], copies=LocalCopies(tmp_path / "c", 20_000))
        targets = cache.image_targets()
        assert targets.read([]).shape == (0, 16)
        found, valid = targets.read_masked([300, -1])
        assert np.isnan(found).all()
        assert not valid.any()

    def test_shards_of_another_program_are_not_taken_for_rows(
        self, both: tuple[Path, str], tmp_path: Path
    ) -> None:
        import json

        files = ObjectFiles(parse_location(both[1]))
        path = "teachers/vectors/text.zarr/zarr.json"
        metadata = json.loads(files.read(path))
        metadata["codecs"] = [*metadata["codecs"], {"name": "zstd", "configuration": {"level": 0}}]
        files.write(path, json.dumps(metadata).encode())
        targets = open_cache(both[1], copies=LocalCopies(tmp_path / "c", 4_000)).text_targets()
        with pytest.raises(DamagedCacheError, match="cannot be decoded"):
            targets.read([3, 1])

    def test_a_cache_that_is_read_again_keeps_its_copies_where_they_are(
        self, both: tuple[Path, str], tmp_path: Path
    ) -> None:
        cache = open_cache(both[1], copies=LocalCopies(tmp_path / "c"))
        now = cache.renewed().files
        assert isinstance(now, ObjectFiles)
        assert now.copies.folder == tmp_path / "c"

    def test_a_lost_shard_is_named(self, both: tuple[Path, str], tmp_path: Path) -> None:
        ObjectFiles(parse_location(both[1])).remove("teachers/vectors/text.zarr/c/1/0")
        targets = open_cache(both[1], copies=LocalCopies(tmp_path / "c")).text_targets()
        with pytest.raises(DamagedCacheError, match=r"shard is missing .*c/1/0"):
            targets.read([200])


def test_a_copy_without_room_is_no_damage(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    from siglip2_cache.store.format import layout

    local = LocalFiles(
        write_vectors(tmp_path / "local", {"image": np.ones((4, 1, 8), np.float16)}, shard_rows=4)
    )
    files = open_files(parse_location(f"{memory}/cache"))
    for path in local.walk():
        files.write(path, local.read(path))
    cache = open_cache(f"{memory}/cache", copies=LocalCopies(tmp_path / "copies", 10))
    images = layout.images_part("vectors", 0)
    unit = SimpleNamespace(files={images: described(b"x" * 11)})
    monkeypatch.setattr(
        cache, "commits", lambda teacher: SimpleNamespace(units={("image", 0): unit})
    )
    with pytest.raises(DiskFullError, match="does not fit"):
        cache.seen("vectors", 0)
