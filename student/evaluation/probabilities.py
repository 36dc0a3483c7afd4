"""What a model's probabilities that an image and a text match are worth, with what intervals need.

Shape letters in this file: N = images, M = texts, P = pairs, R = resamples, B = bins.
"""

import numpy as np

from .calibration import (
    all_pair_gaps,
    calibration_error,
    calibration_gaps,
    gap_size,
    other_pairs,
)
from .embeddings import Embeddings, has_texts
from .eval_set import EvalSet
from .intervals import Figure, Figures
from .metrics import Ints, Rows, finite_mean, pair_cosines, sigmoid, soft_loss_means
from .retrieval import with_equal_pictures

_SOFT_PAIRS = 1 << 25
"""Most pairs that the soft loss and the calibration are averaged over, which takes seconds. 10,000 images
with 5 captions have 15 times as many; a fifteenth gives the same mean to two or three digits."""


def _some_images(eval_set: EvalSet, num_texts: int, seed: int) -> Ints:
    """Return as many images as have at most _SOFT_PAIRS pairs with some texts."""
    images = np.arange(len(eval_set.picture_N))
    num_images = max(1, _SOFT_PAIRS // max(1, num_texts))
    if len(images) > num_images:
        images = np.sort(np.random.default_rng(seed).choice(images, num_images, replace=False))
    return images


def soft_loss(
    subject: Embeddings, reference: Embeddings, eval_set: EvalSet, seed: int, figures: Figures
) -> float | None:
    """Return soft_loss_excess, of the pairs of some images if there are very many; None without logits."""
    if subject.logit is None or reference.logit is None:
        return None
    used_M = eval_set.captions()
    images = _some_images(eval_set, len(used_M), seed)
    by_image, by_text = soft_loss_means(
        (subject.images_ND[images], subject.texts_MD[used_M]),
        (reference.images_ND[images], reference.texts_MD[used_M]),
        student_logit=subject.logit,
        teacher_logit=reference.logit,
    )
    whole = finite_mean(by_image)
    if whole is None:
        return None
    num_images = len(eval_set.picture_N)
    is_there = np.isfinite(by_image)
    sums_N4 = np.zeros((num_images, 4))
    sums_N4[images[is_there], 0], sums_N4[images[is_there], 1] = by_image[is_there], 1
    image_P, text_P, share_P = eval_set.shares()
    value_P = by_text[np.searchsorted(used_M, text_P)]
    share_P = share_P * np.isfinite(value_P)
    sums_N4[:, 2] = np.bincount(image_P, share_P * np.nan_to_num(value_P), num_images)
    sums_N4[:, 3] = np.bincount(image_P, share_P, num_images)

    def excess_of(sums_R4: Rows) -> Rows:
        # The pairs of a resample have its images and their texts; to first order the changes add up.
        return sums_R4[:, 0] / sums_R4[:, 1] + sums_R4[:, 2] / sums_R4[:, 3] - whole

    figures.add(("soft_loss_excess",), sums_N4, excess_of)
    return whole


def calibration_of_half(
    subject: Embeddings, eval_set: EvalSet, seed: int, figures: Figures
) -> float | None:
    """Return the calibration error of own pairs and as many random others; None without logits."""
    if subject.logit is None:
        return None
    own = eval_set.shares()[:2]
    other = other_pairs(*own, eval_set.picture_N, seed=seed)
    scale, bias = subject.logit
    image_P, text_P = (np.concatenate(sides) for sides in zip(own, other, strict=True))
    cosine_P = pair_cosines(subject.images_ND, subject.texts_MD, image_P, text_P)
    probability_P = sigmoid(scale * cosine_P + bias)
    is_match_P = np.arange(len(image_P)) < len(own[0])
    gaps_NB = calibration_gaps(probability_P, is_match_P, image_P, len(eval_set.picture_N))
    figures.add(("calibration_error",), gaps_NB, gap_size)
    return calibration_error(probability_P, is_match_P)


def calibration_of_all(
    subject: Embeddings, eval_set: EvalSet, seed: int, figures: Figures
) -> dict[str, float] | None:
    """Return the calibration over all pairs of an image and a caption: at the prior of the eval set."""
    used_M = eval_set.captions()
    if subject.logit is None or not has_texts(subject.texts_MD[used_M]):
        return None
    images = _some_images(eval_set, len(used_M), seed)
    image_P, text_P = with_equal_pictures(
        eval_set.image_P, np.searchsorted(used_M, eval_set.text_P), eval_set.picture_N
    )
    is_asked_P = np.isin(image_P, images)
    of_images_NB = all_pair_gaps(
        subject.images_ND[images],
        subject.texts_MD[used_M],
        subject.logit,
        np.searchsorted(images, image_P[is_asked_P]),
        text_P[is_asked_P],
    )
    sums_NB = np.zeros((len(eval_set.picture_N), of_images_NB.shape[1]))
    sums_NB[images] = of_images_NB
    parts: dict[str, Figure] = {
        "prior": lambda sums_RB: sums_RB[:, -3] / sums_RB[:, -1],
        "predicted": lambda sums_RB: sums_RB[:, -2] / sums_RB[:, -1],
        "error_per_match": lambda sums_RB: gap_size(sums_RB[:, :-2]),
    }
    whole_1B = sums_NB.sum(axis=0, keepdims=True)
    if not whole_1B[0, -3]:
        return None
    for name, figure in parts.items():
        figures.add(("calibration", name), sums_NB, figure)
    return {name: float(figure(whole_1B)[0]) for name, figure in parts.items()}
