"""Calibration of a model's probability that an image and a text match. Plain numpy.

Of own pairs and as many others, half match: a model that is right about all pairs, of which one in thousands
matches, is not calibrated there. So all pairs are asked, too.

Shape letters in this file:
    N = images, M = texts, D = embedding width, P = pairs of an image with a text, B = bins or rows of a
    block, R = sums that are turned into a figure.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .metrics import Ints, Rows, blocks, finite_in_both, sigmoid

_MOST_LOGIT = 20
"""Logits beyond it share a bin; their probabilities differ from 0 or 1 by 2e-9."""

_NUM_BINS = 2 * _MOST_LOGIT + 2


def other_pairs(image_P: Ints, text_P: Ints, picture_N: Ints, *, seed: int) -> tuple[Ints, Ints]:
    """Return as many random pairs, with repeats, as there are own ones, none of which match.

    A text matches every image whose picture has it as a caption. Fewer pairs are returned if hardly any
    exist.
    """
    draw = np.random.default_rng(seed)
    num_texts = int(text_P.max(initial=-1)) + 1
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
    one_image_P = np.zeros(len(probability_P), np.int64)
    gaps_1B = calibration_gaps(probability_P, is_match_P, one_image_P, 1, num_bins=num_bins)
    return float(gap_size(gaps_1B)[0]) if gaps_1B[0, -1] else None


def calibration_gaps(
    probability_P: Rows,
    is_match_P: NDArray[np.bool_],
    image_P: Ints,
    num_images: int,
    *,
    num_bins: int = 15,
) -> Rows:
    """Return what each image adds to the calibration error, (num_images, num_bins + 1).

    They are sums over its pairs: of probability less match, by bin of the probability, and then their
    number. Pairs whose probability is not finite are left out.
    """
    is_there = np.isfinite(probability_P)
    probability_P, is_match_P = probability_P[is_there], is_match_P[is_there]
    bin_P = np.minimum((probability_P * num_bins).astype(np.int64), num_bins - 1)
    size = num_bins + 1
    gaps = np.bincount(
        image_P[is_there] * size + bin_P, probability_P - is_match_P, num_images * size
    )
    gaps_NB = gaps.reshape(num_images, size).astype(np.float64)
    gaps_NB[:, -1] = np.bincount(image_P[is_there], minlength=num_images)
    return gaps_NB


def gap_size(gaps_RB: Rows) -> Rows:
    """Return (R,): the sizes of all but the last of B sums, added up, as a share of the last."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.abs(gaps_RB[:, :-1]).sum(axis=1) / gaps_RB[:, -1]


def all_pair_gaps(
    images_ND: Rows,
    texts_MD: Rows,
    logit: tuple[float, float],
    image_P: Ints,
    text_P: Ints,
    *,
    block_rows: int | None = None,
) -> Rows:
    """Return what each image adds to the calibration over all pairs of an image and a text, (N, B + 3).

    They are sums over its pairs with every text: of probability less match, by bin of the logit, one unit
    wide; then of matches, of probabilities, and of pairs. Bins of the probability would not do: of
    thousands of pairs that do not match, all but a few are in the first.

    Args:
        images_ND: unit rows; those that are not finite add nothing.
        texts_MD: unit rows; those that are not finite are left out.
        logit: (scale, bias) of the logits, the scale already exponentiated.
        image_P: the image of each pair that matches.
        text_P: its text.
        block_rows: images at a time.
    """
    sums_NB = np.zeros((len(images_ND), _NUM_BINS + 3))
    for block, bin_BM, p_BM, is_match_BM in _all_pairs(
        images_ND, texts_MD, logit, image_P, text_P, block_rows
    ):
        bin_BM = bin_BM + _NUM_BINS * np.arange(len(block))[:, None]
        gaps = np.bincount(bin_BM.ravel(), (p_BM - is_match_BM).ravel(), _NUM_BINS * len(block))
        sums_NB[block, :_NUM_BINS] = gaps.reshape(len(block), _NUM_BINS)
        sums_NB[block, _NUM_BINS] = is_match_BM.sum(axis=1)
        sums_NB[block, _NUM_BINS + 1] = p_BM.sum(axis=1)
        sums_NB[block, -1] = p_BM.shape[1]
    return sums_NB


def reliability(
    images_ND: Rows,
    texts_MD: Rows,
    logit: tuple[float, float],
    image_P: Ints,
    text_P: Ints,
    *,
    block_rows: int | None = None,
) -> tuple[Rows, Rows, Ints]:
    """Return the mean probability, the share that match, and the number of pairs, of bins of the logit.

    Arguments and bins are those of all_pair_gaps; bins without a pair are left out. Calibrated
    probabilities equal the shares.
    """
    sums_3B = np.zeros((3, _NUM_BINS))
    for _, bin_BM, p_BM, is_match_BM in _all_pairs(
        images_ND, texts_MD, logit, image_P, text_P, block_rows
    ):
        for sums_B, values in zip(sums_3B, (p_BM, is_match_BM, None), strict=True):
            weights = None if values is None else values.ravel()
            sums_B += np.bincount(bin_BM.ravel(), weights, _NUM_BINS)
    p_B, matches_B, pairs_B = sums_3B[:, sums_3B[2] > 0]
    return p_B / pairs_B, matches_B / pairs_B, pairs_B.astype(np.int64)


def _all_pairs(
    images_ND: Rows,
    texts_MD: Rows,
    logit: tuple[float, float],
    image_P: Ints,
    text_P: Ints,
    block_rows: int | None,
) -> Iterator[tuple[Ints, Ints, Rows, NDArray[np.bool_]]]:
    """Yield (block, bin_BM, p_BM, is_match_BM) of blocks of images, those that are finite."""
    images, texts = (finite_in_both(rows, rows) for rows in (images_ND, texts_MD))
    if len(images) == 0 or len(texts) == 0:
        return
    order_P = np.argsort(image_P, kind="stable")
    image_P, text_P = image_P[order_P], text_P[order_P]
    used_MD = texts_MD[texts].astype(np.float64)
    column_M = np.full(len(texts_MD), -1)
    column_M[texts] = np.arange(len(texts))
    for rows in blocks(len(images), len(texts), block_rows):
        block = images[rows]
        z_BM = logit[0] * (images_ND[block].astype(np.float64) @ used_MD.T) + logit[1]
        is_match_BM = np.zeros(z_BM.shape, np.bool_)
        own = np.isin(image_P, block) & (column_M[text_P] >= 0)
        is_match_BM[np.searchsorted(block, image_P[own]), column_M[text_P[own]]] = True
        bin_BM = np.floor(np.clip(z_BM, -_MOST_LOGIT - 1, _MOST_LOGIT)).astype(np.int64)
        yield block, bin_BM + _MOST_LOGIT + 1, sigmoid(z_BM), is_match_BM
