"""Local copies of objects: checked, kept, shared, and limited in size."""

import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from siglip2_cache.errors import DamagedCacheError, DiskFullError, SettingError, StorageError
from siglip2_cache.store.format.records import sha256_hex
from siglip2_cache.store.io import download_cache, locks
from siglip2_cache.store.io.download_cache import LocalCopies, copies_of
from siglip2_cache.store.io.location import Location, parse_location
from siglip2_cache.store.io.remote import RemoteStorage

if TYPE_CHECKING:
    from kit.s3 import S3


def describe(data: bytes) -> dict[str, object]:
    return {"num_bytes": len(data), "sha256": sha256_hex(data)}


def test_a_second_look_asks_nothing(s3: "S3", remote: RemoteStorage) -> None:
    remote.write("a", b"x" * 100)
    first = remote.fetch("a", describe(b"x" * 100))
    s3.forget()
    assert remote.fetch("a", describe(b"x" * 100)) == first
    assert s3.requests() == []


def test_many_at_once_fetch_it_once(s3: "S3", remote: RemoteStorage) -> None:
    data = bytes(range(256)) * 400
    remote.write("a", data)
    s3.forget()
    start = threading.Barrier(8)

    def fetch(_: int) -> bytes:
        start.wait()
        return remote.fetch("a", describe(data)).read_bytes()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(fetch, range(8))) == {data}
    assert s3.counts() == {"get-range": 1}


def test_an_object_that_changed_is_found_out(s3: "S3", remote: RemoteStorage) -> None:
    remote.write("a", b"other bytes")
    with pytest.raises(DamagedCacheError, match=r"cache/a does not match its record \(11 bytes"):
        remote.fetch("a", describe(b"their bytes"))
    assert not list(Path(remote.copies.folder or "").rglob("[0-9a-f]" * 64))


def test_the_oldest_give_way(memory: str, tmp_path: Path) -> None:
    copies = LocalCopies(tmp_path, max_bytes=2500)
    files = RemoteStorage(parse_location(memory), copies)
    paths: list[Path] = []
    for i in range(4):
        data = bytes([i]) * 1000
        files.write(f"{i}", data)
        paths.append(files.fetch(f"{i}", describe(data)))
        os.utime(paths[-1], (time.time() - 100 + i,) * 2)
    assert [path.exists() for path in paths] == [False, False, True, True]


def test_a_failed_copy_leaves_nothing(memory: str, tmp_path: Path) -> None:
    files = RemoteStorage(parse_location(memory), LocalCopies(tmp_path))
    files.write("a", b"other bytes")
    with pytest.raises(DamagedCacheError):
        files.fetch("a", describe(b"their bytes"))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_a_killed_process_left_gives_way_and_foreign_files_stay(
    memory: str, tmp_path: Path
) -> None:
    digest = "ab" * 32
    left = tmp_path / "ab" / f"{digest}.0123456789ab.partial"
    at_work = tmp_path / "ab" / f"{digest}.ba9876543210.partial"
    foreign = [tmp_path / "blobs" / digest, tmp_path / "ab" / "cache.json.partial"]
    for path in (left, at_work, *foreign):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(1000))
    for path in (left, *foreign):
        os.utime(path, (0, 0))
    files = RemoteStorage(parse_location(memory), LocalCopies(tmp_path, max_bytes=2500))
    files.write("a", b"x" * 1000)
    files.fetch("a", describe(b"x" * 1000))
    assert not left.exists()
    assert at_work.exists()
    assert all(path.exists() for path in foreign)


def test_without_locks_no_copy_is_written_by_two(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network file system that has none: one copy begins while another is half done."""
    monkeypatch.setattr(locks, "try_lock", lambda descriptor: True)
    monkeypatch.setattr(download_cache, "_PIECE_BYTES", 4)
    files = RemoteStorage(parse_location(memory), LocalCopies(tmp_path))
    data = b"abcdefgh"
    files.write("a", data)
    plain, is_half = download_cache.read_bytes, False

    def read(location: Location, start: int, length: int) -> bytes:
        nonlocal is_half
        if start == 4 and not is_half:
            is_half = True
            assert files.fetch("a", describe(data)).read_bytes() == data
        return plain(location, start, length)

    monkeypatch.setattr(download_cache, "read_bytes", read)
    assert files.fetch("a", describe(data)).read_bytes() == data


def test_the_first_failure_ends_fetching(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = RemoteStorage(parse_location(memory), LocalCopies(tmp_path))
    asked: list[str] = []

    def fetch(path: str, description: object) -> Path:
        asked.append(path)
        threading.Event().wait(0.01)
        raise StorageError(path)

    monkeypatch.setattr(files, "fetch", fetch)
    with pytest.raises(StorageError, match=r"^0$"):
        files.fetch_all([(f"{i}", {}) for i in range(200)])
    assert len(asked) < 100


def test_what_never_fits_is_refused(memory: str, tmp_path: Path) -> None:
    files = RemoteStorage(parse_location(memory), LocalCopies(tmp_path, max_bytes=10))
    files.write("a", b"x" * 11)
    with pytest.raises(DiskFullError, match=r"a copy of 11 B does not fit into .*--cache-limit"):
        files.fetch("a", describe(b"x" * 11))


def test_a_limit_is_a_number_of_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert copies_of(None, "1.5 TB") == LocalCopies(None, 1_500_000_000_000)
    with pytest.raises(SettingError, match=r"--cache-limit must be .* such as 500GB, got 'much'"):
        copies_of(None, "much")
    monkeypatch.setenv("SIGLIP2_CACHE_LIMIT", "0.5 pints")
    with pytest.raises(SettingError, match=re.escape("$SIGLIP2_CACHE_LIMIT must be")):
        LocalCopies(tmp_path).holds(1)
