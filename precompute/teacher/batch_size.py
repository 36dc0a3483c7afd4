"""Choosing the batch size of a teacher by timing it."""

import time
from collections.abc import Callable

from .teacher import OutOfMemory

CPU_BATCH_SIZES = (16, 32)
"""Images and texts in one forward pass without a GPU."""

_SMALLEST_PROBE, _LARGEST_PROBE = 8, 4096
_WORTHWHILE_GAIN = 1.03


def fastest_batch_size(time_batch: Callable[[int], float]) -> int:
    """Return the power of two beyond which throughput rises by less than 3 %.

    Args:
        time_batch: returns the seconds of a batch of a size, or raises OutOfMemory.

    Raises:
        OutOfMemory: not even one item fits.
    """
    best, best_rate = 0, 0.0
    size = _SMALLEST_PROBE
    while size <= _LARGEST_PROBE:
        try:
            rate = size / time_batch(size)
        except OutOfMemory:
            if best:
                break
            if size == 1:
                raise
            size //= 2  # a small GPU: find a size that fits
            continue
        if best and rate <= best_rate * _WORTHWHILE_GAIN:
            break
        if size < _SMALLEST_PROBE:
            return size
        best, best_rate = size, rate
        size *= 2
    return best


def time_fastest(run: Callable[[], object]) -> float:
    """Return the seconds of the fastest of three runs, after one to warm up."""
    run()
    times: list[float] = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)
