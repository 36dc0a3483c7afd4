"""Exact neighbours against a search by hand in float64."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from siglip2_cache import open_cache
from siglip2_cache.errors import DamagedCacheError, RowUnavailableError
from siglip2_cache.store.format import layout
from siglip2_cache.store.search import exact as search
from siglip2_cache.store.search.exact import Neighbors, Search, cosines, exact_neighbors
from siglip2_cache.store.targets import blocks as scan
from siglip2_cache.store.targets.blocks import Block, read_blocks, to_float32

if TYPE_CHECKING:
    from tests.foreign_cache import ForeignCache


def unit(rows_ND: NDArray[Any]) -> NDArray[np.float16]:
    return (rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)).astype(np.float16)


def by_hand(
    rows_N: NDArray[np.int64],
    values_ND: NDArray[np.float16],
    queries_QD: NDArray[np.float16],
    k: int,
    exclude_Q: NDArray[np.int64],
) -> Neighbors:
    x, q = values_ND.astype(np.float64), queries_QD.astype(np.float64)
    found_rows = np.full((len(q), k), -1, np.int64)
    found_cosines = np.full((len(q), k), -np.inf)
    for i, query in enumerate(q):
        cosine = [
            min(1.0, max(-1.0, float(query @ row / np.sqrt((query @ query) * (row @ row)))))
            for row in x
        ]
        others = [j for j in range(len(x)) if rows_N[j] != exclude_Q[i]]
        nearest = sorted(others, key=lambda j: (-cosine[j], rows_N[j]))[:k]
        found_rows[i, : len(nearest)] = rows_N[nearest]
        found_cosines[i, : len(nearest)] = [cosine[j] for j in nearest]
    return Neighbors(found_rows, found_cosines, len(values_ND))


def block_of(rows_B: NDArray[np.int64], values_BD: NDArray[np.float16]) -> Block:
    unit_BD = values_BD.astype(np.float32)
    return Block(rows_B, values_BD, unit_BD / np.linalg.norm(unit_BD, axis=1, keepdims=True))


@dataclass(frozen=True)
class Case:
    rows: NDArray[np.int64]
    values: NDArray[np.float16]
    queries: NDArray[np.float16]
    exclude: NDArray[np.int64]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Sets that are hard to search: few different rows, all cosines negative, near ties."""
    seed = draw(st.integers(0, 2**32 - 1))
    chooser = np.random.default_rng(seed)
    N, D = draw(st.integers(1, 120)), draw(st.sampled_from([4, 16, 48]))
    values = chooser.standard_normal((N, D))
    kind = draw(st.sampled_from(["random", "duplicates", "negative", "near ties"]))
    if kind == "duplicates":
        values = values[chooser.integers(0, max(1, N // 20), N)]
    elif kind == "negative":
        values = -np.abs(values)
    elif kind == "near ties":
        values = 1 + 1e-3 * values
    rows = np.sort(chooser.choice(1000, N, replace=False))
    queries = unit(np.abs(chooser.standard_normal((3, D))))
    queries[0] = unit(values)[0]
    return Case(rows, unit(values), queries, np.array([rows[0], -1, rows[-1]]))


@settings(max_examples=75, deadline=None)
@given(case=cases(), k=st.integers(1, 140), block_rows=st.integers(1, 130))
def test_neighbours_are_those_of_float64_by_brute_force(
    case: Case, k: int, block_rows: int
) -> None:
    found = Search(case.queries, k, exclude_Q=case.exclude)
    for start in range(0, len(case.rows), block_rows):
        some = slice(start, start + block_rows)
        found.add(block_of(case.rows[some], case.values[some]))
    expected = by_hand(case.rows, case.values, case.queries, k, case.exclude)
    np.testing.assert_array_equal(found.neighbors().rows_QK, expected.rows_QK)
    np.testing.assert_array_equal(found.neighbors().cosine_QK, expected.cosine_QK)


def test_neighbours_do_not_depend_on_the_order_of_blocks() -> None:
    chooser = np.random.default_rng(5)
    values = unit(chooser.standard_normal((7, 8)))[chooser.integers(0, 7, 90)]
    rows, queries = np.arange(90), values[:4]
    forward, backward = Search(queries, 30), Search(queries, 30)
    parts = [slice(i, i + 40) for i in (0, 40, 80)]
    for part in parts:
        forward.add(block_of(rows[part], values[part]))
    for part in reversed(parts):
        backward.add(block_of(rows[part], values[part]))
    np.testing.assert_array_equal(forward.neighbors().rows_QK, backward.neighbors().rows_QK)


def test_more_equal_rows_than_faiss_was_asked_for_come_in_the_order_of_rows() -> None:
    values = np.repeat(unit(np.ones((1, 8))), 500, axis=0)
    found = Search(values[:1], 5, exclude_Q=[2])
    found.add(block_of(np.arange(500), values))
    assert found.neighbors().rows_QK.tolist() == [[0, 1, 3, 4, 5]]
    assert found.neighbors().cosine_QK.tolist() == [[1.0] * 5]


def test_a_float32_tie_is_decided_by_the_exact_cosine() -> None:
    # Two rows that differ in the last bit of one small value: float32 cannot tell their cosines.
    values = unit(np.random.default_rng(0).standard_normal((1, 512)))
    values = np.repeat(values, 40, axis=0)
    at = int(np.abs(values[0].astype(np.float64) - 1e-3).argmin())
    values[30, at] = np.nextafter(values[30, at], np.float16(1))
    queries = values[30:31].copy()
    found = Search(queries, 2)
    found.add(block_of(np.arange(40), values))
    assert found.neighbors().rows_QK[0, 0] == 30


@pytest.mark.parametrize("seed", range(8))
def test_rows_nearer_than_float32_can_tell_are_told_apart(seed: int) -> None:
    # Without the margin, two of forty such sets come out wrong.
    chooser = np.random.default_rng(seed)
    query = unit(chooser.standard_normal((1, 768)))
    values = np.repeat(query, 400, axis=0).view(np.uint16)
    values[np.arange(400), chooser.integers(0, 768, 400)] ^= 1  # the last bit of one value each
    rows, values = np.arange(400), values.view(np.float16)
    found = Search(query, 10)
    for start in range(0, 400, 100):
        found.add(block_of(rows[start : start + 100], values[start : start + 100]))
    expected = by_hand(rows, values, query, 10, np.array([-1]))
    np.testing.assert_array_equal(found.neighbors().rows_QK, expected.rows_QK)


def test_cosines_of_rows_that_are_not_normalised_are_cosines() -> None:
    one = np.array([[3, 4], [0, 2]], np.float16)
    other = np.array([[4, 3], [0, -5]], np.float16)
    np.testing.assert_array_equal(cosines(one, other), [0.96, -1.0])


def test_the_cosine_with_a_row_of_zeros_is_nan() -> None:
    zero, one = np.zeros((1, 2), np.float16), np.ones((1, 2), np.float16)
    assert np.isnan(cosines(zero, one)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_a_query_without_a_direction_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="zero or not finite"):
        Search(np.full((1, 4), value, np.float16), 3)


@pytest.mark.parametrize("equal", [1, 30])
def test_a_gpu_is_asked_where_faiss_has_one(monkeypatch: pytest.MonkeyPatch, equal: int) -> None:
    asked: list[int] = []

    def knn_gpu(resources: object, queries: Any, rows: Any, k: int, *, metric: int) -> Any:
        asked.append(k)
        return search.faiss.knn(queries, rows, k, metric)

    monkeypatch.setattr(search.faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(search.faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(search.faiss, "knn_gpu", knn_gpu, raising=False)
    values = unit(np.random.default_rng(2).standard_normal((60, 8)))
    values = np.repeat(values, equal, axis=0)  # more equal ones than the GPU was asked for
    rows = np.arange(len(values))
    found = Search(values[:2], 3)
    found.add(block_of(rows, values))
    assert asked == [3 + search.GPU_SLACK]
    expected = by_hand(rows, values, values[:2], 3, np.array([-1, -1]))
    np.testing.assert_array_equal(found.neighbors().rows_QK, expected.rows_QK)


def test_float16_becomes_float32_without_rounding() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(-1, 64)
    np.testing.assert_array_equal(to_float32(every), every.astype(np.float32))


class TestOfACache:
    @pytest.fixture(params=["raw", "compressed"])
    def foreign(
        self,
        request: pytest.FixtureRequest,
        tmp_path: Path,
        write_foreign_cache: Callable[..., "ForeignCache"],
    ) -> "ForeignCache":
        """A cache of short units, a gap and rejected rows; its arrays mapped, or read by zarr."""
        return write_foreign_cache(tmp_path / "c", compressed=request.param == "compressed")

    @pytest.mark.parametrize("block_rows", [1, 4, 6, 7, 100])
    @pytest.mark.parametrize("view", [0, 1])
    def test_blocks_hold_every_row_that_has_a_target_once(
        self, foreign: "ForeignCache", block_rows: int, view: int
    ) -> None:
        whole = foreign.targets["tiny", "image"][:, view]
        targets = open_cache(foreign.root).image_targets()
        found = [copy.deepcopy(b) for b in read_blocks(targets, view=view, block_rows=block_rows)]
        expected = np.flatnonzero(np.isfinite(whole).all(axis=1))
        np.testing.assert_array_equal(np.concatenate([b.rows_B for b in found]), expected)
        np.testing.assert_array_equal(np.concatenate([b.values_BD for b in found]), whole[expected])
        assert max(len(b.rows_B) for b in found) <= block_rows
        units = np.concatenate([b.unit_BD for b in found])
        np.testing.assert_allclose(np.linalg.norm(units, axis=1), 1, atol=1e-6)

    def test_blocks_hold_only_the_rows_that_are_wanted(self, foreign: "ForeignCache") -> None:
        targets = open_cache(foreign.root).text_targets()
        wanted = np.array([2, 3, 4, 11, 13])  # 3 was rejected, 11 is a gap
        found = np.concatenate([b.rows_B for b in read_blocks(targets, rows=wanted, block_rows=2)])
        assert found.tolist() == [2, 4, 13]

    def test_a_block_is_compared_with_the_rows_wanted_of_its_own_range_alone(
        self, foreign: "ForeignCache", monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sizes: list[int] = []
        real = np.isin

        def isin(rows: Any, wanted: Any, **options: Any) -> Any:
            sizes.append(len(wanted))
            return real(rows, wanted, **options)

        targets = open_cache(foreign.root).image_targets()
        wanted = targets.available_rows()
        monkeypatch.setattr(np, "isin", isin)
        found = np.concatenate([b.rows_B for b in read_blocks(targets, rows=wanted, block_rows=2)])
        assert found.tolist() == wanted.tolist()
        assert max(sizes) <= 2

    @pytest.mark.parametrize("block_rows", [2, 5, None])
    def test_images_near_a_text_are_found_across_shards_gaps_and_rejected_rows(
        self, foreign: "ForeignCache", block_rows: int | None
    ) -> None:
        cache = open_cache(foreign.root)
        images, texts = foreign.targets["tiny", "image"][:, 1], foreign.targets["tiny", "text"]
        have = np.flatnonzero(np.isfinite(images).all(axis=1))
        queries = texts[[0, 12]]
        found = exact_neighbors(cache.image_targets(), queries, 50, view=1, block_rows=block_rows)
        expected = by_hand(have, images[have], queries, 50, np.array([-1, -1]))
        np.testing.assert_array_equal(found.rows_QK, expected.rows_QK)
        np.testing.assert_array_equal(found.cosine_QK, expected.cosine_QK)

    def test_rows_that_a_foreign_writer_left_without_a_direction_are_nobodys_neighbours(
        self, foreign: "ForeignCache", monkeypatch: pytest.MonkeyPatch
    ) -> None:
        targets = open_cache(foreign.root).text_targets()
        read_part = targets.read_part

        def damaged(unit: int, first: int, out: NDArray[np.float16]) -> None:
            read_part(unit, first, out)
            if unit == 0:
                out[0], out[1, 3], out[2] = 0, np.nan, np.inf

        monkeypatch.setattr(targets, "read_part", damaged)
        rows = np.concatenate([b.rows_B for b in read_blocks(targets)])
        assert rows.tolist() == [4, 5, 6, 7, 8, 9, 12, 13, 14]

    def test_no_block_is_empty(self, foreign: "ForeignCache") -> None:
        targets = open_cache(foreign.root).image_targets()  # rows 8 and 9 were rejected
        assert min(len(b.rows_B) for b in read_blocks(targets, block_rows=2)) > 0

    def test_a_missing_shard_is_an_error_and_not_rows_without_target(
        self, foreign: "ForeignCache"
    ) -> None:
        (foreign.root / layout.shard("tiny", "image", 1)).unlink()
        with pytest.raises(DamagedCacheError, match=r"c/1/0/0 is missing"):
            list(read_blocks(open_cache(foreign.root).image_targets()))

    def test_a_view_that_is_not_there_is_named(self, foreign: "ForeignCache") -> None:
        targets = open_cache(foreign.root).image_targets()
        with pytest.raises(RowUnavailableError, match=r"view 2 is not in .* views 0\.\.1"):
            list(read_blocks(targets, view=2))


def test_a_compressed_shard_that_cannot_be_decoded_is_named(
    tmp_path: Path, write_foreign_cache: Callable[..., "ForeignCache"]
) -> None:
    root = write_foreign_cache(tmp_path / "c", compressed=True).root
    shard = root / layout.shard("tiny", "image", 0)
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DamagedCacheError, match=r"c/0/0/0 cannot be decoded .*verify"):
        list(read_blocks(open_cache(root).image_targets()))


def test_a_block_of_many_views_is_smaller(
    foreign: "ForeignCache", monkeypatch: pytest.MonkeyPatch
) -> None:
    # 8 wide: 32 bytes a row in float32, 2 views of 16 stored; one of 8 views takes 128.
    targets = open_cache(foreign.root).image_targets()
    monkeypatch.setattr(scan, "BLOCK_BYTES", 128)
    assert max(len(b.rows_B) for b in read_blocks(targets)) == 4
    monkeypatch.setattr(type(targets), "shape", property(lambda _: (22, 8, 8)))
    assert scan.rows_of_block(targets) == 1


def test_a_damaged_shard_is_named(foreign: "ForeignCache", tmp_path: Path) -> None:
    import shutil

    shutil.copytree(foreign.root, tmp_path / "c")
    shard = tmp_path / "c" / layout.shard("tiny", "image", 1)
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DamagedCacheError, match=r"c/1/0/0 .*siglip2-cache verify"):
        list(read_blocks(open_cache(tmp_path / "c").image_targets()))
