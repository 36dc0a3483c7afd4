"""Repeats: exact, whether texts fit in memory or go through files."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from siglip2_cache.store.verify import repeated_texts
from siglip2_cache.store.verify.repeated_texts import Repeats, counting_repeats


def parts(texts: list[str], size: int) -> list[pl.Series]:
    return [pl.Series(texts[i : i + size], dtype=pl.String) for i in range(0, len(texts), size)]


@pytest.mark.parametrize("held_rows", [10, 100, 10_000])
@pytest.mark.parametrize("num_different", [1, 37, 990, 1000])
def test_the_number_of_texts_less_that_of_different_ones_is_counted(
    num_different: int, held_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeated_texts, "HELD_ROWS", held_rows)
    order = np.random.default_rng(0).permutation(1000) % num_different
    with counting_repeats(1000) as found:
        for part in parts([f"key {i}" for i in order], 33):
            found.add(part)
        assert found.count() == 1000 - num_different


def test_no_more_is_held_than_is_allowed_and_files_go_with_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(repeated_texts, "HELD_ROWS", 50)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sizes: list[int] = []
    real = repeated_texts._num_repeated

    def num_repeated(hashes_N2: np.ndarray) -> int:
        sizes.append(len(hashes_N2))
        return real(hashes_N2)

    monkeypatch.setattr(repeated_texts, "_num_repeated", num_repeated)
    with counting_repeats(1000) as found:
        for part in parts([f"key {i}" for i in range(1000)], 10):
            found.add(part)
            assert sum(map(len, found._held)) < 50
        assert found.count() == 0
    assert sum(sizes) == 1000
    assert max(sizes) <= 50
    assert list(tmp_path.iterdir()) == []


def test_few_texts_touch_no_disk(tmp_path: Path) -> None:
    found = Repeats(tmp_path / "not there", num_files=1)
    found.add(pl.Series(["a", "b", "a"]))
    assert found.count() == 1


def test_texts_whose_first_hashes_are_alike_are_told_apart() -> None:
    hashes = np.array([[7, 1], [7, 2], [8, 1], [7, 1]], np.uint64)
    assert repeated_texts._num_repeated(hashes) == 1
