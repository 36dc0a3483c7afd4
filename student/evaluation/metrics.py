"""Agreement of a model with its teacher. Plain numpy.

All functions work on blocks of rows, so a matrix of all images by all others is never held. Rows that are
not finite (NaN where an embedding is missing) are left out of every mean.

Shape letters in this file:
    N = images, M = texts, D = embedding width of a model, E = that of its teacher,
    P = pairs of an image with a text, B = rows of a block.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]

_BLOCK_VALUES = 1 << 22
"""Scores in one block: 16 MB in float32, 32 MB in float64, with a few such arrays at a time."""


def row_cosines(student_NE: Rows, teacher_NE: Rows) -> Rows:
    """Return (N,) float64 cosines of rows of any norm; NaN where either is not finite, 0 for zeros."""
    found = np.empty(len(student_NE))
    for rows in blocks(len(found), student_NE.shape[1]):
        a, b = (x[rows].astype(np.float64) for x in (student_NE, teacher_NE))
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        found[rows] = (a * b).sum(axis=1) / np.maximum(norms, 1e-12)
    return found


def finite_mean(values: Rows) -> float | None:
    """Return the mean of the values that are finite; None if there are none."""
    found = values[np.isfinite(values)]
    return float(found.mean()) if len(found) else None


@dataclass(frozen=True, slots=True)
class Agreement:
    """How similarly two models compare images."""

    images_N: Ints
    """(N,) rows of the images that both models have."""

    moments_N5: Rows
    """(N, 5) means over each image's pairs with the others, of the cosines x and y and of their products
    xx, yy and xy, around a common point: the spread may be small."""

    shared_N: Rows
    """(N,) share of each image's nearest neighbours that both models have."""

    @property
    def correlation(self) -> float | None:
        """Pearson correlation of the two models' cosines; None if either is constant."""
        if len(self.images_N) == 0:
            return None
        found = float(correlation(self.moments_N5.mean(axis=0)))
        return None if np.isnan(found) else found

    @property
    def overlap(self) -> float | None:
        """Mean share of nearest neighbours in common; None with fewer than two images."""
        return float(self.shared_N.mean()) if len(self.images_N) else None


def image_agreement(
    student_ND: Rows, teacher_NE: Rows, *, num_neighbours: int = 10, block_rows: int | None = None
) -> Agreement:
    """Return how similarly two models compare images, over all pairs of different ones.

    Give each picture once: copies would be each other's nearest neighbours in any model. Equal cosines
    rank in the order of the rows.
    """
    both = finite_in_both(student_ND, teacher_NE)
    N = len(both)
    k = min(num_neighbours, N - 1)
    if k < 1:
        return Agreement(both[:0], np.empty((0, 5)), np.empty(0))
    student_ND = student_ND[both].astype(np.float64)
    teacher_NE = teacher_NE[both].astype(np.float64)
    moments_N5, shared_N = np.empty((N, 5)), np.empty(N)
    about: tuple[float, float] | None = None
    for rows in blocks(N, N, block_rows):
        x_BN, y_BN = student_ND[rows] @ student_ND.T, teacher_NE[rows] @ teacher_NE.T
        is_self_BN = np.arange(N) == np.arange(rows.start, rows.stop)[:, None]
        x_BN[is_self_BN] = y_BN[is_self_BN] = -np.inf
        shared_N[rows] = _shared(x_BN, y_BN, k)
        about = about or (float(x_BN[~is_self_BN].mean()), float(y_BN[~is_self_BN].mean()))
        x_BN, y_BN = (
            np.where(is_self_BN, 0, side - mean)
            for side, mean in zip((x_BN, y_BN), about, strict=True)
        )
        products = (x_BN, y_BN, x_BN * x_BN, y_BN * y_BN, x_BN * y_BN)
        moments_N5[rows] = np.stack([each.sum(axis=1) for each in products], axis=1) / (N - 1)
    return Agreement(both, moments_N5, shared_N)


