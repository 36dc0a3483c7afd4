"""Mismatched captions, outliers, and two teachers against each other."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from siglip2_cache import open_cache
from siglip2_cache.errors import SettingError
from siglip2_cache.neighbors import mismatched, outliers
from siglip2_cache.neighbors.agreement import AgreementConfig, find_disagreements
from siglip2_cache.neighbors.mismatched import MismatchedConfig, find_mismatched
from siglip2_cache.neighbors.outliers import OutliersConfig, find_outliers
from siglip2_cache.neighbors.report_json import report_values
from siglip2_cache.store.search.exact import cosines, exact_neighbors


def matrix(cache: Path, teacher: str, view: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows with a target, and the cosines between them."""
    targets = open_cache(cache).image_targets(teacher)
    rows = targets.available_rows()
    values = targets.read(rows, view).astype(np.float64)
    dots = values @ values.T  # exact, so that equal pictures are equally near
    return rows, dots / np.sqrt(np.outer(np.diag(dots), np.diag(dots)))


@pytest.mark.parametrize("at_once", [3, 1000])
def test_the_pairs_of_lowest_cosine_come_first_with_their_probability(
    planted: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(mismatched, "_PAIRS_AT_ONCE", at_once)
    cache = open_cache(planted)
    found = find_mismatched(MismatchedConfig(cache=planted, teacher="first", limit=4))
    pairs = cache.captions().collect().select("row", "text_row").rows()
    images, texts = cache.image_targets("first"), cache.text_targets("first")
    by_hand = sorted(
        (
            float(images.read([row])[0].astype(float) @ texts.read([text])[0].astype(float)),
            row,
            text,
        )
        for row, text in pairs
        if images.available([row])[0]
    )
    assert [s.query.row for s in found.groups if s.query] == [row for _, row, _ in by_hand[:4]]
    for group, (cosine, _, text_row) in zip(found.groups, by_hand, strict=False):
        own, best = group.items
        assert (own.row, own.remarks[0]) == (text_row, "own caption")
        assert own.cosine == pytest.approx(cosine, abs=1e-3)
        assert own.cosine is not None
        p = 1 / (1 + math.exp(-(math.exp(4.75) * own.cosine - 16.8)))
        assert own.values["probability"] == pytest.approx(p)
        assert best.remarks[0] == "nearest text"
        assert best.cosine is not None
        assert best.cosine > own.cosine
    values = report_values(found)
    assert (values["pairs"], values["left_out"]) == (len(by_hand), len(pairs) - len(by_hand))
    assert "1 without an embedding left out" in found.summary[0]


def test_a_pair_in_two_languages_is_counted_and_shown_once(foreign_cache: Path) -> None:
    captions = open_cache(foreign_cache).captions().select("row", "text_row").collect()
    assert captions.height == captions.unique().height + 1
    found = find_mismatched(MismatchedConfig(cache=foreign_cache, limit=1000))
    values = report_values(found)
    assert values["pairs"] + values["left_out"] == captions.unique().height
    shown = [(s.query.row, s.items[0].row) for s in found.groups if s.query]
    assert len(shown) == len(set(shown)) == values["pairs"]


def test_mismatches_are_those_of_the_view_asked_for(planted: Path) -> None:
    cache = open_cache(planted)
    found = find_mismatched(MismatchedConfig(cache=planted, teacher="first", view=1, limit=3))
    for group in found.groups:
        assert group.query is not None
        image = cache.image_targets("first").read([group.query.row], 1)
        text = cache.text_targets("first").read([group.items[0].row])
        assert group.items[0].cosine == cosines(image, text)[0]
        nearest = exact_neighbors(cache.text_targets("first"), image, 1)
        assert group.items[-1].row == nearest.rows_QK[0, 0]


def test_a_nearest_text_that_is_a_caption_too_is_called_so(planted: Path) -> None:
    found = find_mismatched(MismatchedConfig(cache=planted, teacher="first", limit=1000))
    cache = open_cache(planted)
    pairs = set(cache.captions().select("row", "text_row").collect().iter_rows())
    said = 0
    for group in found.groups:
        if group.query is not None and len(group.items) == 2:
            is_own = (group.query.row, group.items[1].row) in pairs
            assert (group.items[1].remarks[0] == "nearest text, also its caption") == is_own
            said += is_own
    assert said > 0


@pytest.mark.parametrize(
    ("logit", "p"), [(0.0, 0.5), (800.0, 1.0), (-800.0, 0.0), (2.0, 0.8807970779778823)]
)
def test_no_logit_is_too_far(logit: float, p: float) -> None:
    assert mismatched._sigmoid(logit) == pytest.approx(p)


def test_outliers_and_overlap_are_those_of_the_view_asked_for(planted: Path) -> None:
    rows, cosine = matrix(planted, "first", view=1)
    np.fill_diagonal(cosine, -np.inf)
    means = np.sort(cosine, axis=1)[:, -3:].mean(axis=1)
    far = find_outliers(OutliersConfig(cache=planted, teacher="first", k=3, limit=2, view=1))
    assert [s.query.row for s in far.groups if s.query] == rows[np.argsort(means)[:2]].tolist()
    assert far.groups[0].items[0].cosine == pytest.approx(cosine[np.argsort(means)[0]].max())
    found = find_disagreements(
        AgreementConfig(cache=planted, teacher="first", other_teacher="second", k=4, view=1)
    )
    tops: list[list[set[int]]] = []
    for teacher in ("first", "second"):
        rows, cosine = matrix(planted, teacher, view=1)
        np.fill_diagonal(cosine, -np.inf)
        tops.append([set(rows[np.lexsort((rows, -each))[:4]].tolist()) for each in cosine])
    shared = [len(one & other) for one, other in zip(*tops, strict=True)]
    assert report_values(found)["overlap"] == pytest.approx(np.mean(shared) / 4)


def test_far_rows_of_a_reference_that_are_doubled_are_not_left_out_for_themselves(
    planted: Path,
) -> None:
    rows, cosine = matrix(planted, "first")
    np.fill_diagonal(cosine, -np.inf)
    found = find_outliers(OutliersConfig(cache=planted, teacher="first", k=1, limit=50))
    shown = {s.query.row: s.values["mean_cosine"] for s in found.groups if s.query}
    np.testing.assert_allclose([shown[r] for r in rows.tolist()], cosine.max(axis=1), atol=1e-5)


def test_outliers_are_farthest_from_their_nearest(planted: Path) -> None:
    rows, cosine = matrix(planted, "first")
    np.fill_diagonal(cosine, -np.inf)
    means = np.sort(cosine, axis=1)[:, -3:].mean(axis=1)
    order = np.argsort(means)
    found = find_outliers(OutliersConfig(cache=planted, teacher="first", k=3, limit=4))
    assert [s.query.row for s in found.groups if s.query] == rows[order[:4]].tolist()
    shown = [group.values["mean_cosine"] for group in found.groups]
    np.testing.assert_allclose(shown, means[order[:4]], atol=1e-5)
    nearest = found.groups[0].items[0]
    assert nearest.row == rows[cosine[order[0]].argmax()]


def test_outliers_of_many_rows_are_measured_by_a_seeded_reference(
    planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outliers, "REFERENCE_ROWS", 6)
    rows, cosine = matrix(planted, "first")
    found = find_outliers(OutliersConfig(cache=planted, teacher="first", k=2, limit=50, seed=5))
    chosen = np.sort(np.random.default_rng(5).choice(rows, 6, replace=False))
    among = np.searchsorted(rows, chosen)
    np.fill_diagonal(cosine, -np.inf)
    means = np.sort(cosine[:, among], axis=1)[:, -2:].mean(axis=1)
    shown = {s.query.row: s.values["mean_cosine"] for s in found.groups if s.query}
    np.testing.assert_allclose([shown[row] for row in rows.tolist()], means, atol=1e-5)
    assert "a sample of 6, seed 5" in found.summary[0]


@pytest.mark.parametrize("sample", [6, 1000])
def test_overlap_is_the_share_of_neighbours_that_two_teachers_have_in_common(
    planted: Path, sample: int
) -> None:
    tops: list[list[set[int]]] = []
    for teacher in ("first", "second"):
        rows, cosine = matrix(planted, teacher)
        np.fill_diagonal(cosine, -np.inf)
        tops.append([set(rows[np.lexsort((rows, -each))[:4]].tolist()) for each in cosine])
    shared = np.array([len(one & other) for one, other in zip(*tops, strict=True)])
    found = find_disagreements(
        AgreementConfig(
            cache=planted, teacher="first", other_teacher="second", k=4, sample=sample, limit=3
        )
    )
    chosen = np.random.default_rng(0).choice(rows, min(sample, len(rows)), replace=False)
    shared_of = dict(zip(rows.tolist(), shared.tolist(), strict=True))
    values = report_values(found)
    assert values["overlap"] == pytest.approx(np.mean([shared_of[r] for r in chosen.tolist()]) / 4)
    assert values["overlap_by_chance"] == pytest.approx(4 / 14)
    worst = sorted(chosen.tolist(), key=lambda row: (shared_of[row], row))[:3]
    assert [s.query.row for s in found.groups if s.query] == [
        r for row in worst for r in (row, row)
    ]
    one, other = found.groups[:2]
    assert (one.values["teacher"], other.values["teacher"]) == ("first", "second")
    marked = {item.row for item in one.items if "shared" in item.remarks}
    assert len(marked) == shared_of[worst[0]]


def test_teachers_are_compared_by_the_texts_they_find_near_images(planted: Path) -> None:
    found = find_disagreements(
        AgreementConfig(cache=planted, teacher="first", other_teacher="second", among="texts", k=2)
    )
    assert {item.kind for group in found.groups for item in group.items} == {"text"}
    assert report_values(found)["texts_searched"] == open_cache(planted).num_texts


def test_a_teacher_is_not_compared_with_itself(planted: Path) -> None:
    with pytest.raises(SettingError, match=r"'first' is compared with itself; name another"):
        find_disagreements(AgreementConfig(cache=planted, teacher="first", other_teacher="first"))


@pytest.mark.parametrize("config", [MismatchedConfig, OutliersConfig])
def test_a_limit_of_nothing_is_refused(planted: Path, config: Any) -> None:
    with pytest.raises(SettingError, match="--limit must be at least 1, got 0"):
        config(cache=planted, limit=0)


def test_the_view_of_images_does_not_matter_to_texts(planted: Path) -> None:
    cache = open_cache(planted)
    found = find_disagreements(
        AgreementConfig(
            cache=planted, teacher="first", other_teacher="second", among="texts", view=1, k=1
        )
    )
    row = found.groups[0].query
    assert row is not None
    image = cache.image_targets("first").read([row.row], 1)
    nearest = exact_neighbors(cache.text_targets("first"), image, 1)
    assert found.groups[0].items[0].row == nearest.rows_QK[0, 0]
    far = find_outliers(OutliersConfig(cache=planted, teacher="first", among="texts", view=1))
    assert far.groups[0].items[0].kind == "text"
