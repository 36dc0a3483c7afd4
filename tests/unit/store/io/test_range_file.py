"""Objects as files, read by ranges or ahead, and many calls at a time, their results in order."""

import io
import random
import threading
import time
from collections.abc import Iterator

import pytest
from kit.memory_bucket import MemoryBucket, memory_bucket
from upath import UPath

from siglip2_cache.errors import StorageError
from siglip2_cache.store.io import range_file, requests
from siglip2_cache.store.io.location import parse_location
from siglip2_cache.store.io.parallel import Threads, map_parallel
from siglip2_cache.store.io.range_file import RangeFile, ReadAhead

DATA = random.Random(0).randbytes(1 << 20)
PIECE = 1 << 16


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryBucket]:
    monkeypatch.setattr(range_file, "PIECE_BYTES", PIECE)
    monkeypatch.setattr(range_file, "_SMALL_BYTES", 1 << 10)
    with memory_bucket() as made:
        made.put("x", DATA)
        yield made


@pytest.fixture
def where(bucket: MemoryBucket) -> UPath:
    location = parse_location(f"{bucket.url}/x")
    assert isinstance(location, UPath)
    return location


@pytest.mark.parametrize("kind", [RangeFile, ReadAhead])
def test_any_reads_give_the_objects_bytes(where: UPath, kind: type[RangeFile]) -> None:
    chooser = random.Random(1)
    with kind(where) as file:
        assert file.seek(0, io.SEEK_END) == len(DATA)
        for _ in range(200):
            at = file.seek(chooser.randrange(len(DATA) + 100))
            size = chooser.choice([0, 1, 512, 5000, 3 * PIECE])
            assert file.read(size) == DATA[at : at + size]
            assert file.tell() == at + len(DATA[at : at + size])
        file.seek(0)
        assert file.read() == DATA


def test_reading_on_takes_a_request_a_piece(bucket: MemoryBucket, where: UPath) -> None:
    with ReadAhead(where) as file:
        for at in range(0, len(DATA), 2000):  # headers, the data between them passed over
            file.seek(at)
            assert file.read(512) == DATA[at : at + 512]
    assert bucket.requests["cat_file"] == len(DATA) // PIECE
    assert bucket.requests["info"] == 1


def test_what_is_passed_over_far_is_not_fetched(bucket: MemoryBucket, where: UPath) -> None:
    sizes: list[int] = []
    real = requests.read_bytes

    def counted(location: UPath, start: int, length: int) -> bytes:
        sizes.append(length)
        return real(location, start, length)

    with pytest.MonkeyPatch.context() as patch, ReadAhead(where) as file:
        patch.setattr(range_file, "read_bytes", counted)
        for at in range(4 * PIECE, len(DATA), 4 * PIECE):
            file.seek(at)
            file.read(512)
    assert sizes == [1 << 10] * 3


def test_ranges_are_fetched_as_they_are_asked_for(bucket: MemoryBucket, where: UPath) -> None:
    with RangeFile(where, num_bytes=len(DATA)) as file:
        file.seek(5000)
        assert file.read(300_000) == DATA[5000:305_000]
        file.seek(5000)
        file.read(10)
    assert bucket.requests == {"cat_file": 1}


def test_an_object_that_became_shorter_is_said_to_be(bucket: MemoryBucket, where: UPath) -> None:
    with ReadAhead(where) as file:
        bucket.put("x", DATA[:100])
        file.seek(500)
        with pytest.raises(OSError, match="became shorter than 1,048,576 bytes"):
            file.read(10)


def test_there_must_be_an_object(bucket: MemoryBucket) -> None:
    gone = parse_location(f"{bucket.url}/gone")
    assert isinstance(gone, UPath)
    with pytest.raises(FileNotFoundError):
        ReadAhead(gone)


def test_a_store_that_is_away_is_said_to_be_at_the_read_that_needs_it(
    bucket: MemoryBucket, where: UPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "_WAITS_S", ())
    with ReadAhead(where) as file:
        file.read(10)

        def fails(method: str, path: str) -> None:
            raise ConnectionResetError("reset")

        bucket.before = fails
        file.seek(3 * PIECE)
        with pytest.raises(StorageError, match="reset"):
            file.read(PIECE)


def test_results_come_in_order_and_few_are_begun_before() -> None:
    begun: list[int] = []

    def call(number: int) -> int:
        begun.append(number)
        time.sleep(0.001 * (number % 3))
        return number * number

    found: list[int] = []
    for item, done in map_parallel(call, range(100), num_threads=4, num_ahead=8):
        assert done == item * item
        found.append(item)
        assert max(begun) <= item + 8
    assert found == list(range(100))


def test_an_error_comes_at_its_items_turn_and_ends_the_rest() -> None:
    done: list[int] = []

    def call(number: int) -> None:
        if number == 3:
            raise StorageError("away")
        done.append(number)

    results = map_parallel(call, range(1000), num_threads=2, num_ahead=4)
    for _ in range(3):
        next(results)
    with pytest.raises(StorageError, match="away"):
        next(results)
    assert len(done) < 10


def test_threads_that_hang_are_left_behind() -> None:
    stuck = threading.Event()
    threads = Threads(1, "stuck")
    threads.submit(stuck.wait)
    waiting = threads.submit(lambda: 1)
    threads.close()
    assert all(t.daemon for t in threading.enumerate() if t.name == "stuck")
    stuck.set()
    assert waiting.cancelled() or not waiting.done()
