"""All metrics of one model on an eval set, beside its teacher.

Embeddings come from embeddings.py, images and texts from eval_set.py, the arithmetic from retrieval.py and
metrics.py; report.py makes a table.

Shape letters in this file:
    N = images, M = texts, D = embedding width of a model, E = that of the teacher, P = pairs.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .embeddings import Embeddings, unit_rows_float32
from .eval_set import EvalSet
from .metrics import (
    calibration_error,
    image_agreement,
    mean_cosine,
    other_pairs,
    pair_cosines,
    sigmoid,
    soft_loss_excess,
)
from .retrieval import index_recall, macro_mean, retrieval, zero_shot

_SOFT_PAIRS = 1 << 25
"""Most pairs that the soft loss is averaged over, which takes seconds. 10,000 images with 5 captions have
15 times as many; a fifteenth of the images gives the same mean to two or three digits."""


def evaluate(
    subject: Embeddings,
    reference: Embeddings,
    eval_set: EvalSet,
    *,
    map_ED: NDArray[np.floating[Any]] | None = None,
    is_one_space: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Return all metrics of one model, as JSON values; None where one does not apply.

    Args:
        subject: embeddings of the model.
        reference: embeddings of the teacher, of the same rows.
        eval_set: images and texts of those rows.
        map_ED: linear map from the model's space to the teacher's, ``x_ND @ map_ED.T``. None: with
            equal widths the spaces are the same, with other widths the cosine is None.
        is_one_space: False: the spaces differ even with equal widths, and the cosine is None.
        seed: random seed of the pairs of the calibration error.

    Returns:
        name; missing_images and missing_texts (rows without an embedding, counted as misses);
        retrieval and zero_shot (both with "all", "languages", "macro_mean"); image_cosine and
        text_cosine to the teacher; teacher_index, the recall of its queries in an index of the teacher's
        images; image_correlation and neighbour_overlap (of the 10 nearest) among
        different pictures; soft_loss_excess in nats a pair; calibration_error.
    """
    images_ND, texts_MD = subject.images_ND, subject.texts_MD
    used_M = _used_texts(eval_set)
    return {
        "name": subject.name,
        "missing_images": _num_missing(images_ND),
        "missing_texts": _num_missing(texts_MD[used_M]),
        "retrieval": _retrieval(images_ND, texts_MD, eval_set),
        "zero_shot": _zero_shot(images_ND, texts_MD, eval_set),
        **_in_teacher_space(
            subject, reference, map_ED, eval_set, used_M, is_one_space=is_one_space
        ),
        **_agreement(subject, reference, eval_set),
        "soft_loss_excess": _soft_loss_excess(subject, reference, eval_set, seed),
        "calibration_error": _calibration_error(subject, eval_set, seed),
    }


def in_student_space(
    rows_NE: NDArray[np.float32], map_ED: NDArray[np.floating[Any]] | None
) -> NDArray[np.float32]:
    """Return images or texts of the teacher in the student's space, (N, D) unit rows.

    They are those of a student that has only the other tower. map_ED None: the spaces are the same.
    """
    return rows_NE if map_ED is None else unit_rows_float32(rows_NE @ map_ED.astype(np.float32))


def _used_texts(eval_set: EvalSet) -> NDArray[np.int64]:
    """Return the positions of the eval set's captions."""
    return np.unique(eval_set.text_P)


def _num_missing(rows_ND: NDArray[np.float32]) -> int:
    return int(np.sum(~np.isfinite(rows_ND).all(axis=1)))


def _has_texts(texts_MD: NDArray[np.float32]) -> bool:
    return len(texts_MD) > 0 and _num_missing(texts_MD) < len(texts_MD)


def _retrieval(
    images_ND: NDArray[np.float32], texts_MD: NDArray[np.float32], eval_set: EvalSet
) -> dict[str, Any] | None:
    if not _has_texts(texts_MD[eval_set.text_P]):
        return None
    pairs = (eval_set.image_P, eval_set.text_P)
    languages: dict[str, dict[str, Any]] = {}
    for number, lang in enumerate(eval_set.langs):
        is_of_P = eval_set.lang_P == number
        if lang is None or not is_of_P.any():
            continue
        images, image_P = np.unique(eval_set.image_P[is_of_P], return_inverse=True)
        languages[lang] = retrieval(
            images_ND[images],
            texts_MD,
            image_P.astype(np.int64),
            eval_set.text_P[is_of_P],
            eval_set.picture_N[images],
        )
    return {
        "all": retrieval(images_ND, texts_MD, *pairs, eval_set.picture_N),
        "languages": languages,
        "macro_mean": {
            way: macro_mean({lang: found[way] for lang, found in languages.items()})
            for way in ("image_to_text", "text_to_image")
        },
    }


