"""Clusters of what is the same or nearly."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siglip2_cache import open_cache
from siglip2_cache.errors import SettingError
from siglip2_cache.neighbors.duplicates import (
    Clusters,
    DuplicatesConfig,
    find_duplicates,
    near_pairs,
)
from siglip2_cache.neighbors.report_json import report_values
from siglip2_cache.store.search.exact import cosines
from siglip2_cache.store.targets import blocks as scan


def test_a_copy_is_found_by_its_bytes_a_jpeg_and_a_mirrored_one_by_embedding(planted: Path) -> None:
    found = find_duplicates(DuplicatesConfig(cache=planted, teacher="first"))
    [group] = found.groups
    by_key = {item.key: item for item in group.items}
    assert list(by_key) == ["p00", "copy", "again", "mirrored"]
    assert by_key["copy"].remarks == ("same bytes",)
    assert by_key["copy"].cosine == 1.0
    assert by_key["again"].remarks == by_key["mirrored"].remarks == ()
    assert by_key["again"].cosine is not None
    assert 0.95 < by_key["again"].cosine < 1
    assert found.summary == (
        "15 images, 14 of them different; 91 pairs compared, 3 with cosine 0.95 or more; "
        "1 without an embedding left out",
        "1 cluster of 4 images: 1 link by equal bytes, 2 by embedding",
    )


def test_equal_bytes_belong_together_whatever_the_limit(planted: Path) -> None:
    found = find_duplicates(DuplicatesConfig(cache=planted, teacher="second", above=1))
    assert [[item.key for item in group.items] for group in found.groups] == [["p00", "copy"]]


def test_json_holds_the_counts_and_the_clusters(planted: Path) -> None:
    found = find_duplicates(DuplicatesConfig(cache=planted, teacher="first", limit=None))
    values = report_values(found)
    assert (values["images"], values["different"], values["num_clusters"]) == (15, 14, 1)
    assert values["clusters"][0]["size"] == 4
    assert values["clusters"][0]["members"][1]["key"] == "copy"


def test_a_sample_is_compared_instead_of_all(planted: Path) -> None:
    settings = DuplicatesConfig(cache=planted, teacher="first", sample=5, above=-1)
    found = find_duplicates(settings)
    assert found.values["images"] == 5
    assert found.summary[0].startswith("5 images, a random choice of 15, ")
    assert find_duplicates(settings).values == found.values
    keys = {item.key for group in found.groups for item in group.items}
    other = find_duplicates(replace(settings, seed=1)).groups
    assert keys != {item.key for group in other for item in group.items}


def test_a_teacher_that_finds_everything_alike_is_told_of(planted: Path) -> None:
    found = find_duplicates(DuplicatesConfig(cache=planted, teacher="first", above=-1, members=3))
    assert [len(group.items) for group in found.groups] == [3]
    assert found.groups[0].heading == "cluster 1: 15 images; cosines to the first; showing 3"
    assert found.summary[-1].startswith(
        "one cluster has 15 members: for first most of these are alike"
    )


@pytest.mark.parametrize("above", [-0.2, 0.0, 0.1, 0.95])
def test_pairs_are_those_of_float64(planted: Path, above: float) -> None:
    targets = open_cache(planted).image_targets("first")
    rows = targets.available_rows()
    values = targets.read(rows)
    expected = {
        (int(one), int(rows[j]))
        for i, one in enumerate(rows)
        for j in range(i + 1, len(rows))
        if cosines(values[i : i + 1], values[j : j + 1])[0] >= above
    }
    found = np.concatenate(list(near_pairs(targets, rows, above)))
    assert len(found) == len(expected)
    assert set(map(tuple, found.tolist())) == expected


@pytest.mark.parametrize("rows_of_block", [1, 2, 5])
def test_pairs_do_not_depend_on_blocks(
    planted: Path, monkeypatch: pytest.MonkeyPatch, rows_of_block: int
) -> None:
    targets = open_cache(planted).image_targets("first")
    rows = targets.available_rows()
    whole = np.concatenate(list(near_pairs(targets, rows, 0.1)))
    monkeypatch.setattr(scan, "rows_of_block", lambda _: rows_of_block)
    parts = np.concatenate(list(near_pairs(targets, rows, 0.1)))
    assert sorted(map(tuple, parts.tolist())) == sorted(map(tuple, whole.tolist()))
    found = find_duplicates(DuplicatesConfig(cache=planted, teacher="first"))
    assert [group.values["size"] for group in found.groups] == [4]


def test_duplicates_are_those_of_the_view_asked_for(planted: Path) -> None:
    targets = open_cache(planted).image_targets("first")
    rows = targets.available_rows()
    values = targets.read(rows, 1)
    expected = {
        (int(rows[i]), int(rows[j]))
        for i in range(len(rows))
        for j in range(i + 1, len(rows))
        if cosines(values[i : i + 1], values[j : j + 1])[0] >= 0.3
    }
    found = np.concatenate(list(near_pairs(targets, rows, 0.3, view=1)))
    assert set(map(tuple, found.tolist())) == expected
    assert find_duplicates(
        DuplicatesConfig(cache=planted, teacher="first", view=1, above=0.3)
    ).values["pairs"] <= len(expected)


def test_the_limit_itself_is_decided_in_float64(planted: Path) -> None:
    targets = open_cache(planted).image_targets("first")
    rows = targets.available_rows()[:2]
    values = targets.read(rows)
    exact = float(cosines(values[:1], values[1:])[0])
    assert len(np.concatenate(list(near_pairs(targets, rows, exact)))) == 1
    assert len(np.concatenate(list(near_pairs(targets, rows, np.nextafter(exact, 2))))) == 0


@given(
    near=st.sets(st.tuples(st.integers(0, 19), st.integers(0, 19)).filter(lambda p: p[0] < p[1])),
    copies=st.dictionaries(st.integers(1, 19), st.integers(0, 18), max_size=4),
)
def test_the_first_of_a_cluster_is_near_all_of_it_and_no_first_of_another(
    near: set[tuple[int, int]], copies: dict[int, int]
) -> None:
    same = np.arange(20)
    for copy, of in sorted(copies.items()):
        if of < copy and same[of] == of:
            same[copy] = of
    pairs = sorted(p for p in near if all(same[i] == i for i in p))
    clusters = Clusters(same)
    for some in np.array_split(np.array(pairs, np.int64).reshape(-1, 2), 3):
        clusters.add(*some.T)
    sets = [each.tolist() for each in clusters.sets()]
    assert [len(each) for each in sets] == sorted(map(len, sets), reverse=True)
    placed = [i for each in sets for i in each]
    assert len(placed) == len(set(placed))
    for first, *others in sets:
        for i in others:
            assert same[i] == first or (first, same[i]) in near
    alone = set(range(20)) - set(placed)
    firsts = sorted({each[0] for each in sets} | alone)
    assert not {(i, j) for i in firsts for j in firsts} & set(pairs)
    assert clusters.num_left == len({i for pair in pairs for i in pair} & alone)
    assert sum(len(each) - 1 for each in sets) == (same != np.arange(20)).sum() + clusters.num_near


@pytest.mark.parametrize("above", [-0.1, 0.05, 0.2, 0.4])
def test_no_member_is_further_from_the_first_than_was_asked_for(
    planted: Path, above: float
) -> None:
    config = DuplicatesConfig(cache=planted, teacher="first", above=above, members=None)
    found = find_duplicates(config)
    assert found.groups
    for group in found.groups:
        assert all(item.cosine is not None and item.cosine >= above for item in group.items)


def test_a_row_that_is_near_a_member_alone_stands_in_no_cluster_and_is_counted() -> None:
    clusters = Clusters(np.arange(4))
    clusters.add(np.array([0, 1]), np.array([1, 2]))
    assert [each.tolist() for each in clusters.sets()] == [[0, 1]]
    assert (clusters.num_near, clusters.num_left) == (1, 1)


def test_texts_that_are_nearly_the_same_are_found_too(planted: Path) -> None:
    found = find_duplicates(
        DuplicatesConfig(cache=planted, teacher="first", among="texts", above=-1)
    )
    assert found.groups[0].values == {"size": open_cache(planted).num_texts}


@pytest.mark.parametrize("name", ["limit", "members"])
def test_nothing_is_shown_of_nothing(planted: Path, name: str) -> None:
    with pytest.raises(SettingError, match=f"--{name} must be at least 1, got -1"):
        DuplicatesConfig(cache=planted, **{name: -1})


def test_a_limit_that_is_no_cosine_is_refused(planted: Path) -> None:
    with pytest.raises(SettingError, match=r"--above must be a cosine, -1 to 1, got 95"):
        DuplicatesConfig(cache=planted, above=95)
