"""Agreement of a model with its teacher, and calibration of its probabilities. Plain numpy.

All functions work on blocks of rows, so a matrix of all images by all others is never held. Rows that are
not finite (NaN where an embedding is missing) are left out of every mean.

Shape letters in this file:
    N = images, M = texts, D = embedding width of a model, E = that of its teacher,
    P = pairs of an image with a text, B = rows of a block.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]

_BLOCK_VALUES = 1 << 22
"""Scores in one block: 16 MB in float32, 32 MB in float64, with a few such arrays at a time."""


def mean_cosine(student_NE: Rows, teacher_NE: Rows) -> float | None:
    """Return the mean cosine of rows that are finite in both, of any norm; None if there are none."""
    both = finite_in_both(student_NE, teacher_NE)
    total = 0.0
    for rows in blocks(len(both), student_NE.shape[1]):
        a, b = (x[both[rows]].astype(np.float64) for x in (student_NE, teacher_NE))
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        total += float(np.sum((a * b).sum(axis=1) / np.maximum(norms, 1e-12)))  # 0 for a zero row
    return total / len(both) if len(both) else None


def image_agreement(
    student_ND: Rows, teacher_NE: Rows, *, num_neighbours: int = 10, block_rows: int | None = None
) -> tuple[float | None, float | None]:
    """Return how similarly two models compare images, over all pairs of different ones.

    Give each picture once: copies would be each other's nearest neighbours in any model.

    Returns:
        The Pearson correlation of the two models' cosines (None if either is constant), and the mean
        share of nearest neighbours that both models have in common (None with fewer than two images).
        Equal cosines rank in the order of the rows.
    """
    both = finite_in_both(student_ND, teacher_NE)
    student_ND = student_ND[both].astype(np.float64)
    teacher_NE = teacher_NE[both].astype(np.float64)
    N = len(both)
    k = min(num_neighbours, N - 1)
    if k < 1:
        return None, None
    moments, num_shared = _Moments(), 0
    for rows in blocks(N, N, block_rows):
        x_BN, y_BN = student_ND[rows] @ student_ND.T, teacher_NE[rows] @ teacher_NE.T
        is_other_BN = np.arange(N) != np.arange(rows.start, rows.stop)[:, None]
        moments.add(x_BN[is_other_BN], y_BN[is_other_BN])
        x_BN[~is_other_BN] = y_BN[~is_other_BN] = -np.inf
        num_shared += int(np.sum(_largest(x_BN, k) & _largest(y_BN, k)))
    return moments.correlation(), num_shared / (N * k)


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
    images, texts = (finite_in_both(a, b) for a, b in zip(student, teacher, strict=True))
    if len(images) == 0 or len(texts) == 0:
        return None
    (x_ND, y_MD), (u_NE, v_ME) = (
        (side[0][images], side[1][texts].astype(np.float64)) for side in (student, teacher)
    )
    total = 0.0
    for rows in blocks(len(images), len(texts), block_rows):
        z_BM = student_logit[0] * (x_ND[rows].astype(np.float64) @ y_MD.T) + student_logit[1]
        t_BM = teacher_logit[0] * (u_NE[rows].astype(np.float64) @ v_ME.T) + teacher_logit[1]
        # softplus(z) - p z, less the same at z = t, which is the entropy of p = sigmoid(t)
        excess_BM = np.logaddexp(0, z_BM) - np.logaddexp(0, t_BM) - sigmoid(t_BM) * (z_BM - t_BM)
        total += float(excess_BM.sum())
    return total / (len(images) * len(texts))


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


def other_pairs(
    image_P: Ints, text_P: Ints, picture_N: Ints, num_texts: int, *, seed: int
) -> tuple[Ints, Ints]:
    """Return as many random pairs, with repeats, as there are own ones, none of which match.

    A text matches every image whose picture has it as a caption. Fewer pairs are returned if hardly any
    exist.
    """
    draw = np.random.default_rng(seed)
    matching = np.unique(picture_N[image_P] * num_texts + text_P)
    images, texts = np.empty(0, np.int64), np.empty(0, np.int64)
    candidates = np.unique(text_P)
    for _ in range(100):
        num_wanted = len(image_P) - len(images)
        if num_wanted == 0:
            break
        image = draw.integers(0, len(picture_N), num_wanted)
        text = draw.choice(candidates, num_wanted)
        is_new = ~np.isin(picture_N[image] * num_texts + text, matching)
        images = np.concatenate([images, image[is_new]])
        texts = np.concatenate([texts, text[is_new]])
    return images, texts


def calibration_error(
    probability_P: Rows, is_match_P: NDArray[np.bool_], *, num_bins: int = 15
) -> float | None:
    """Return the expected calibration error over equal-width bins of the probability, 0 to 1.

    Pairs whose probability is not finite are left out; None if no pair is left.

    Source: Guo et al. 2017, arXiv:1706.04599, equation 3.
    """
    is_there = np.isfinite(probability_P)
    probability_P, is_match_P = probability_P[is_there], is_match_P[is_there]
    if len(probability_P) == 0:
        return None
    bin_P = np.minimum((probability_P * num_bins).astype(np.int64), num_bins - 1)
    predicted = np.bincount(bin_P, probability_P, num_bins)
    actual = np.bincount(bin_P, is_match_P, num_bins)
    return float(np.abs(predicted - actual).sum() / len(probability_P))


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
    return np.flatnonzero(np.isfinite(a_ND).all(axis=1) & np.isfinite(b_NE).all(axis=1))


class _Moments:
    """Sums for a correlation, around a first estimate of the means, since the spread may be small."""

    def __init__(self) -> None:
        self._count = 0
        self._guess = (0.0, 0.0)
        self._sums = np.zeros(5)

    def add(self, x: Rows, y: Rows) -> None:
        if self._count == 0:
            self._guess = (float(x.mean()), float(y.mean()))
        x, y = x - self._guess[0], y - self._guess[1]
        self._count += len(x)
        self._sums += (x.sum(), y.sum(), x @ x, y @ y, x @ y)

    def correlation(self) -> float | None:
        x, y, xx, yy, xy = self._sums / self._count
        variances = (xx - x * x, yy - y * y)
        if min(variances) < 1e-24:  # the rounding of cosines that are all equal is 1e-32
            return None
        return float((xy - x * y) / np.sqrt(variances[0] * variances[1]))


def _largest(values_BN: Rows, k: int) -> NDArray[np.bool_]:
    """Return a mask of the k largest values of each row; of equal ones the first."""
    kth_B1 = np.partition(values_BN, -k, axis=1)[:, -k, None]
    is_above_BN, is_equal_BN = values_BN > kth_B1, values_BN == kth_B1
    num_left_B1 = k - is_above_BN.sum(axis=1, keepdims=True)
    return is_above_BN | (is_equal_BN & (np.cumsum(is_equal_BN, axis=1) <= num_left_B1))
