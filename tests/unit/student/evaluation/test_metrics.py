"""Nearness to the teacher and calibration: small cases by hand, larger ones against plain loops."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from siglip2_cache.student.evaluation.calibration import (
    all_pair_gaps,
    calibration_error,
    gap_size,
    other_pairs,
    reliability,
)
from siglip2_cache.student.evaluation.metrics import (
    finite_mean,
    image_agreement,
    index_overlap,
    match_entropy,
    pair_cosines,
    row_cosines,
    sigmoid,
    soft_loss_excess,
)


def unit_rows(seed: int, shape: tuple[int, int]) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).normal(size=shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_the_mean_cosine_takes_rows_of_any_length_and_leaves_out_what_is_missing() -> None:
    student = np.array([[3.0, 4.0], [0, 2], [np.nan, 1], [0, 0]])
    teacher = np.array([[1.0, 0.0], [0, 1], [0, 1], [1, 0]])
    assert finite_mean(row_cosines(student, teacher)) == pytest.approx((0.6 + 1 + 0) / 3)
    assert finite_mean(row_cosines(student[2:3], teacher[2:3])) is None


@pytest.mark.parametrize("block_rows", [1, 4, 13, None])
def test_agreement_equals_a_loop_over_all_pairs_of_images(block_rows: int | None) -> None:
    student, teacher = unit_rows(0, (30, 5)), unit_rows(1, (30, 7))
    student[:, :2] += teacher[:, :2]
    missing = student.copy()
    missing[11], teacher[4] = np.nan, np.nan
    kept = [i for i in range(30) if i not in (4, 11)]
    x = [[float(student[i].astype(float) @ student[j]) for j in kept] for i in kept]
    y = [[float(teacher[i].astype(float) @ teacher[j]) for j in kept] for i in kept]
    above = np.triu_indices(28, 1)
    expected = np.corrcoef(np.array(x)[above], np.array(y)[above])[0, 1]

    def nearest(row: list[float], i: int) -> set[int]:
        return set(sorted((j for j in range(28) if j != i), key=lambda j: -row[j])[:10])

    shared = [len(nearest(x[i], i) & nearest(y[i], i)) for i in range(28)]
    found = image_agreement(missing, teacher, block_rows=block_rows)
    assert found.correlation == pytest.approx(expected, abs=1e-6)
    assert found.overlap == pytest.approx(sum(shared) / 280)
    assert found.images_N.tolist() == kept
    np.testing.assert_allclose(found.shared_N, np.array(shared) / 10)
    assert 0.1 < expected < 0.9


def test_a_model_agrees_with_itself_turned_and_not_with_one_that_collapsed() -> None:
    rows = unit_rows(2, (40, 6))
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(6, 6)))[0]
    found = image_agreement(rows.astype(float) @ turn, rows)
    assert found.correlation == pytest.approx(1)
    assert found.overlap == 1
    assert image_agreement(np.tile(rows[:1], (40, 1)), rows).correlation is None
    one = image_agreement(rows[:1], rows[:1])
    assert one.correlation is one.overlap is None


def test_of_equally_near_neighbours_the_first_rows_are_taken() -> None:
    # From row 0, the student sees rows 1, 2, 3 equally near, the teacher 1 and 3 nearer than 2.
    # Nearest 2 of row 0: {1, 2} and {1, 3}; of 1: {0, 2} and {3, 0}; of 2: {0, 1} and {3, 0};
    # of 3: {0, 1} and {1, 0}.
    student = np.eye(4)
    angle = np.radians([0, 10, 25, 12])
    teacher = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    # row 0: 10, 12; row 1: 2 (row 3), 10 (row 0); row 2: 13 (row 3), 15 (row 1); row 3: 2, 12
    assert image_agreement(student, teacher, num_neighbours=2).overlap == pytest.approx(
        (1 + 1 + 1 + 2) / 8
    )


def bernoulli_kl(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


@pytest.mark.parametrize("block_rows", [None, 1])
def test_the_overlap_in_an_index_is_the_share_of_the_references_answers_that_are_found(
    block_rows: int | None,
) -> None:
    index = np.eye(5)[[0, 1, 2, 3, 3]]
    index[3] = np.nan  # no answer to anybody
    reference = np.array([[4.0, 3, 2, 0, 1], [4, 3, 2, 0, 1], [np.nan] * 5, [0, 1, 2, 9, 0]])
    queries = np.array([[9.0, 1, 8, 0, 0], [np.nan] * 5, [1, 2, 3, 4, 5], [0, 1, 2, 9, 0]])
    # The first two of rows 0, 1, 2 and 4: reference 0 finds 0 and 1, the query 0 and 2.
    found = index_overlap(index, queries, reference, num_neighbours=2, block_rows=block_rows)
    np.testing.assert_array_equal(found, [0.5, 0, np.nan, 1])
    # Rows 0 and 4 are copies of query 0, of which 2 is then the nearest of 1 and 2; the reference finds 1.
    own = (np.array([7, 1, 2, 3, 7]), np.array([7, 8, 9, 7]))
    found = index_overlap(index, queries, reference, own, num_neighbours=1, block_rows=block_rows)
    np.testing.assert_array_equal(found, [0, 0, np.nan, 1])
    assert np.isnan(index_overlap(index[:1], queries, reference)).all()


def test_the_entropy_of_a_match_by_hand() -> None:
    """Cosines 1, 0, -1 and 0 at scale 2 and bias 0.5; the third image has no embedding."""
    images = np.array([[1.0, 0], [-1, 0], [np.nan, 0]])
    texts = np.array([[1.0, 0], [0, 1]])
    expected = 0.0
    for logit in (2.5, 0.5, -1.5, 0.5):
        p = 1 / (1 + math.exp(-logit))
        expected -= (p * math.log(p) + (1 - p) * math.log(1 - p)) / 4
    assert match_entropy(images, texts, (2.0, 0.5)) == pytest.approx(expected, rel=1e-12)
    assert match_entropy(images, texts, (2.0, 0.5), block_rows=1) == pytest.approx(expected)
    assert match_entropy(images[2:], texts, (2.0, 0.5)) is None


@pytest.mark.parametrize("block_rows", [1, 2, None])
def test_the_soft_loss_less_the_entropy_is_the_divergence_of_each_pair(
    block_rows: int | None,
) -> None:
    student, teacher = (
        (unit_rows(0, (3, 4)), unit_rows(1, (5, 4))),
        (
            unit_rows(2, (3, 6)),
            unit_rows(3, (5, 6)),
        ),
    )

    def probability(sides: tuple[NDArray[np.float32], ...], i: int, j: int, t: float, b: float):
        return 1 / (1 + math.exp(-(t * float(sides[0][i].astype(float) @ sides[1][j]) + b)))

    expected = [
        bernoulli_kl(probability(teacher, i, j, 7, -1), probability(student, i, j, 3, 0.5))
        for i in range(3)
        for j in range(5)
    ]
    found = soft_loss_excess(
        student, teacher, student_logit=(3, 0.5), teacher_logit=(7, -1), block_rows=block_rows
    )
    assert found == pytest.approx(np.mean(expected))


def test_the_excess_is_zero_for_the_teacher_itself_and_counts_pairs_that_both_have() -> None:
    images, texts = unit_rows(0, (6, 4)), unit_rows(1, (5, 4))
    own = soft_loss_excess(
        (images, texts), (images, texts), student_logit=(117, -17), teacher_logit=(117, -17)
    )
    assert own == 0
    holes = images.copy()
    holes[0] = np.nan
    logits = {"student_logit": (9.0, -1.0), "teacher_logit": (117.0, -17.0)}
    found = soft_loss_excess((holes, texts), (images, texts), **logits)
    assert found == soft_loss_excess((images[1:], texts), (images[1:], texts), **logits)
    assert found is not None
    assert found > 0
    assert soft_loss_excess((holes[:1], texts), (images[:1], texts), **logits) is None


def test_large_logits_neither_overflow_nor_lose_their_sign() -> None:
    assert sigmoid(np.array([-2000.0, 0, 2000])).tolist() == [0, 0.5, 1]
    one, other = np.array([[1.0, 0]]), np.array([[-1.0, 0]])
    logits = {"student_logit": (1000.0, 0.0), "teacher_logit": (1000.0, 0.0)}
    # The teacher is sure that they match, the student's logit is -1000: 1000 + 1000 - 1000 nats
    assert soft_loss_excess((one, other), (one, one), **logits) == pytest.approx(1000)


def test_the_calibration_error_of_two_bins_is_the_weighted_gap_between_said_and_true() -> None:
    # bin 1 of 15, [.0667, .1333): .1, .1, .12 said, one of three true: |.32 - 1| / 4
    # bin 14: .95 said, true: |.95 - 1| / 4
    said = np.array([0.1, 0.1, 0.12, 0.95])
    true = np.array([False, True, False, True])
    assert calibration_error(said, true) == pytest.approx((0.68 + 0.05) / 4)
    assert calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == 0
    # 1 itself is of the last bin: |1.95 - 1| / 2
    sure = calibration_error(np.array([1.0, 0.95]), np.array([False, True]))
    assert sure == pytest.approx(0.475)
    # gaps of one bin make up for each other, gaps of two do not
    assert calibration_error(np.array([0.45, 0.45]), np.array([True, False])) == pytest.approx(0.05)
    assert calibration_error(np.array([0.45, 0.55]), np.array([True, False])) == pytest.approx(0.55)
    assert calibration_error(np.array([np.nan, 0.5]), np.array([True, True])) == 0.5
    assert calibration_error(np.array([np.nan]), np.array([True])) is None


def test_other_pairs_are_as_many_repeatable_and_never_known_to_match() -> None:
    image_P, text_P = np.array([0, 0, 1, 2, 3]), np.array([0, 1, 1, 2, 5])
    picture_N = np.array([0, 1, 2, 2, 4])  # images 2 and 3 are one picture, 4 has no caption
    known = {(0, 0), (0, 1), (1, 1), (2, 2), (3, 5), (2, 5), (3, 2)}
    drawn: set[tuple[int, int]] = set()
    for seed in range(40):
        images, texts = other_pairs(image_P, text_P, picture_N, seed=seed)
        assert len(images) == len(texts) == 5
        drawn |= set(zip(images.tolist(), texts.tolist(), strict=True))
    assert drawn == {(i, t) for i in range(5) for t in (0, 1, 2, 5)} - known
    again = other_pairs(image_P, text_P, picture_N, seed=39)
    assert [side.tolist() for side in again] == [images.tolist(), texts.tolist()]


def test_where_every_pair_matches_there_is_no_other() -> None:
    images, texts = other_pairs(np.array([0]), np.array([0]), np.array([0]), seed=0)
    assert len(images) == len(texts) == 0


def test_cosines_of_pairs_are_those_of_their_rows() -> None:
    images, texts = unit_rows(0, (4, 3)), unit_rows(1, (5, 3))
    found = pair_cosines(images, texts, np.array([3, 0, 3]), np.array([1, 4, 2]))
    expected = [images[3] @ texts[1], images[0] @ texts[4], images[3] @ texts[2]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("block_rows", [1, 2, None])
def test_the_gaps_of_all_pairs_are_of_every_image_with_every_text(block_rows: int | None) -> None:
    """Logits 2.5, .5 (bins 2 and 0) of image 0, -1.5 and .5 of image 2 (-2 and 0); 1 has no embedding."""
    images = np.array([[1.0, 0], [np.nan, 0], [-1, 0]])
    texts = np.array([[np.nan, 0], [1.0, 0], [0, 1]])
    pairs = (np.array([2, 0, 0, 1]), np.array([2, 0, 1, 1]))  # text 0 and image 1 are missing
    found = all_pair_gaps(images, texts, (2.0, 0.5), *pairs, block_rows=block_rows)
    high, middle, low = (float(sigmoid(np.array(z))) for z in (2.5, 0.5, -1.5))
    expected = np.zeros((3, 45))
    expected[0, [21 + 2, 21]] = high - 1, middle
    expected[2, [21 - 2, 21]] = low, middle - 1
    expected[0, -3:] = 1, high + middle, 2
    expected[2, -3:] = 1, low + middle, 2
    np.testing.assert_allclose(found, expected, atol=1e-12)
    # Of two matches: bin 2 lacks 1 - high, bin 0 has 2 middle - 1 too much, bin -2 low.
    sums = found.sum(axis=0, keepdims=True)
    assert gap_size(sums[:, :-2])[0] == pytest.approx((1 - high + 2 * middle - 1 + low) / 2)


@pytest.mark.parametrize("block_rows", [1, None])
def test_reliability_has_the_mean_probability_and_the_share_that_match_by_bin(
    block_rows: int | None,
) -> None:
    """The logits of the test above: 2.5 matches, of two of .5 one does, -1.5 does not."""
    images = np.array([[1.0, 0], [np.nan, 0], [-1, 0]])
    texts = np.array([[np.nan, 0], [1.0, 0], [0, 1]])
    pairs = (np.array([2, 0, 0, 1]), np.array([2, 0, 1, 1]))
    found = reliability(images, texts, (2.0, 0.5), *pairs, block_rows=block_rows)
    probabilities = [float(sigmoid(np.array(z))) for z in (-1.5, 0.5, 2.5)]
    np.testing.assert_allclose(found[0], probabilities)
    np.testing.assert_allclose(found[1], [0, 0.5, 1])
    np.testing.assert_array_equal(found[2], [1, 2, 1])


def test_a_model_that_is_right_about_all_pairs_is_calibrated_there_and_not_where_half_match() -> (
    None
):
    """Logits of all pairs are drawn, and matches as often as they say: one in some hundreds."""
    draw = np.random.default_rng(0)
    images, texts = unit_rows(0, (400, 3)), unit_rows(1, (400, 3))
    logit = (9.0, -9.5)
    probability = sigmoid(logit[0] * images.astype(float) @ texts.T.astype(float) + logit[1])
    image_P, text_P = (np.array(side) for side in np.nonzero(draw.random((400, 400)) < probability))
    sums = all_pair_gaps(images, texts, logit, image_P, text_P).sum(axis=0, keepdims=True)
    assert sums[0, -3] == len(image_P)
    assert 0.001 < sums[0, -3] / sums[0, -1] < 0.05
    assert sums[0, -2] == pytest.approx(sums[0, -3], rel=0.05)
    assert gap_size(sums[:, :-2])[0] < 0.1
    sure = all_pair_gaps(images, texts, (9.0, -7.5), image_P, text_P).sum(axis=0, keepdims=True)
    assert gap_size(sure[:, :-2])[0] > 2
    other = other_pairs(image_P, text_P, np.arange(400), seed=0)
    said = [probability[pairs] for pairs in ((image_P, text_P), other)]
    is_match = np.repeat([True, False], [len(side) for side in said])
    balanced = calibration_error(np.concatenate(said), is_match)
    assert balanced is not None
    assert balanced > 0.3
