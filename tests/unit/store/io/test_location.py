"""Where things lie: what is taken for a location, and patience with what a store answers."""

import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from kit.memory_bucket import MemoryBucket, memory_bucket
from upath import UPath

from siglip2_cache.errors import SettingError, StorageError
from siglip2_cache.store.cache import relocate
from siglip2_cache.store.io import location as locations
from siglip2_cache.store.io.location import (
    ObjectStatus,
    is_folder,
    join,
    kind_of,
    lies_in,
    list_folder,
    parse_location,
    patiently,
    read_bytes,
    relative_to,
    status_of,
)


@pytest.fixture
def bucket() -> Iterator[MemoryBucket]:
    with memory_bucket() as made:
        yield made


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made; none takes time."""
    made: list[float] = []
    monkeypatch.setattr(locations.time, "sleep", made.append)
    return made


def url(text: str) -> UPath:
    location = parse_location(text)
    assert isinstance(location, UPath)
    return location


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("s3://b/c/", "s3://b/c"),
        ("S3://b//c/./d", "s3://b/c/d"),
        ("memory://b/x/{0..3}.tar", "memory://b/x/{0..3}.tar"),
        ("file:///data/c", "/data/c"),
        ("/data/../c", "/c"),
        ("~/c", str(Path("~/c").expanduser())),
    ],
)
def test_a_location_is_kept_in_one_spelling(given: str, kept: str) -> None:
    location = parse_location(given)
    assert str(location) == kept
    assert parse_location(str(location)) == location
    assert pickle.loads(pickle.dumps(location)) == location


@pytest.mark.parametrize(
    "given",
    [
        "s3://AKIA:hidden@b/c",
        "s3://hidden@b/c",
        "gs://b:hidden/c",
        "az://c/x?sv=1&sig=hidden",
        "s3://b/c?X-Amz-Signature=hidden",
    ],
)
def test_a_url_with_credentials_is_refused_and_not_shown(given: str) -> None:
    with pytest.raises(SettingError) as raised:
        parse_location(given)
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("ftp://h/c", r"ftp://h/c is of a protocol that is not known here; expected .*s3://"),
        ("s3:///c", r"s3:///c names no place in a store; expected s3://BUCKET/PATH"),
        ("s3://b/../c", r"names no place in a store"),
    ],
)
def test_other_urls_are_refused_with_what_is_expected(given: str, reason: str) -> None:
    with pytest.raises(SettingError, match=reason):
        parse_location(given)


def test_a_protocol_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(protocol: str) -> None:
        raise ImportError(protocol)

    monkeypatch.setattr(locations.fsspec, "get_filesystem_class", missing)
    with pytest.raises(SettingError, match=r"pip install 'siglip2-cache\[gcs\]'"):
        parse_location("gs://b/c")


@pytest.mark.parametrize(
    ("location", "folder", "way"),
    [
        ("s3://b/c/d", "s3://b/c", "d"),
        ("s3://b/c", "s3://b/c", ""),
        ("s3://b/cd", "s3://b/c", None),
        ("s3://b/c", "s3://b", "c"),
        ("memory://b/c/d", "s3://b/c", None),
        ("/b/c/d", "s3://b/c", None),
        ("s3://b/c/d", "/", None),
        ("/b/c/d", "/b", "c/d"),
        ("/b", "/b", ""),
        ("/bc", "/b", None),
    ],
)
def test_the_way_from_a_folder_to_what_is_below_it(
    location: str, folder: str, way: str | None
) -> None:
    assert relative_to(parse_location(location), parse_location(folder)) == way
    assert lies_in(parse_location(location), parse_location(folder)) == (way is not None)


def test_a_way_is_followed_by_name_and_not_out_of_the_bucket() -> None:
    folder = parse_location("s3://b/c/d")
    assert str(join(folder, "e/../../x#1.jpg")) == "s3://b/c/x#1.jpg"
    assert join(Path("/data"), "../x") == Path("/data/../x")  # a link may stand there
    with pytest.raises(FileNotFoundError, match="leads out of the bucket"):
        join(folder, "../../../x")


@pytest.mark.parametrize(
    ("recorded", "roots", "found"),
    [
        ("/data/coco/t.jsonl", {"/data/coco": "s3://b/coco"}, "s3://b/coco/t.jsonl"),
        ("/data/coco", {"/data/coco": "s3://b/coco"}, "s3://b/coco"),
        ("s3://b/coco/{0..3}.tar", {"s3://b": "/mnt/b"}, "/mnt/b/coco/{0..3}.tar"),
        ("gs://b/coco", {"gs://b": "s3://c/d", "gs://b/coco": "s3://x"}, "s3://x/"),
        ("s3://b/coco", {"s3://b/co": "/mnt"}, "s3://b/coco"),
        ("s3://b/new/coco", {"s3://b": "s3://b/new"}, "s3://b/new/coco"),
    ],
)
def test_a_corpus_moves_between_disks_and_stores(
    recorded: str, roots: dict[str, str], found: str
) -> None:
    assert str(relocate(recorded, roots)) == found


def test_objects_are_read_whole_and_in_part(bucket: MemoryBucket) -> None:
    where = url(bucket.put("a/x", b"0123456789"))
    assert read_bytes(where) == b"0123456789"
    assert read_bytes(where, 3, 4) == b"3456"
    assert read_bytes(where, 8, 9) == b"89"
    assert read_bytes(where, 20, 5) == b""
    before = bucket.requests.total()
    assert read_bytes(where, 3, 0) == b""
    assert bucket.requests.total() == before


def test_a_store_says_what_there_is(bucket: MemoryBucket) -> None:
    where = url(bucket.put("a/x", b"0123"))
    bucket.put("a/b/y", b"1")
    status = status_of(where)
    assert status is not None
    assert status.num_bytes == 4
    assert status.mtime_ns is not None
    assert status.mtime_ns % 10**9 == 0  # whole seconds, as all stores tell
    listed = list_folder(url(f"{bucket.url}/a"))
    assert [(entry.name, entry.status) for entry in listed] == [("b", None), ("x", status)]
    assert status_of(url(f"{bucket.url}/a")) is None
    assert status_of(url(f"{bucket.url}/gone")) is None
    assert list_folder(url(f"{bucket.url}/gone")) == []
    assert [kind_of(url(f"{bucket.url}/{name}")) for name in ("a", "a/x", "gone")] == [
        "folder",
        "file",
        None,
    ]


def test_whether_there_is_a_folder_is_asked_without_listing_it(bucket: MemoryBucket) -> None:
    bucket.put("a/x", b"")
    assert is_folder(url(f"{bucket.url}/a"))
    assert bucket.requests == {"info": 1}


def answers(*errors: Exception) -> Callable[[], str]:
    coming = list(errors)

    def call() -> str:
        if coming:
            raise coming.pop(0)
        return "answer"

    return call


def of_botocore(name: str, text: str) -> Exception:
    kind: Any = type(name, (Exception,), {"__module__": "botocore.exceptions"})
    return kind(text)


@pytest.mark.parametrize(
    "error",
    [
        OSError(16, "SlowDown: reduce your request rate"),
        ConnectionResetError("reset by peer"),
        TimeoutError(),
        EOFError(),
        of_botocore("ReadTimeoutError", "read timeout"),
    ],
)
def test_what_passes_is_waited_for(error: Exception, waits: list[float]) -> None:
    assert patiently(answers(error, error, error), url("memory://b/x")) == "answer"
    assert len(waits) == 3
    assert 0.1 <= waits[0] <= 0.2
    assert waits == sorted(waits)


@pytest.mark.parametrize("error", [FileNotFoundError("x"), PermissionError("x"), ValueError("bug")])
def test_what_does_not_pass_is_said_at_once(error: Exception, waits: list[float]) -> None:
    with pytest.raises(type(error)):
        patiently(answers(error), url("memory://b/x"))
    assert waits == []


def test_after_a_minute_it_ends_without_what_signs_the_request(waits: list[float]) -> None:
    signed = OSError("cut: https://b.s3/x?X-Amz-Signature=hidden (again)")
    with pytest.raises(
        StorageError, match=r"memory://b/x cannot be had: cut: .*\?\.\.\. \(again\);"
    ) as e:
        patiently(answers(*[signed] * 20), url("memory://b/x"))
    assert "hidden" not in str(e.value)
    assert e.value.__cause__ is None
    assert 25 < sum(waits) < 60


def test_a_hub_that_is_offline_by_choice_is_no_matter_of_patience(waits: list[float]) -> None:
    from huggingface_hub.errors import OfflineModeIsEnabled

    def ask() -> None:
        raise OfflineModeIsEnabled("Cannot reach https://huggingface.co: offline mode is enabled.")

    with pytest.raises(SettingError, match="HF_HUB_OFFLINE is set"):
        patiently(ask, url("memory://b/x"))
    assert waits == []


def test_missing_credentials_are_no_matter_of_patience(waits: list[float]) -> None:
    lacking = of_botocore("NoCredentialsError", "Unable to locate credentials")
    with pytest.raises(SettingError, match=r"no credentials for memory://b/x .*environment"):
        patiently(answers(lacking), url("memory://b/x"))
    assert waits == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            of_botocore(
                "ParamValidationError",
                'Parameter validation failed:\nInvalid bucket name "My_Bucket"',
            ),
            'failed: Invalid bucket name "My_Bucket"; mend the name',
        ),
        (
            ValueError("Invalid endpoint: minio:9000"),
            "Invalid endpoint: minio:9000; mend .*endpoint",
        ),
    ],
)
def test_wrong_names_are_no_matter_of_patience(
    error: Exception, reason: str, waits: list[float]
) -> None:
    with pytest.raises(SettingError, match=reason):
        patiently(answers(error), url("memory://b/x"))
    assert waits == []


def test_a_password_in_an_endpoint_or_another_url_is_not_shown(waits: list[float]) -> None:
    behind = OSError("cannot connect to proxy http://me:hid/den@proxy:80 (refused)")
    with pytest.raises(StorageError, match=r"http://\.\.\.@proxy:80 \(refused\)") as e:
        patiently(answers(*[behind] * 20), url("memory://b/x"))
    assert "den" not in str(e.value)
    with pytest.raises(SettingError, match=r"^ftp://\.\.\.@host/x is of a protocol"):
        parse_location("ftp://me:hidden@host/x")


def test_the_hub_is_asked_by_each_thread_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfFileSystem

    asked: set[int] = set()

    def answer(self: HfFileSystem, path: str, **options: Any) -> Any:
        asked.add(id(self))
        return b"bytes"

    monkeypatch.setattr(HfFileSystem, "cat_file", answer)
    monkeypatch.setattr(HfFileSystem, "info", lambda self, path: {"name": path, "size": 5})
    place = url("hf://datasets/someone/corpus/0.tar")
    assert status_of(place) == ObjectStatus(5, None)
    assert read_bytes(place) == b"bytes"
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(read_bytes, place).result() == b"bytes"
    assert len(asked) == 2


def test_a_path_given_as_upath_is_one_of_this_machine() -> None:
    assert type(parse_location(UPath("/a/b"))) is type(Path("/a/b"))
    assert parse_location(UPath("file:///a/b")) == Path("/a/b")


def test_times_are_whole_seconds_whatever_a_store_gives() -> None:
    told = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
    seconds = 1767323045 * 10**9
    for given in (told, told.isoformat(), told.timestamp(), "2026-01-02T03:04:05Z"):
        found = locations._status({"size": 3, "LastModified": given})  # pyright: ignore[reportPrivateUsage]
        assert found == ObjectStatus(3, seconds)
