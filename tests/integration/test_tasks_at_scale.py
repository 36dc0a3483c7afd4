"""What is done to a whole cache takes work in proportion to its units: the calls of Python are counted.

benchmarks/bench_scale.py says how long it takes at 61,000.
"""

import math
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scale_units import TASKS, make

from siglip2_cache.store.io import read_many

SIZES = (128, 256, 384)
"""Units. Parts of these catalogs hold the rows of 128."""

_ROUGHLY = 1.03
"""What reads rows made anew for each unit comes to 1.07, all else to 1.001."""


def num_calls(call: Callable[[], None]) -> int:
    """Return how many functions are called, of Python and of C, in all threads that are started."""
    found = 0

    def count(frame: Any, event: str, arg: Any) -> None:
        nonlocal found
        found += event in ("call", "c_call")

    before = sys.getprofile()
    threading.setprofile(count)
    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(before)
        threading.setprofile(before)
    return found


def test_as_many_units_more_take_as_many_calls_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one test, since making the caches takes longer than all that is done to them."""
    monkeypatch.setattr(
        read_many, "_QUICK_S", math.inf
    )  # never in threads, however slow the disk is
    calls: dict[str, list[int]] = {name: [] for name in TASKS}
    for size in SIZES:
        make(tmp_path / str(size), size)
        for name, task in TASKS.items():
            calls[name].append(num_calls(lambda task=task, size=size: task(tmp_path / str(size))))
    for name, (first, second, third) in calls.items():
        assert 0 < third - second < _ROUGHLY * (second - first), (name, calls[name])
