"""Requests to object stores: what is asked, what is retried, and what is not."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from kit.memory_bucket import MemoryBucket, memory_bucket
from upath import UPath

from siglip2_cache.errors import SettingError, StorageError
from siglip2_cache.store.io import requests
from siglip2_cache.store.io.location import parse_location
from siglip2_cache.store.io.requests import (
    ObjectStatus,
    is_folder,
    kind_of,
    list_folder,
    read_bytes,
    status_of,
    with_retries,
)


@pytest.fixture
def bucket() -> Iterator[MemoryBucket]:
    with memory_bucket() as made:
        yield made


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made; none takes time."""
    made: list[float] = []
    monkeypatch.setattr(requests.time, "sleep", made.append)
    return made


def url(text: str) -> UPath:
    location = parse_location(text)
    assert isinstance(location, UPath)
    return location


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
    assert with_retries(answers(error, error, error), url("memory://b/x")) == "answer"
    assert len(waits) == 3
    assert 0.1 <= waits[0] <= 0.2
    assert waits == sorted(waits)


@pytest.mark.parametrize("error", [FileNotFoundError("x"), PermissionError("x"), ValueError("bug")])
def test_what_does_not_pass_is_said_at_once(error: Exception, waits: list[float]) -> None:
    with pytest.raises(type(error)):
        with_retries(answers(error), url("memory://b/x"))
    assert waits == []


def test_after_a_minute_it_ends_without_what_signs_the_request(waits: list[float]) -> None:
    signed = OSError("cut: https://b.s3/x?X-Amz-Signature=hidden (again)")
    with pytest.raises(
        StorageError, match=r"memory://b/x is unreachable: cut: .*\?\.\.\. \(again\);"
    ) as e:
        with_retries(answers(*[signed] * 20), url("memory://b/x"))
    assert "hidden" not in str(e.value)
    assert e.value.__cause__ is None
    assert 25 < sum(waits) < 60


def test_a_hub_that_is_offline_by_choice_is_no_matter_of_patience(waits: list[float]) -> None:
    from huggingface_hub.errors import OfflineModeIsEnabled

    def ask() -> None:
        raise OfflineModeIsEnabled("Cannot reach https://huggingface.co: offline mode is enabled.")

    with pytest.raises(SettingError, match="HF_HUB_OFFLINE is set"):
        with_retries(ask, url("memory://b/x"))
    assert waits == []


def test_missing_credentials_are_no_matter_of_patience(waits: list[float]) -> None:
    lacking = of_botocore("NoCredentialsError", "Unable to locate credentials")
    with pytest.raises(SettingError, match=r"no credentials for memory://b/x .*environment"):
        with_retries(answers(lacking), url("memory://b/x"))
    assert waits == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            of_botocore(
                "ParamValidationError",
                'Parameter validation failed:\nInvalid bucket name "My_Bucket"',
            ),
            'failed: Invalid bucket name "My_Bucket"; correct the name',
        ),
        (
            ValueError("Invalid endpoint: minio:9000"),
            "Invalid endpoint: minio:9000; correct .*endpoint",
        ),
    ],
)
def test_wrong_names_are_no_matter_of_patience(
    error: Exception, reason: str, waits: list[float]
) -> None:
    with pytest.raises(SettingError, match=reason):
        with_retries(answers(error), url("memory://b/x"))
    assert waits == []


def test_a_password_in_an_endpoint_or_another_url_is_not_shown(waits: list[float]) -> None:
    behind = OSError("cannot connect to proxy http://me:hid/den@proxy:80 (refused)")
    with pytest.raises(StorageError, match=r"http://\.\.\.@proxy:80 \(refused\)") as e:
        with_retries(answers(*[behind] * 20), url("memory://b/x"))
    assert "den" not in str(e.value)


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


def test_times_are_whole_seconds_whatever_a_store_gives() -> None:
    reported = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
    seconds = 1767323045 * 10**9
    for given in (reported, reported.isoformat(), reported.timestamp(), "2026-01-02T03:04:05Z"):
        found = requests._status({"size": 3, "LastModified": given})  # pyright: ignore[reportPrivateUsage]
        assert found == ObjectStatus(3, seconds)


def test_a_warning_of_a_long_location_is_one_short_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(requests, "_WAITS_S", (0.0,) * 8)
    error = ConnectionError("reset by peer")
    with_retries(answers(*[error] * 4), url(f"memory://b/{'folder/' * 100}x"))
    [record] = caplog.records
    assert record.getMessage().startswith("memory://b/folder/")
    assert record.getMessage().endswith("no answer, retrying (reset by peer)")
    assert len(record.getMessage()) <= 300
