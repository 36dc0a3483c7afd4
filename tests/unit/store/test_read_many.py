"""Many small files are read at a time, and come in order."""

import threading

import pytest

from siglip2_cache.store.read_many import read_many


@pytest.mark.parametrize("count", [0, 1, 32, 33, 5000])
def test_files_come_in_the_order_asked(count: int) -> None:
    paths = [f"{i}" for i in range(count)]
    assert list(read_many(str.encode, paths)) == [path.encode() for path in paths]


def test_several_are_on_their_way_at_a_time() -> None:
    meeting = threading.Barrier(8, timeout=20)

    def read(path: str) -> bytes:
        if int(path) % 32 == 0 and int(path) < 8 * 32:
            meeting.wait()  # for ever, if one were read after the other
        return b""

    assert len(list(read_many(read, [f"{i}" for i in range(1000)]))) == 1000


def test_no_more_than_some_thousands_are_held_however_slowly_they_are_taken() -> None:
    num_read = 0
    lock = threading.Lock()

    def read(path: str) -> bytes:
        nonlocal num_read
        with lock:
            num_read += 1
        return b""

    found = read_many(read, ["path"] * 20_000)
    for _ in range(10):
        next(found)
    assert num_read <= 64 * 32
    found.close()  # type: ignore[attr-defined]
    assert num_read <= 65 * 32


def test_what_a_read_raises_is_raised() -> None:
    def read(path: str) -> bytes:
        if path == "700":
            raise FileNotFoundError(path)
        return b""

    with pytest.raises(FileNotFoundError, match="700"):
        list(read_many(read, [f"{i}" for i in range(1000)]))
