"""Many small files come in order, and where a read takes long many are read at a time."""

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from kit.patience import PATIENCE_S

from siglip2_cache.store.io.read_many import read_many

FIRST = 32
"""Files that are read one after the other before anything is known."""


def quick(path: str) -> bytes:
    return path.encode()


def slow(path: str) -> bytes:
    if int(path) < FIRST:
        time.sleep(2e-3)
    return path.encode()


@pytest.mark.parametrize("read", [quick, slow])
@pytest.mark.parametrize("count", [0, 1, FIRST, FIRST + 1, 5000])
def test_files_come_in_the_order_asked(read: Callable[[str], bytes], count: int) -> None:
    paths = [f"{i}" for i in range(count)]
    assert list(read_many(read, paths)) == [path.encode() for path in paths]


def test_slow_files_are_on_their_way_several_at_a_time() -> None:
    meeting = threading.Barrier(8, timeout=PATIENCE_S)

    def read(path: str) -> bytes:
        number = int(path)
        if number % 32 == 0 and FIRST <= number < 9 * 32:
            meeting.wait()  # for ever, if one were read after the other
        return slow(path)

    assert len(list(read_many(read, [f"{i}" for i in range(1000)]))) == 1000


def test_quick_files_start_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = SimpleNamespace(perf_counter=lambda: 0.0)  # a busy machine is slow for other reasons
    monkeypatch.setattr("siglip2_cache.store.io.read_many.time", stopped)
    threads: set[int] = set()

    def read(path: str) -> bytes:
        threads.add(threading.get_ident())
        return b""

    assert len(list(read_many(read, ["path"] * 20_000))) == 20_000
    assert threads == {threading.get_ident()}


def test_no_more_than_some_thousands_are_held_however_slowly_they_are_taken() -> None:
    num_read = 0
    lock = threading.Lock()

    def read(path: str) -> bytes:
        nonlocal num_read
        with lock:
            num_read += 1
        return slow(path)

    found = read_many(read, [f"{i}" for i in range(20_000)])
    for _ in range(FIRST + 10):
        next(found)
    assert num_read <= FIRST + 64 * 32
    found.close()  # type: ignore[attr-defined]
    assert num_read <= FIRST + 65 * 32


@pytest.mark.parametrize("read", [quick, slow])
def test_what_a_read_raises_is_raised(read: Callable[[str], bytes]) -> None:
    def fails_once(path: str) -> bytes:
        if path == "700":
            raise FileNotFoundError(path)
        return read(path)

    with pytest.raises(FileNotFoundError, match="700"):
        list(read_many(fails_once, [f"{i}" for i in range(1000)]))
