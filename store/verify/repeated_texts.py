"""Counting repeated texts among any number of texts, in limited memory.

Two hashes of 64 bits are kept of each text. Up to HELD_ROWS of them are held in memory, 256 MiB. Further
ones are written to files of a temporary folder, divided by hash so that equal texts are in the same file,
and the files are counted one by one. A billion texts take 16 GB there. The probability that two different
ones of a billion have equal hashes is 1e-21.
"""

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

HELD_ROWS = 1 << 24
_SEEDS = (0, 1)


@contextmanager
def counting_repeats(num_rows: int) -> "Generator[Repeats]":
    """Yield a counter for ``num_rows`` texts, whose files are removed at the end."""
    with tempfile.TemporaryDirectory(prefix="siglip2-cache-verify-") as folder:
        yield Repeats(Path(folder), num_files=max(1, 2 * num_rows // HELD_ROWS))


class Repeats:
    """Counts texts that were added before."""

    def __init__(self, folder: Path, *, num_files: int) -> None:
        """Start empty; use up to ``num_files`` files of a folder."""
        self._folder, self._num_files = folder, num_files
        self._held: list[NDArray[np.uint64]] = []
        self._num_held = 0
        self._has_files = False

    def add(self, texts: pl.Series) -> None:
        """Add texts, none of them null."""
        hashes_N2 = np.stack([texts.hash(seed).to_numpy() for seed in _SEEDS], axis=1)
        self._held.append(hashes_N2)
        self._num_held += len(hashes_N2)
        if self._num_held >= HELD_ROWS:
            self._write_held()

    def count(self) -> int:
        """Return how many texts are repetitions: all texts minus different texts."""
        if not self._has_files:
            return _num_repeated(self._take_held())
        self._write_held()
        found = (np.fromfile(path, np.uint64) for path in self._folder.iterdir())
        return sum(_num_repeated(hashes.reshape(-1, 2)) for hashes in found)

    def _take_held(self) -> NDArray[np.uint64]:
        held_N2 = np.concatenate([np.empty((0, 2), np.uint64), *self._held])
        self._held, self._num_held = [], 0
        return held_N2

    def _write_held(self) -> None:
        held_N2 = self._take_held()
        number_N = held_N2[:, 0] % np.uint64(self._num_files)
        order_N = np.argsort(number_N, kind="stable")
        ends = np.searchsorted(number_N[order_N], np.arange(self._num_files), side="right")
        for number, rows in enumerate(np.split(order_N, ends[:-1])):
            with (self._folder / f"{number:06d}").open("ab") as file:
                file.write(held_N2[rows].tobytes())
        self._has_files = True


def _num_repeated(hashes_N2: NDArray[np.uint64]) -> int:
    first_N = np.sort(hashes_N2[:, 0])
    if not (first_N[1:] == first_N[:-1]).any():  # nearly always
        return 0
    sorted_N2 = hashes_N2[np.lexsort((hashes_N2[:, 1], hashes_N2[:, 0]))]
    return int((sorted_N2[1:] == sorted_N2[:-1]).all(axis=1).sum())
