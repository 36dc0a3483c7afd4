"""What encoding or mapping changes in the soft targets."""

import math

import numpy as np
import pytest

from siglip2_cache.errors import BuildError, SettingError
from siglip2_cache.store.format.row_encoding import FLOAT16, INT8, make_codec
from siglip2_cache.store.format.teacher_record import Distortion, TeacherRecord
from siglip2_cache.store.targets.distortion import (
    distortion_line,
    measure_distortion,
    refuse_distorted_rows,
    refuse_distortion,
    soft_target_error,
    squared_error,
)

FOUND = Distortion(
    kl_share=0.002,
    largest_logit_error=0.5,
    mean_squared_error=1e-4,
    num_images=9,
    num_texts=9,
)


def at_angles(*degrees: float) -> np.ndarray:
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1)


def test_a_case_worked_out_by_hand() -> None:
    # One image and one text at 60 degrees, at scale 4 and bias -1 a logit of 1; at 90 it is -1.
    p, q = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))
    kl = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    found = soft_target_error(
        (at_angles(0), at_angles(60)), (at_angles(0), at_angles(90)), scale=4, bias=-1
    )
    assert found.kl_share == pytest.approx(kl / entropy)
    assert found.largest_logit_error == pytest.approx(2)


def test_rows_of_one_modality_are_not_compared_with_themselves() -> None:
    rows, changed = at_angles(0, 60), at_angles(0, 90)
    alone = soft_target_error((rows, rows), (changed, changed), scale=4, bias=-1)
    pair = soft_target_error((rows[:1], rows[1:]), (changed[:1], changed[1:]), scale=4, bias=-1)
    assert alone.kl_share == pytest.approx(pair.kl_share)


def test_probabilities_near_one_and_zero_keep_their_share() -> None:
    # For a small error e of every logit the share is about e**2 / 2 / |logit|, far beyond rounding.
    for bias in (-300.0, 200.0):
        before = at_angles(0), at_angles(60)
        after = at_angles(0), at_angles(60 + math.degrees(0.01 / 100 / math.sin(math.pi / 3)))
        found = soft_target_error(before, after, scale=100, bias=bias)
        expected = 0.01**2 / 2 / abs(50 + bias)
        assert found.kl_share == pytest.approx(expected, rel=0.05)


def test_every_pair_of_each_batch_counts_whatever_the_norms() -> None:
    random = np.random.default_rng(0)
    images, texts = random.normal(size=(2, 2500, 8))
    same = soft_target_error((images, texts), (3 * images, texts / 2), scale=10, bias=-5)
    assert same.kl_share == pytest.approx(0, abs=1e-12)
    noisy = images + random.normal(size=images.shape) * 0.01
    some = soft_target_error((images, texts), (noisy, texts), scale=10, bias=-5)
    more = soft_target_error((images, texts), (2 * noisy - images, texts), scale=10, bias=-5)
    assert more.kl_share == pytest.approx(4 * some.kl_share, rel=0.05)  # quadratic in the error


@pytest.mark.parametrize(("num_images", "num_texts"), [(50, 50), (50, 0), (0, 50), (0, 0), (1, 0)])
def test_a_codec_is_measured_on_pairs_or_on_one_modality(num_images: int, num_texts: int) -> None:
    rows = np.random.default_rng(0).normal(size=(100, 64))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    images, texts = rows[:num_images], rows[50 : 50 + num_texts]
    found = measure_distortion(make_codec(INT8, 64), images, texts, scale=20, bias=-5)
    assert (found.num_images, found.num_texts) == (num_images, num_texts)
    assert (found.kl_share > 0) == (num_images + num_texts > 1)
    assert (found.mean_squared_error > 0) == (num_images + num_texts > 0)
    none = measure_distortion(make_codec(FLOAT16, 64), images, texts, scale=20, bias=-5)
    assert (none.kl_share, none.largest_logit_error, none.mean_squared_error) == (0, 0, 0)


def test_a_share_above_the_budget_is_refused_with_both() -> None:
    refuse_distortion(FOUND, 0.002, "int8")
    with pytest.raises(
        SettingError,
        match=r"^int8 targets change the soft targets by 0\.200 % of their entropy, above the budget of "
        r"0\.100 %; use --targets float16, or a larger --targets-budget$",
    ):
        refuse_distortion(FOUND, 0.001, "int8")
    assert distortion_line(FOUND, "int8").startswith(
        "int8 targets change the soft targets by 0.2000 %"
    )


def record_of(distortion: Distortion | None) -> TeacherRecord:
    return TeacherRecord(
        name="t",
        identity={},
        embed_dim=8,
        logit_scale=0.0,
        logit_bias=0.0,
        batch_size={"image": 1, "text": 1},
        source="t",
        revision=None,
        generation=0,
        files={},
        encoding=INT8,
        distortion=distortion,
    )


def test_rows_that_change_more_than_the_sample_are_refused_by_their_squared_error() -> None:
    # The sample had 1e-4 a vector for a share of 0.2 %; twice that is 0.4 %.
    refuse_distorted_rows(record_of(FOUND), "unit", 10 * 1.9e-4, 10, 0.004)
    with pytest.raises(BuildError, match=r"^unit 3: int8 targets change .* by about 0\.420 % of"):
        refuse_distorted_rows(record_of(FOUND), "unit 3", 10 * 2.1e-4, 10, 0.004)
    refuse_distorted_rows(record_of(None), "unit", 1.0, 1, 1e-9)
    refuse_distorted_rows(record_of(FOUND), "unit", 0.0, 0, 1e-9)


def test_the_squared_error_is_summed_over_rows() -> None:
    rows = np.array([[0, 1], [1, 0]], np.float16)
    assert squared_error(rows, rows + np.float16(0.5)) == 1.0
