"""Reading many small files: a round trip each, with many on their way at a time."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

_THREADS = 32
_RUN = 32
"""Files that a thread reads one after the other. Handing over each by itself takes three times as long as
reading a small file of this machine (6.2 s against 2.0 s for 122,000 records)."""


def read_many(read: Callable[[str], bytes], paths: Sequence[str]) -> Iterator[bytes]:
    """Yield the bytes of files in the order given; some 2,000 are held in memory at most.

    Args:
        read: returns the bytes of one file; is called in several threads.
        paths: what it is called with.

    Raises:
        Whatever ``read`` raises.
    """
    if len(paths) <= _RUN:
        yield from map(read, paths)
        return

    def read_run(first: int) -> list[bytes]:
        return [read(path) for path in paths[first : first + _RUN]]

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="siglip2-cache-reader") as threads:
        waiting: deque[Future[list[bytes]]] = deque()
        try:
            for first in range(0, len(paths), _RUN):
                waiting.append(threads.submit(read_run, first))
                if len(waiting) == 2 * _THREADS:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