def index_overlap(
    index_NE: Rows,
    queries_QE: Rows,
    reference_QE: Rows,
    own_NQ: tuple[Ints, Ints] | None = None,
    *,
    num_neighbours: int = 10,
    block_rows: int | None = None,
) -> Rows:
    """Return what share of the nearest rows that reference queries find in an index other queries find too.

    That is recall@10 with the reference's answers as the truth. Of equal cosines the first row is nearer.

    Args:
        index_NE: unit rows; those that are not finite are not in the index.
        queries_QE: rows of any norm; one that is not finite finds nothing.
        reference_QE: rows of any norm.
        own_NQ: equal numbers for a row and a query mean that the query is the row, or a copy, which is no
            answer to it; None: queries are no rows.
        num_neighbours: nearest rows, at most all but one.
        block_rows: queries compared at a time; None: as many as fit in 4 million values.

    Returns:
        (Q,) float64, 0 to 1; NaN where the reference is not finite, or with fewer than two rows.
    """
    rows_N = np.flatnonzero(_is_finite(index_NE))
    index_NE, found = index_NE[rows_N], np.full(len(queries_QE), np.nan)
    k = min(num_neighbours, len(rows_N) - (1 if own_NQ is None else 2))
    if k < 1:
        return found
    is_same = np.array_equal(queries_QE, reference_QE, equal_nan=True)  # the teacher's own figure
    is_there_Q, is_known_Q = _is_finite(queries_QE), _is_finite(reference_QE)
    found[:] = 1
    for rows in blocks(0 if is_same else len(found), len(rows_N), block_rows):
        x_BN = np.where(is_there_Q[rows, None], queries_QE[rows], 0) @ index_NE.T
        y_BN = np.where(is_known_Q[rows, None], reference_QE[rows], 0) @ index_NE.T
        if own_NQ is not None:
            is_own_BN = np.equal.outer(own_NQ[1][rows], own_NQ[0][rows_N])
            x_BN[is_own_BN] = y_BN[is_own_BN] = -np.inf
        found[rows] = _shared(x_BN, y_BN, k)
    found[~is_there_Q] = 0
    found[~is_known_Q] = np.nan
    return found


def correlation(moments_5: Rows) -> Rows:
    """Return Pearson correlations from (..., 5) means of x, y, xx, yy and xy; NaN if either is constant."""
    x, y, xx, yy, xy = np.moveaxis(moments_5, -1, 0)
    variance_x, variance_y = xx - x * x, yy - y * y
    is_spread = (
        np.minimum(variance_x, variance_y) >= 1e-24
    )  # the rounding of equal cosines is 1e-32
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(is_spread, (xy - x * y) / np.sqrt(variance_x * variance_y), np.nan)


def soft_loss_excess(
    student: tuple[Rows, Rows],
    teacher: tuple[Rows, Rows],
    *,
    student_logit: tuple[float, float],
    teacher_logit: tuple[float, float],
    block_rows: int | None = None,
) -> float | None:
    """Return the soft sigmoid loss less the teacher's entropy, in nats a pair, over all N x M pairs.

    It is the mean KL divergence of the student's probability of a match from the teacher's: 0 if they are
    equal, otherwise above 0.

    Args:
        student: (images_ND, texts_MD).
        teacher: (images_NE, texts_ME) of the same images and texts.
        student_logit: (scale, bias), the scale already exponentiated.
        teacher_logit: (scale, bias) of the teacher.
        block_rows: images at a time.

    Returns:
        None if no pair is finite in both.
    """
    by_image_N, _ = soft_loss_means(
        student,
        teacher,
        student_logit=student_logit,
        teacher_logit=teacher_logit,
        block_rows=block_rows,
    )
    return finite_mean(by_image_N)


def soft_loss_means(
    student: tuple[Rows, Rows],
    teacher: tuple[Rows, Rows],
    *,
    student_logit: tuple[float, float],
    teacher_logit: tuple[float, float],
    block_rows: int | None = None,
) -> tuple[Rows, Rows]:
    """Return the mean of soft_loss_excess over the pairs of each image, (N,), and of each text, (M,).

    They are NaN for what is not finite in both models, and everywhere if no pair is. Arguments:
    see soft_loss_excess.
    """
    by_image_N, by_text_M = (np.full(len(side), np.nan) for side in student)
    images, texts = (finite_in_both(a, b) for a, b in zip(student, teacher, strict=True))
    if len(images) == 0 or len(texts) == 0:
        return by_image_N, by_text_M
    (x_ND, y_MD), (u_NE, v_ME) = (
        (side[0][images], side[1][texts].astype(np.float64)) for side in (student, teacher)
    )
    by_text_M[texts] = 0
    for rows in blocks(len(images), len(texts), block_rows):
        z_BM = student_logit[0] * (x_ND[rows].astype(np.float64) @ y_MD.T) + student_logit[1]
        t_BM = teacher_logit[0] * (u_NE[rows].astype(np.float64) @ v_ME.T) + teacher_logit[1]
        # softplus(z) - p z, less the same at z = t, which is the entropy of p = sigmoid(t)
        excess_BM = np.logaddexp(0, z_BM) - np.logaddexp(0, t_BM) - sigmoid(t_BM) * (z_BM - t_BM)
        by_image_N[images[rows]] = excess_BM.mean(axis=1)
        by_text_M[texts] += excess_BM.sum(axis=0) / len(images)
    return by_image_N, by_text_M


