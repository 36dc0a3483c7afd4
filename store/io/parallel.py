"""Doing things ahead in threads: requests to an object store, many at a time, their answers in order."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

_Item = TypeVar("_Item")
_Done = TypeVar("_Done")

REQUESTS = 32
"""Requests at a time: at 50 ms each, 640 a second."""


class Threads:
    """Threads that end with the process, even while a request waits for a store that is away.

    (Those of concurrent.futures would be waited for, a minute after Ctrl-C.)
    """

    def __init__(self, num_threads: int, name: str) -> None:
        """Start none yet; each call that is submitted starts one, up to their number."""
        self._num_threads, self._name = num_threads, name
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = (
            queue.SimpleQueue()
        )
        self._threads: list[threading.Thread] = []
        self._is_closed = False

    def submit(self, call: Callable[[], _Done]) -> "Future[_Done]":
        """Have a call made by one of the threads, in the order of submission."""
        future: Future[_Done] = Future()
        self._calls.put((future, call))
        if len(self._threads) < self._num_threads:
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._threads.append(thread)
            thread.start()
        return future

    def close(self) -> None:
        """Make no further call; what is being made is left to end by itself."""
        self._is_closed = True
        for _ in self._threads:
            self._calls.put(None)

    def _run(self) -> None:
        while (found := self._calls.get()) is not None:
            future, call = found
            if self._is_closed:
                future.cancel()
                continue
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
            del found, future, call  # else a large result lives on until the next call


def map_ahead(
    call: Callable[[_Item], _Done],
    items: Iterable[_Item],
    *,
    num_threads: int = REQUESTS,
    num_ahead: int = 8 * REQUESTS,
) -> Generator[tuple[_Item, _Done]]:
    """Yield each item with what a call makes of it, in order; at most num_ahead are begun before.

    Raises:
        Exception: what the call raised, when its item's turn comes.
    """
    threads = Threads(num_threads, "ahead")
    coming: deque[tuple[_Item, Future[_Done]]] = deque()
    try:
        for item in items:
            coming.append((item, threads.submit(lambda item=item: call(item))))
            if len(coming) >= num_ahead:
                first, future = coming.popleft()
                yield first, future.result()
        while coming:
            first, future = coming.popleft()
            yield first, future.result()
    finally:
        threads.close()