def _zero_shot(
    images_ND: NDArray[np.float32], texts_MD: NDArray[np.float32], eval_set: EvalSet
) -> dict[str, Any] | None:
    """Return zero-shot accuracies; a prompt without a language counts for every language."""
    prompts_QD = texts_MD[eval_set.prompt_Q]
    if not _has_texts(prompts_QD):
        return None
    lang_Q = np.array(eval_set.lang_Q, object)
    languages: dict[str, dict[str, Any]] = {}
    for lang in sorted({lang for lang in eval_set.lang_Q if lang is not None}):
        is_of_Q = (lang_Q == lang) | (lang_Q == None)  # noqa: E711 - element by element
        found = zero_shot(
            images_ND, eval_set.label_N, prompts_QD[is_of_Q], eval_set.class_Q[is_of_Q]
        )
        if found is not None:
            languages[lang] = found
    return {
        "all": zero_shot(images_ND, eval_set.label_N, prompts_QD, eval_set.class_Q),
        "languages": languages,
        "macro_mean": macro_mean({lang: found["accuracy"] for lang, found in languages.items()}),
    }


def _in_teacher_space(
    subject: Embeddings,
    reference: Embeddings,
    map_ED: NDArray[np.floating[Any]] | None,
    eval_set: EvalSet,
    used_M: NDArray[np.int64],
    *,
    is_one_space: bool,
) -> dict[str, Any]:
    """Return what needs embeddings in the teacher's space; None where there are none."""
    images_NE, texts_ME = subject.images_ND, subject.texts_MD
    if map_ED is not None:
        images_NE, texts_ME = (rows @ map_ED.T.astype(np.float32) for rows in (images_NE, texts_ME))
    if not is_one_space or images_NE.shape != reference.images_ND.shape:
        return dict.fromkeys(("image_cosine", "text_cosine", "teacher_index"))
    return {
        "image_cosine": mean_cosine(images_NE, reference.images_ND),
        "text_cosine": mean_cosine(texts_ME[used_M], reference.texts_MD[used_M]),
        "teacher_index": index_recall(
            reference.images_ND,
            images_NE,
            texts_ME,
            eval_set.image_P,
            eval_set.text_P,
            eval_set.picture_N,
        ),
    }


def _agreement(
    subject: Embeddings, reference: Embeddings, eval_set: EvalSet
) -> dict[str, float | None]:
    _, first_of_picture = np.unique(eval_set.picture_N, return_index=True)
    images = np.sort(first_of_picture)
    correlation, overlap = image_agreement(subject.images_ND[images], reference.images_ND[images])
    return {"image_correlation": correlation, "neighbour_overlap": overlap}


def _soft_loss_excess(
    subject: Embeddings, reference: Embeddings, eval_set: EvalSet, seed: int
) -> float | None:
    if subject.logit is None or reference.logit is None:
        return None
    used_M = _used_texts(eval_set)
    images = np.arange(len(eval_set.rows_N))
    num_images = max(1, _SOFT_PAIRS // max(1, len(used_M)))
    if len(images) > num_images:
        images = np.sort(np.random.default_rng(seed).choice(images, num_images, replace=False))
    return soft_loss_excess(
        (subject.images_ND[images], subject.texts_MD[used_M]),
        (reference.images_ND[images], reference.texts_MD[used_M]),
        student_logit=subject.logit,
        teacher_logit=reference.logit,
    )


def _calibration_error(subject: Embeddings, eval_set: EvalSet, seed: int) -> float | None:
    if subject.logit is None:
        return None
    own = (eval_set.image_P, eval_set.text_P)
    other = other_pairs(*own, eval_set.picture_N, len(eval_set.text_rows_M), seed=seed)
    scale, bias = subject.logit
    probabilities: list[NDArray[np.floating[Any]]] = []
    for image_P, text_P in (own, other):
        cosine_P = pair_cosines(subject.images_ND, subject.texts_MD, image_P, text_P)
        probabilities.append(sigmoid(scale * cosine_P + bias))
    is_match_P = np.repeat([True, False], [len(side) for side in probabilities])
    return calibration_error(np.concatenate(probabilities), is_match_P)
