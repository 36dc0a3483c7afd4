"""Calls in parallel threads, with their results in order: requests to an object store."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

_Item = TypeVar("_Item")
_Done = TypeVar("_Done")

REQUESTS = 32
"""Parallel requests: 640 a second at 50 ms each."""


class Threads:
    """Daemon threads, which end with the process even while a request is retried.

    Python waits for the threads of concurrent.futures at exit: up to a minute after Ctrl-C.
    """

    def __init__(self, num_threads: int, name: str) -> None:
        """Start no thread yet; each submitted call starts one, up to ``num_threads``."""
        self._num_threads, self._name = num_threads, name
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = (
            queue.SimpleQueue()
        )
        self._threads: list[threading.Thread] = []
        self._is_closed = False

    def submit(self, call: Callable[[], _Done]) -> "Future[_Done]":
        """Return the future of a call, which a thread makes in the order of submission."""
        future: Future[_Done] = Future()
        self._calls.put((future, call))
        if len(self._threads) < self._num_threads:
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._threads.append(thread)
            thread.start()
        return future

    def close(self) -> None:
        """Cancel calls that have not started. Calls in progress are not waited for."""
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
            del found, future, call  # release a large result before the next call


def map_parallel(
    call: Callable[[_Item], _Done],
    items: Iterable[_Item],
    *,
    num_threads: int = REQUESTS,
    num_ahead: int = 8 * REQUESTS,
) -> Generator[tuple[_Item, _Done]]:
    """Yield each item with the result of its call, in order. At most ``num_ahead`` calls are started early.

    Raises:
        Exception: the error of a call, in place of its result.
    """
    threads = Threads(num_threads, "parallel")
    pending: deque[tuple[_Item, Future[_Done]]] = deque()
    try:
        for item in items:
            pending.append((item, threads.submit(lambda item=item: call(item))))
            if len(pending) >= num_ahead:
                first, future = pending.popleft()
                yield first, future.result()
        while pending:
            first, future = pending.popleft()
            yield first, future.result()
    finally:
        threads.close()
