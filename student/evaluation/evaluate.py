"""What a model is worth beside its teacher, on the images of a gallery: numbers, and a table of them.

Each model is a column: the teacher from the cache, the student before and after. Embeddings come from
embeddings.py, the images and texts from gallery.py, the arithmetic from retrieval.py and metrics.py.

Shape letters in this file:
    N = images, M = texts, D = embedding width of a model, E = that of the teacher, P = pairs.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .embeddings import Embeddings, of_unit_length, student_embeddings, teacher_embeddings
from .eval_set import SPLITS, Gallery, choose_gallery
from .metrics import (
    calibration_error,
    image_agreement,
    mean_cosine,
    other_pairs,
    pair_cosines,
    sigmoid,
    soft_loss_excess,
)
from .report import gallery_lines, gallery_numbers, table_lines, zero_shot_lines
from .retrieval import macro_mean, retrieval, zero_shot

__all__ = [
    "SPLITS",
    "Embeddings",
    "Gallery",
    "choose_gallery",
    "evaluate",
    "gallery_lines",
    "gallery_numbers",
    "map_texts",
    "student_embeddings",
    "table_lines",
    "teacher_embeddings",
    "zero_shot_lines",
]

_SOFT_PAIRS = 1 << 25
"""Pairs over which the soft loss is averaged at most: seconds. 10,000 images with 5 captions make
15 times as many, and a fifteenth of the images then gives the same mean to two or three digits."""


def evaluate(
    subject: Embeddings,
    reference: Embeddings,
    gallery: Gallery,
    *,
    map_ED: NDArray[np.floating[Any]] | None = None,
    is_one_space: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Return every number of one column, as JSON values; None is what does not apply.

    Args:
        subject: the model.
        reference: the teacher, on the same rows.
        gallery: what those rows are.
        map_ED: the linear map from the model's space to the teacher's, ``x_ND @ map_ED.T``. None:
            the spaces are one if they have one width, and the cosine is None if not.
        is_one_space: False: they are not, whatever their widths, and the cosine is None.
        seed: of the pairs that calibration takes for other ones.

    Returns:
        name; missing_images and missing_texts (how many rows the model has no embedding for: they
        never hit); retrieval, zero_shot (both with "all", "languages", "macro_mean");
        image_cosine and text_cosine to the teacher; image_correlation and neighbour_overlap (of the
        10 nearest) among pictures, each once; soft_loss_excess in nats a pair; calibration_error.
    """
    images_ND, texts_MD = subject.images_ND, subject.texts_MD
    used_M = _used_texts(gallery)
    return {
        "name": subject.name,
        "missing_images": _num_missing(images_ND),
        "missing_texts": _num_missing(texts_MD[used_M]),
        "retrieval": _retrieval(images_ND, texts_MD, gallery),
        "zero_shot": _zero_shot(images_ND, texts_MD, gallery),
        **_cosines(subject, reference, map_ED, used_M, is_one_space=is_one_space),
        **_agreement(subject, reference, gallery),
        "soft_loss_excess": _soft_loss_excess(subject, reference, gallery, seed),
        "calibration_error": _calibration_error(subject, gallery, seed),
    }


def map_texts(
    reference: Embeddings, map_ED: NDArray[np.floating[Any]] | None
) -> NDArray[np.float32]:
    """Return the teacher's texts in the student's space, (M, D) unit rows: the texts of a student that
    has an image tower only. None: the spaces are one."""
    texts_ME = reference.texts_MD
    return texts_ME if map_ED is None else of_unit_length(texts_ME @ map_ED.astype(np.float32))


def _used_texts(gallery: Gallery) -> NDArray[np.int64]:
    """Return the positions of the gallery's captions."""
    return np.unique(gallery.text_P)


def _num_missing(rows_ND: NDArray[np.float32]) -> int:
    return int(np.sum(~np.isfinite(rows_ND).all(axis=1)))


def _has_texts(texts_MD: NDArray[np.float32]) -> bool:
    return len(texts_MD) > 0 and _num_missing(texts_MD) < len(texts_MD)


