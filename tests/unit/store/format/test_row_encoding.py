"""int8 rows in rotated axes: their error, their norms, rows without a target, and the page's reader."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from siglip2_cache.store.format.float16 import round_to_float16
from siglip2_cache.store.format.row_encoding import (
    FLOAT16,
    INT8,
    Int8Codec,
    make_codec,
    make_rotation,
)

VECTORS = Path(__file__).parents[5] / "shared" / "data" / "siglip2_text_vectors.npz"


def unit_rows(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float16]:
    """Random unit rows of which one dimension has most of the norm, as those of SigLIP 2."""
    rows = np.random.default_rng(seed).normal(size=shape)
    rows[..., shape[-1] // 3] *= 30
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float16)


@pytest.mark.parametrize(
    ("width", "size"),
    [(1, 1), (7, 7), (8, 8), (33, 33), (64, 32), (768, 32), (1000, 40), (1009, 1009), (1152, 32)],
)
def test_the_rotation_is_orthonormal_and_its_size_divides_the_width(width: int, size: int) -> None:
    rotation = make_rotation(width)
    assert rotation.shape == (size, size)
    assert rotation.dtype == np.float32
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(size), atol=1e-5)


@pytest.mark.parametrize("width", [768, 1000])
def test_the_rotation_spreads_each_dimension_over_its_block(width: int) -> None:
    rotation = make_rotation(width)
    assert np.abs(rotation).max() <= 1.6 / math.sqrt(len(rotation))


def test_a_case_worked_out_by_hand() -> None:
    # (3, 4) / 5 by the rows (1, 1) and (1, -1) over root 2: 1.4 and -0.2 over root 2, so steps of
    # 127 and -18, whose norm is 128.27.
    codec = Int8Codec(np.array([[1, 1], [1, -1]], np.float32) / math.sqrt(2))
    stored = codec.encode(np.array([[0.6, 0.8]], np.float16))
    assert stored.shape == (1, 6)
    assert stored[0, :2].tolist() == [127, -18]
    assert stored[0, 2:].copy().view("<f4")[0] == pytest.approx(1 / math.hypot(127, 18), rel=1e-3)
    expected = np.array([[127 - 18, 127 + 18]]) / math.sqrt(2) / math.hypot(127, 18)
    np.testing.assert_allclose(codec.decode(stored), expected, rtol=1e-3)


@pytest.mark.parametrize("shape", [(5, 64), (3, 2, 96), (130, 33), (0, 64), (0, 2, 64)])
def test_rows_come_back_with_their_norm_and_nearly_their_direction(shape: tuple[int, ...]) -> None:
    values = unit_rows(shape)
    codec = make_codec(INT8, shape[-1])
    stored = codec.encode(values)
    assert (stored.dtype, stored.shape) == (np.int8, (*shape[:-1], shape[-1] + 4))
    found = codec.decode(stored).astype(np.float64)
    assert found.shape == shape
    exact = values.astype(np.float64)
    assert (np.linalg.norm(found - exact, axis=-1) < 0.02).all()
    norms = INT8.norms(stored.reshape(-1, stored.shape[-1]))
    np.testing.assert_allclose(norms, np.linalg.norm(exact, axis=-1).reshape(-1), rtol=1e-5)


def test_a_row_that_is_not_finite_or_zero_has_no_target() -> None:
    values = unit_rows((6, 64))
    values[1], values[2, 5], values[4] = np.nan, np.inf, 0
    codec = make_codec(INT8, 64)
    stored = codec.encode(values)
    assert not stored[[1, 2, 4]].any()
    lacks = np.isnan(codec.decode(stored)).all(axis=1)
    assert lacks.tolist() == [False, True, True, False, True, False]
    assert np.isnan(INT8.norms(stored)).tolist() == lacks.tolist()
    assert (INT8.empty_rows((2, 68)) == stored[[1, 1]]).all()
    assert np.isnan(FLOAT16.empty_rows((2, 3))).all()


def test_stored_axes_have_the_same_cosines_and_the_rotation_leads_back() -> None:
    codec = make_codec(INT8, 96)
    stored = codec.encode(unit_rows((50, 96)))
    own, rotated = codec.decode(stored), codec.decode(stored, "stored")
    assert codec.rotation is not None
    back = (rotated.astype(np.float32).reshape(-1, 32) @ codec.rotation).reshape(50, 96)
    np.testing.assert_allclose(back, own, atol=1e-3)
    cosines = [rows.astype(np.float64) @ rows.astype(np.float64).T for rows in (own, rotated)]
    np.testing.assert_allclose(*cosines, atol=2e-3)


def test_rows_are_decoded_into_memory_that_is_given() -> None:
    for encoding in (INT8, FLOAT16):
        codec, values = make_codec(encoding, 64), unit_rows((200, 2, 64))
        stored, out = codec.encode(values), np.empty((200, 2, 64), np.float16)
        assert codec.decode(stored, out=out) is out
        np.testing.assert_array_equal(out, codec.decode(stored))


@given(st.lists(st.floats(-60000, 60000, width=32), min_size=1, max_size=40))
def test_float16_is_the_nearest_one(numbers: list[float]) -> None:
    values = np.array(numbers, np.float32)
    out = np.empty(values.shape, np.float16)
    round_to_float16(values.copy(), np.float32(1), out=out, room=np.empty_like(values))
    nearest = values.astype(np.float16)
    step = np.abs(np.spacing(nearest.astype(np.float16)).astype(np.float64))
    error = np.abs(out.astype(np.float64) - values)
    assert (error <= step / 2 + 1e-12).all()  # ties go away from zero, numpy's to even
    assert (np.signbit(out) == np.signbit(values)).all()


@pytest.mark.skipif(not VECTORS.exists(), reason="needs ../shared/data")
def test_real_vectors_lose_a_fifth_of_what_plain_int8_loses() -> None:
    values = np.load(VECTORS)["vectors"].astype(np.float16)
    rotated, plain = make_codec(INT8, 768), Int8Codec(np.eye(1, dtype=np.float32))

    def error(codec: Any) -> float:
        rows = codec.decode(codec.encode(values)).astype(np.float64)
        exact = values.astype(np.float64)
        return float(np.abs(115 * (rows @ rows.T - exact @ exact.T)).mean())

    assert error(rotated) < 0.04
    assert error(rotated) < error(plain) / 5
