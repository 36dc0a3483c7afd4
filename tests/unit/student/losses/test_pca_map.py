"""The PCA map: what it keeps, and what it does to cosines."""

import numpy as np
import pytest

from siglip2_cache.errors import SettingError
from siglip2_cache.student.losses.pca_map import PcaMap, cosine_error, fit_pca_map


def unit(rows_BE: np.ndarray) -> np.ndarray:
    return rows_BE / np.linalg.norm(rows_BE, axis=1, keepdims=True)


def blocks_of(rows_BE: np.ndarray, num_rows: int = 7) -> list[np.ndarray]:
    return [rows_BE[i : i + num_rows].astype(np.float16) for i in range(0, len(rows_BE), num_rows)]


def fit(image_BE: np.ndarray, text_BE: np.ndarray, embed_dim: int) -> PcaMap:
    return fit_pca_map(blocks_of(image_BE), blocks_of(text_BE), embed_dim=embed_dim)


def with_a_modality_gap(rng: np.random.Generator, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows of 16: images and texts share what they say and stand around means far apart."""
    meaning_BE = rng.standard_normal((num_rows, 16)) * np.geomspace(1, 0.1, 16)
    image_BE = meaning_BE + 0.3 * rng.standard_normal((num_rows, 16))
    text_BE = meaning_BE + 0.3 * rng.standard_normal((num_rows, 16))
    image_BE[:, 0] += 4
    text_BE[:, 1] += 4
    return unit(image_BE), unit(text_BE)


def test_rows_of_a_small_subspace_keep_every_cosine() -> None:
    rng = np.random.default_rng(0)
    basis_DE = np.linalg.qr(rng.standard_normal((12, 4)))[0].T
    image_BE = unit(rng.standard_normal((40, 4)) @ basis_DE)
    text_BE = unit(rng.standard_normal((40, 4)) @ basis_DE)
    pca_map = fit_pca_map([image_BE], [text_BE], embed_dim=4)
    assert pca_map.image_energy == pytest.approx(1, abs=1e-12)
    assert pca_map.text_energy == pytest.approx(1, abs=1e-12)
    error = cosine_error(pca_map, image_BE, text_BE)
    assert max(error.own_max, error.random_max) < 1e-6
    assert fit_pca_map([image_BE], [text_BE], embed_dim=3).image_energy < 0.99


def test_columns_are_orthonormal_float32_by_falling_energy() -> None:
    image_BE, text_BE = with_a_modality_gap(np.random.default_rng(1), 60)
    pca_map = fit(image_BE, text_BE, 5)
    map_ED = pca_map.map_ED
    assert map_ED.dtype == np.float32
    np.testing.assert_allclose(map_ED.T @ map_ED, np.eye(5), atol=1e-6)
    energy_D = ((image_BE @ map_ED) ** 2).mean(0) + ((text_BE @ map_ED) ** 2).mean(0)
    assert (np.diff(energy_D) < 0).all()
    assert (pca_map.num_images, pca_map.num_texts) == (60, 60)


def test_the_kept_energy_is_the_share_of_squared_length_a_modality() -> None:
    image_BE, text_BE = with_a_modality_gap(np.random.default_rng(2), 50)
    pca_map = fit_pca_map([image_BE], [text_BE], embed_dim=3)
    for rows_BE, energy in (
        (image_BE, pca_map.image_energy),
        (text_BE, pca_map.text_energy),
    ):
        kept = ((rows_BE @ pca_map.map_ED.astype(np.float64)) ** 2).sum() / len(rows_BE)
        assert energy == pytest.approx(kept, abs=1e-6)
    assert pca_map.image_energy != pytest.approx(pca_map.text_energy, abs=1e-3)
    longer = fit_pca_map([image_BE * 2], [text_BE * 2], embed_dim=3)
    assert longer.image_energy == pytest.approx(pca_map.image_energy)


def test_a_modality_of_many_rows_weighs_no_more_than_one_of_few() -> None:
    # Images lie along axes 0 and 1 (shares .9, .1), texts along 2 and 3 (.8, .2); by counts, the
    # images' second axis would beat the texts' first.
    image_BE = np.repeat(np.eye(4)[[0] * 9 + [1]], 100, axis=0)
    text_BE = np.eye(4)[[2] * 4 + [3]]
    map_ED = fit(image_BE, text_BE, 3).map_ED
    np.testing.assert_allclose(map_ED, np.eye(4)[:, [0, 2, 3]], atol=1e-6)


def test_uncentred_keeps_cosines_that_a_centred_map_destroys() -> None:
    rng = np.random.default_rng(3)
    image_BE, text_BE = with_a_modality_gap(rng, 400)
    held_image_BE, held_text_BE = with_a_modality_gap(rng, 200)
    pca_map = fit(image_BE, text_BE, 8)
    uncentred = cosine_error(pca_map, held_image_BE, held_text_BE)

    mean_E = (image_BE.mean(0) + text_BE.mean(0)) / 2
    both_BE = np.concatenate([image_BE, text_BE]) - mean_E
    centred_ED = np.linalg.eigh(both_BE.T @ both_BE)[1][:, ::-1][:, :8]
    mapped_image_BD, mapped_text_BD = (
        unit((rows_BE - mean_E) @ centred_ED) for rows_BE in (held_image_BE, held_text_BE)
    )
    before_B = (held_image_BE * held_text_BE).sum(1)
    centred = np.abs((mapped_image_BD * mapped_text_BD).sum(1) - before_B).mean()
    assert uncentred.own_mean < 0.05
    assert centred > 10 * uncentred.own_mean


def test_the_errors_are_those_of_own_and_of_other_pairs() -> None:
    # The map keeps axes 0 and 1 of 3. Own pairs agree in both, and differ by what axis 2 held.
    pca_map = PcaMap(
        map_ED=np.eye(3, 2, dtype=np.float32),
        image_energy=1.0,
        text_energy=1.0,
        num_images=1,
        num_texts=1,
    )
    image_BE = np.array([[0.6, 0.0, 0.8], [0.0, 1.0, 0.0]])
    text_BE = np.array([[1.0, 0.0, 0.0], [0.0, 0.8, 0.6]])
    error = cosine_error(pca_map, image_BE, text_BE)
    # own: .6 -> 1 and .8 -> 1; the other text: .48 -> 0 and 0 -> 0
    assert error.own_mean == pytest.approx(0.3, abs=1e-6)
    assert error.own_max == pytest.approx(0.4, abs=1e-6)
    assert error.random_mean == pytest.approx(0.24, abs=1e-6)
    assert error.random_max == pytest.approx(0.48, abs=1e-6)


def test_applying_renormalises_and_keeps_zero_and_nan_apart() -> None:
    image_BE, text_BE = with_a_modality_gap(np.random.default_rng(4), 30)
    pca_map = fit(image_BE, text_BE, 4)
    rows_BE = image_BE[:3].astype(np.float16)
    rows_BE[1], rows_BE[2] = 0, np.nan
    mapped_BD = pca_map.apply(rows_BE)
    assert mapped_BD.dtype == np.float32
    expected_D = rows_BE[0].astype(np.float64) @ pca_map.map_ED
    np.testing.assert_allclose(mapped_BD[0], expected_D / np.linalg.norm(expected_D), atol=1e-6)
    assert (mapped_BD[1] == 0).all()
    assert np.isnan(mapped_BD[2]).all()


def test_the_same_rows_give_the_same_map_however_they_are_cut_or_mirrored() -> None:
    image_BE, text_BE = with_a_modality_gap(np.random.default_rng(5), 64)
    map_ED = fit(image_BE, text_BE, 4).map_ED
    np.testing.assert_array_equal(fit(image_BE, text_BE, 4).map_ED, map_ED)
    recut = fit_pca_map(blocks_of(image_BE, 3), iter(blocks_of(text_BE, 64)), embed_dim=4)
    np.testing.assert_allclose(recut.map_ED, map_ED, atol=1e-6)
    np.testing.assert_allclose(fit(-image_BE, -text_BE, 4).map_ED, map_ED, atol=1e-6)
    assert (map_ED[np.abs(map_ED).argmax(0), np.arange(4)] > 0).all()


@pytest.mark.parametrize(
    ("num_images", "num_texts", "embed_dim", "message"),
    [
        pytest.param(9, 9, 5, r"must have width 1 to 4, got 5", id="wider"),
        pytest.param(9, 9, 0, r"must have width 1 to 4, got 0", id="of no width"),
        pytest.param(1, 2, 4, r"width 4 .* train split has 1 images and 2 texts", id="few rows"),
        pytest.param(0, 9, 2, r"needs image targets; the train split has none", id="no images"),
    ],
)
def test_a_map_that_cannot_be_made_is_refused(
    num_images: int, num_texts: int, embed_dim: int, message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        fit_pca_map([np.ones((num_images, 4))], [np.ones((num_texts, 4))], embed_dim=embed_dim)


def test_without_texts_the_map_is_that_of_the_images() -> None:
    image_BE = np.random.default_rng(0).normal(size=(30, 6))
    found = fit_pca_map([image_BE], [], embed_dim=2)
    expected = fit_pca_map([image_BE], [image_BE], embed_dim=2)
    np.testing.assert_allclose(found.map_ED, expected.map_ED, atol=1e-6)
    assert (found.text_energy, found.num_texts) == (None, 0)


def test_rows_of_other_widths_and_rejected_rows_are_refused() -> None:
    rows_BE = np.ones((5, 4), np.float16)
    with pytest.raises(ValueError, match=r"images are 4 wide, texts 3"):
        fit_pca_map([rows_BE], [rows_BE[:, :3]], embed_dim=2)
    with pytest.raises(
        ValueError, match=r"image blocks must be of shape \(rows, 4\), got \(5, 3\)"
    ):
        fit_pca_map([rows_BE, rows_BE[:, :3]], [rows_BE], embed_dim=2)
    with pytest.raises(ValueError, match=r"a block of text rows holds NaN"):
        fit_pca_map([rows_BE], [rows_BE * np.nan], embed_dim=2)
    pca_map = fit_pca_map([rows_BE], [rows_BE], embed_dim=2)
    with pytest.raises(ValueError, match=r"rows must be of shape \(B, 4\), got \(5, 3\)"):
        pca_map.apply(rows_BE[:, :3])
    with pytest.raises(ValueError, match=r"at least 2 rows, got \(5, 4\), \(4, 4\)"):
        cosine_error(pca_map, rows_BE, rows_BE[:4])
