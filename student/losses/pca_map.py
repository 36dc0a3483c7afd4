"""The PCA map: one fixed linear map from the teacher's width to a smaller one, for both modalities.

Shape letters in this file:
    B = rows, E = the teacher's width, D = the smaller width.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ...errors import SettingError

_F = TypeVar("_F", np.float32, np.float64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PcaMap:
    """A map with orthonormal columns, and the energy it keeps of each modality."""

    map_ED: NDArray[np.float32]
    """Columns by descending energy; the largest entry of each, by absolute value, is positive."""

    image_energy: float
    """Share of the images' squared norm that the D columns keep, in [0, 1]."""

    text_energy: float | None
    """The same share for texts; None without any."""

    num_images: int
    """Number of images it was made from."""

    num_texts: int
    """Number of texts it was made from."""

    def apply(self, rows_BE: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return the mapped rows, (B, D) unit rows; a row mapped to 0 stays 0, NaN stays NaN.

        Raises:
            ValueError: the rows have another width than the map.
        """
        E = len(self.map_ED)
        if rows_BE.ndim != 2 or rows_BE.shape[1] != E:
            raise ValueError(f"rows must be of shape (B, {E}), got {rows_BE.shape}")
        return _unit_rows(rows_BE.astype(np.float32) @ self.map_ED)


def fit_pca_map(
    image_blocks: Iterable[NDArray[np.floating]],
    text_blocks: Iterable[NDArray[np.floating]],
    *,
    embed_dim: int,
) -> PcaMap:
    """Return the D = embed_dim directions that keep most energy of images and texts, weighted equally.

    They are the top eigenvectors of the average of the two *uncentred* second moments. The means are not
    subtracted: images and texts of a contrastive teacher have different means (the modality gap), and
    without them x.y is no longer the cosine of the teacher's logits. Both modalities have the same weight,
    whatever their counts. The same blocks give the same map up to rounding.

    Args:
        image_blocks: teacher embeddings of the train split's images, (rows, E) unit rows of any
            float dtype, without rejected rows. Read once; memory is two E x E sums.
        text_blocks: the same for texts; without any rows the map is that of the images.
        embed_dim: D, at least 1 and at most E.

    Raises:
        SettingError: D is above E or below 1, there are no images, or all rows together are fewer than D.
        ValueError: blocks differ in width, or hold NaN or infinity.
    """
    image_EE, num_images = _second_moment("image", image_blocks)
    text_EE, num_texts = _second_moment("text", text_blocks)
    if image_EE is None:
        raise SettingError("a PCA map needs image targets; the train split has none")
    if text_EE is not None and image_EE.shape != text_EE.shape:
        raise ValueError(f"images are {len(image_EE)} wide, texts {len(text_EE)}")
    E = len(image_EE)
    if not 1 <= embed_dim <= E:
        raise SettingError(
            f"a PCA map from width {E} must have width 1 to {E}, got {embed_dim}; a wider student needs a "
            "learned map"
        )
    if num_images + num_texts < embed_dim:
        raise SettingError(
            f"a PCA map to width {embed_dim} needs as many rows; the train split has {num_images} images "
            f"and {num_texts} texts"
        )
    both_EE = image_EE if text_EE is None else (image_EE + text_EE) / 2
    map_ED = _top_eigenvectors(both_EE, embed_dim)
    return PcaMap(
        map_ED=map_ED.astype(np.float32),
        image_energy=_kept_energy(image_EE, map_ED),
        text_energy=None if text_EE is None else _kept_energy(text_EE, map_ED),
        num_images=num_images,
        num_texts=num_texts,
    )


def _second_moment(
    modality: str, blocks: Iterable[NDArray[np.floating]]
) -> tuple[NDArray[np.float64] | None, int]:
    """Return (E, E) the mean of the rows' outer products, None without rows; and the number of rows."""
    sum_EE: NDArray[np.float64] | None = None
    num_rows = 0
    for block_BE in blocks:
        rows_BE = block_BE.astype(np.float64)
        E = rows_BE.shape[-1] if sum_EE is None else len(sum_EE)
        if rows_BE.ndim != 2 or rows_BE.shape[1] != E:
            raise ValueError(f"{modality} blocks must be of shape (rows, {E}), got {rows_BE.shape}")
        if not np.isfinite(rows_BE).all():
            raise ValueError(f"a block of {modality} rows holds NaN or infinity")
        moment_EE = rows_BE.T @ rows_BE
        sum_EE = moment_EE if sum_EE is None else sum_EE + moment_EE
        num_rows += len(rows_BE)
    if sum_EE is None or num_rows == 0:
        return None, 0
    return sum_EE / num_rows, num_rows


def _top_eigenvectors(moment_EE: NDArray[np.float64], embed_dim: int) -> NDArray[np.float64]:
    """Return (E, D) eigenvectors by descending eigenvalue, with fixed signs."""
    _, vectors_EE = np.linalg.eigh(moment_EE)  # by ascending eigenvalue
    map_ED = vectors_EE[:, ::-1][:, :embed_dim]
    largest_D = np.abs(map_ED).argmax(axis=0)
    return map_ED * np.sign(map_ED[largest_D, np.arange(embed_dim)])


def _kept_energy(moment_EE: NDArray[np.float64], map_ED: NDArray[np.float64]) -> float:
    """Return the share of the rows' squared norm along the columns."""
    return float(np.sum(map_ED * (moment_EE @ map_ED)) / np.trace(moment_EE))


@dataclass(frozen=True, slots=True, kw_only=True)
class CosineError:
    """Errors of image-text cosines after a map; times the teacher's scale, of its logits."""

    own_mean: float
    """Mean |change| over the pairs of an image and its own text."""

    own_max: float
    """Largest |change| over those pairs."""

    random_mean: float
    """Mean |change| over as many random pairs of an image and another image's text."""

    random_max: float
    """Largest |change| over those pairs."""


def cosine_error(
    pca_map: PcaMap,
    image_BE: NDArray[np.floating],
    text_BE: NDArray[np.floating],
    *,
    seed: int = 0,
) -> CosineError:
    """Return the errors of the cosines of held-out rows after the map.

    Args:
        pca_map: a map made without these rows.
        image_BE: teacher embeddings of images, any float dtype.
        text_BE: row i is a text of image i, any float dtype.
        seed: random seed of the random pairs.

    Raises:
        ValueError: the shapes differ, or there are fewer than two rows.
    """
    if image_BE.shape != text_BE.shape or len(image_BE) < 2:
        raise ValueError(
            f"images and texts must have one shape of at least 2 rows, got {image_BE.shape}, {text_BE.shape}"
        )
    before = _unit_rows(image_BE.astype(np.float64)), _unit_rows(text_BE.astype(np.float64))
    after = pca_map.apply(image_BE), pca_map.apply(text_BE)
    B = len(image_BE)
    own_B = np.arange(B)
    other_B = (own_B + np.random.default_rng(seed).integers(1, B, size=B)) % B
    own, other = (
        np.abs(_cosines(*after, text_index_B) - _cosines(*before, text_index_B))
        for text_index_B in (own_B, other_B)
    )
    return CosineError(
        own_mean=float(own.mean()),
        own_max=float(own.max()),
        random_mean=float(other.mean()),
        random_max=float(other.max()),
    )


def _cosines(
    image_BD: NDArray[np.floating], text_BD: NDArray[np.floating], text_index_B: NDArray[np.int64]
) -> NDArray[np.float64]:
    return np.einsum("bd,bd->b", image_BD, text_BD[text_index_B], dtype=np.float64)


def _unit_rows(rows_BD: NDArray[_F]) -> NDArray[_F]:
    norm_B1 = np.linalg.norm(rows_BD, axis=1, keepdims=True)
    return rows_BD / np.where(norm_B1 == 0, norm_B1.dtype.type(1), norm_B1)
