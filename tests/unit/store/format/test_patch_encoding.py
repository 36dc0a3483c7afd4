"""Patch targets as they are stored, and their map."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siglip2_cache.store.format.patch_encoding import (
    count_whole_grids,
    decode_patches,
    encode_patches,
)
from siglip2_cache.store.format.patch_map import fit_patch_map

C, P = 6, 5


def make_views(grids: list[tuple[int, int]], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    values_VCP = np.random.default_rng(seed).normal(size=(len(grids), C, P)).astype(np.float16)
    for view, (rows, columns) in zip(values_VCP, grids, strict=True):
        view[rows * columns :] = 0
    return values_VCP, np.array(grids)


@given(
    st.lists(st.sampled_from([(2, 3), (1, 6), (1, 1), (2, 2)]), max_size=5),
    st.integers(0, 9),
)
def test_values_come_back_within_half_a_step_and_grids_exactly(
    grids: list[tuple[int, int]], seed: int
) -> None:
    values_VCP, grids_V2 = make_views(grids, seed)
    stored_VS = encode_patches(values_VCP, grids_V2.reshape(-1, 2))
    assert stored_VS.shape == (len(grids), C * (P + 8))
    found = decode_patches(stored_VS, C)
    np.testing.assert_array_equal(found.grids_V2, grids_V2.reshape(-1, 2))
    step = np.abs(values_VCP).max(axis=-1, keepdims=True, initial=0).astype(np.float32) / 127
    error = np.abs(found.values_VCP.astype(np.float32) - values_VCP)
    assert (error <= 0.51 * step + 1e-3 * np.abs(values_VCP)).all()
    assert (count_whole_grids(stored_VS, C) == 1).all()


def test_a_cell_by_hand() -> None:
    values_VCP = np.zeros((2, 2, 3), np.float16)
    values_VCP[0, 0] = [1.27, -0.5, 0.004]
    stored_VCS = encode_patches(values_VCP, np.array([[1, 1], [1, 2]])).reshape(2, 2, 11)
    assert stored_VCS[0, 0, :3].tolist() == [127, -50, 0]
    scale = stored_VCS[0, 0, 3:7].copy().view("<f4")[0]
    assert scale == pytest.approx(0.01, rel=1e-3)
    assert stored_VCS[0, 0, 7:].copy().view("<u2").tolist() == [1, 1]
    assert not stored_VCS[0, 1].any()  # beyond the grid
    assert not stored_VCS[1, :, :3].any()  # cells of zeros are cells
    assert stored_VCS[1, 1, 3:7].copy().view("<f4")[0] == 1


def test_rows_without_a_target_and_broken_views_are_told_apart() -> None:
    values_VCP, grids_V2 = make_views([(2, 3), (1, 2), (2, 2)])
    stored_VS = encode_patches(values_VCP, grids_V2)
    stored_VS[0] = 0
    stored_VCS = stored_VS.reshape(3, C, -1)
    stored_VCS[1, 1, -4:] = stored_VCS[2, 0, -4:]  # a grid unlike that of the first cell
    found = count_whole_grids(stored_VS, C)
    assert np.isnan(found[0])
    assert found[1:].tolist() == [0, 1]
    stored_VCS[2, :, -4:] = np.frombuffer(np.array([9, 9], "<u2").tobytes(), np.int8)
    assert count_whole_grids(stored_VS, C)[2] == 0  # more cells than there is room for


@pytest.mark.parametrize("dim", [4, 12, 24])
def test_the_map_keeps_the_leading_directions_and_spreads_them_evenly(dim: int) -> None:
    random = np.random.default_rng(0)
    cells_NW = (random.normal(size=(4000, 24)) * (30 / (1 + np.arange(24)))).astype(np.float32)
    cells_NW += 5  # the PCA is uncentred
    found = fit_patch_map(cells_NW, grid=7, dim=dim, num_images=80)
    basis_PW, settings = found.basis_PW, found.settings
    np.testing.assert_allclose(basis_PW @ basis_PW.T, np.eye(dim), atol=1e-5)
    values_NP = cells_NW @ basis_PW.T
    kept = (values_NP**2).sum() / (cells_NW**2).sum()
    assert settings.kept == pytest.approx(kept, rel=1e-4)
    best = np.linalg.svd(cells_NW, compute_uv=False)[:dim] ** 2
    assert kept == pytest.approx(best.sum() / (cells_NW**2).sum(), rel=1e-4)
    rms_P = np.sqrt((values_NP**2).mean(axis=0))
    assert settings.rms == pytest.approx(np.sqrt((values_NP**2).mean()), rel=1e-4)
    np.testing.assert_allclose(rms_P, settings.rms, rtol=0.01 if dim in (4,) else 0.3)
    assert (settings.width, settings.num_cells, settings.num_images) == (24, 49, 80)


def test_a_map_of_fewer_cells_than_dimensions_is_orthonormal() -> None:
    found = fit_patch_map(np.eye(2, 16, dtype=np.float32), grid=1, dim=16, num_images=2)
    np.testing.assert_allclose(found.basis_PW @ found.basis_PW.T, np.eye(16), atol=1e-6)
    assert found.settings.kept == pytest.approx(1)
    zeros = fit_patch_map(np.zeros((3, 4), np.float32), grid=1, dim=2, num_images=2)
    assert zeros.settings.rms > 0