def _retrieval(
    images_ND: NDArray[np.float32], texts_MD: NDArray[np.float32], gallery: Gallery
) -> dict[str, Any] | None:
    if not _has_texts(texts_MD[gallery.text_P]):
        return None
    pairs = (gallery.image_P, gallery.text_P)
    languages: dict[str, dict[str, Any]] = {}
    for number, lang in enumerate(gallery.langs):
        is_of_P = gallery.lang_P == number
        if lang is None or not is_of_P.any():
            continue
        images, image_P = np.unique(gallery.image_P[is_of_P], return_inverse=True)
        languages[lang] = retrieval(
            images_ND[images],
            texts_MD,
            image_P.astype(np.int64),
            gallery.text_P[is_of_P],
            gallery.picture_N[images],
        )
    return {
        "all": retrieval(images_ND, texts_MD, *pairs, gallery.picture_N),
        "languages": languages,
        "macro_mean": {
            way: macro_mean({lang: found[way] for lang, found in languages.items()})
            for way in ("image_to_text", "text_to_image")
        },
    }


def _zero_shot(
    images_ND: NDArray[np.float32], texts_MD: NDArray[np.float32], gallery: Gallery
) -> dict[str, Any] | None:
    """A prompt without language speaks in every language."""
    prompts_QD = texts_MD[gallery.prompt_Q]
    if not _has_texts(prompts_QD):
        return None
    lang_Q = np.array(gallery.lang_Q, object)
    languages: dict[str, dict[str, Any]] = {}
    for lang in sorted({lang for lang in gallery.lang_Q if lang is not None}):
        is_of_Q = (lang_Q == lang) | (lang_Q == None)  # noqa: E711 - element by element
        found = zero_shot(images_ND, gallery.label_N, prompts_QD[is_of_Q], gallery.class_Q[is_of_Q])
        if found is not None:
            languages[lang] = found
    return {
        "all": zero_shot(images_ND, gallery.label_N, prompts_QD, gallery.class_Q),
        "languages": languages,
        "macro_mean": macro_mean({lang: found["accuracy"] for lang, found in languages.items()}),
    }


def _cosines(
    subject: Embeddings,
    reference: Embeddings,
    map_ED: NDArray[np.floating[Any]] | None,
    used_M: NDArray[np.int64],
    *,
    is_one_space: bool,
) -> dict[str, float | None]:
    sides = {
        "image_cosine": (subject.images_ND, reference.images_ND),
        "text_cosine": (subject.texts_MD[used_M], reference.texts_MD[used_M]),
    }
    found: dict[str, float | None] = {}
    for name, (student_ND, teacher_NE) in sides.items():
        mapped_NE = student_ND if map_ED is None else student_ND @ map_ED.T.astype(np.float32)
        is_comparable = is_one_space and mapped_NE.shape == teacher_NE.shape
        found[name] = mean_cosine(mapped_NE, teacher_NE) if is_comparable else None
    return found


def _agreement(
    subject: Embeddings, reference: Embeddings, gallery: Gallery
) -> dict[str, float | None]:
    _, first_of_picture = np.unique(gallery.picture_N, return_index=True)
    images = np.sort(first_of_picture)
    correlation, overlap = image_agreement(subject.images_ND[images], reference.images_ND[images])
    return {"image_correlation": correlation, "neighbour_overlap": overlap}


def _soft_loss_excess(
    subject: Embeddings, reference: Embeddings, gallery: Gallery, seed: int
) -> float | None:
    if subject.logit is None or reference.logit is None:
        return None
    used_M = _used_texts(gallery)
    images = np.arange(len(gallery.rows_N))
    num_images = max(1, _SOFT_PAIRS // max(1, len(used_M)))
    if len(images) > num_images:
        images = np.sort(np.random.default_rng(seed).choice(images, num_images, replace=False))
    return soft_loss_excess(
        (subject.images_ND[images], subject.texts_MD[used_M]),
        (reference.images_ND[images], reference.texts_MD[used_M]),
        student_logit=subject.logit,
        teacher_logit=reference.logit,
    )


def _calibration_error(subject: Embeddings, gallery: Gallery, seed: int) -> float | None:
    if subject.logit is None:
        return None
    own = (gallery.image_P, gallery.text_P)
    other = other_pairs(*own, gallery.picture_N, len(gallery.text_rows_M), seed=seed)
    scale, bias = subject.logit
    probabilities: list[NDArray[np.floating[Any]]] = []
    for image_P, text_P in (own, other):
        cosine_P = pair_cosines(subject.images_ND, subject.texts_MD, image_P, text_P)
        probabilities.append(sigmoid(scale * cosine_P + bias))
    is_match_P = np.repeat([True, False], [len(side) for side in probabilities])
    return calibration_error(np.concatenate(probabilities), is_match_P)