def match_entropy(
    images_ND: Rows, texts_MD: Rows, logit: tuple[float, float], *, block_rows: int | None = None
) -> float | None:
    """Return the mean entropy of a model's probability of a match, in nats a pair, over all N x M pairs.

    It is the least that the soft sigmoid loss of any student can be.

    Args:
        images_ND: unit rows.
        texts_MD: unit rows.
        logit: (scale, bias), the scale already exponentiated.
        block_rows: images at a time.
    """
    images, texts = (finite_in_both(rows, rows) for rows in (images_ND, texts_MD))
    if len(images) == 0 or len(texts) == 0:
        return None
    texts_MD = texts_MD[texts].astype(np.float64)
    total = 0.0
    for rows in blocks(len(images), len(texts), block_rows):
        z_BM = logit[0] * (images_ND[images[rows]].astype(np.float64) @ texts_MD.T) + logit[1]
        total += float((np.logaddexp(0, z_BM) - sigmoid(z_BM) * z_BM).sum())
    return total / (len(images) * len(texts))


def sigmoid(logits: Rows) -> Rows:
    """Return the probabilities of logits, without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * logits))


def pair_cosines(images_ND: Rows, texts_MD: Rows, image_P: Ints, text_P: Ints) -> Rows:
    """Return (P,) float64: the dot product of each pair's unit rows."""
    found = np.empty(len(image_P))
    for rows in blocks(len(image_P), images_ND.shape[1]):
        x, y = images_ND[image_P[rows]], texts_MD[text_P[rows]]
        found[rows] = np.einsum("pd,pd->p", x, y, dtype=np.float64)
    return found


def blocks(num_rows: int, row_values: int, block_rows: int | None = None) -> Iterator[slice]:
    """Yield slices of rows in order, each a block of a bounded number of values.

    Args:
        num_rows: number of all rows.
        row_values: values in each row of a block.
        block_rows: rows of a block; None: as many as fit in 4 million values.
    """
    size = block_rows or max(1, _BLOCK_VALUES // max(1, row_values))
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


def finite_in_both(a_ND: Rows, b_NE: Rows) -> Ints:
    """Return the rows, ascending, that are finite in both."""
    return np.flatnonzero(_is_finite(a_ND) & _is_finite(b_NE))


def _is_finite(rows_ND: Rows) -> NDArray[np.bool_]:
    """Return which rows are finite, (N,)."""
    return np.asarray(np.isfinite(rows_ND).all(axis=1))


def _shared(x_BN: Rows, y_BN: Rows, k: int) -> Rows:
    """Return what share of the k largest values of each row both have, (B,)."""
    return np.sum(_largest(x_BN, k) & _largest(y_BN, k), axis=1) / k


def _largest(values_BN: Rows, k: int) -> NDArray[np.bool_]:
    """Return a mask of the k largest values of each row; of equal ones the first."""
    kth_B1 = np.partition(values_BN, -k, axis=1)[:, -k, None]
    is_found_BN = values_BN >= kth_B1
    if np.count_nonzero(is_found_BN) == k * len(values_BN):  # no ties, as nearly always
        return is_found_BN
    is_above_BN, is_equal_BN = values_BN > kth_B1, values_BN == kth_B1
    num_left_B1 = k - is_above_BN.sum(axis=1, keepdims=True)
    return is_above_BN | (is_equal_BN & (np.cumsum(is_equal_BN, axis=1) <= num_left_B1))
