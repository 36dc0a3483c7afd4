"""A generator that runs ahead in a thread, which ends with its user."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

_CLOSE_TIMEOUT_S = 10.0
"""Longest wait for the thread at closing; a decoder that is not stuck ends earlier."""


class Prefetcher(Generic[T]):
    """Runs a generator in a thread of its own, a few items ahead."""

    def __init__(
        self, make: Callable[[threading.Event], Generator[T]], *, num_ahead: int, name: str
    ) -> None:
        """Start the thread.

        Args:
            make: returns the generator; called, run and closed in the thread. Its event is set when
                nothing more is wanted; the generator may then end early.
            num_ahead: items that may be ready, at least 1; one more is being made.
            name: name of the thread.
        """
        self._make, self._num_ahead = make, num_ahead
        self._ready: deque[T] = deque()
        self._error: BaseException | None = None
        self._is_done = False
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        """Yield the items in order, then raise the generator's error, if any."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ready or self._is_done)
                if not self._ready:
                    break
                item = self._ready.popleft()
                self._changed.notify_all()
            yield item
            del item  # else it stays in memory while the next is waited for
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the thread and the generator; a thread that hangs is left behind."""
        with self._changed:
            self._stopping.set()
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join(_CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        try:
            items = self._make(self._stopping)
            try:
                for item in items:
                    if not self._put(item):
                        break
                    del item
            finally:
                items.close()
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._is_done = True
                self._changed.notify_all()

    def _put(self, item: T) -> bool:
        """Add an item once there is room; return False if nothing more is wanted."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopping.is_set() or len(self._ready) < self._num_ahead
            )
            if self._stopping.is_set():
                return False
            self._ready.append(item)
            self._changed.notify_all()
        return True
