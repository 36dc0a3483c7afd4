"""All metrics of one model on an eval set, beside its teacher.

Embeddings come from embeddings.py, images and texts from eval_set.py, the arithmetic from retrieval.py and
metrics.py; report.py makes a table.

Shape letters in this file:
    N = images, M = texts, D = embedding width of a model, E = that of the teacher, P = pairs, Q = prompts,
    J = values that are averaged, R = resamples, B = bins.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .embeddings import Embeddings, has_texts, num_missing, unit_rows_float32
from .eval_set import EvalSet
from .intervals import Figures
from .metrics import (
    Ints,
    Rows,
    correlation,
    finite_mean,
    image_agreement,
    index_overlap,
    row_cosines,
)
from .probabilities import calibration_of_all, calibration_of_half, soft_loss
from .retrieval import CUTOFFS, TOPS, index_recall, macro_mean, retrieval, zero_shot

_WAYS = ("image_to_text", "text_to_image")
_OF_REFERENCE = (
    "image_cosine",
    "text_cosine",
    "teacher_index",
    "image_correlation",
    "neighbour_overlap",
    "soft_loss_excess",
)


def evaluate(
    subject: Embeddings,
    reference: Embeddings | None,
    eval_set: EvalSet,
    *,
    map_ED: NDArray[np.floating[Any]] | None = None,
    is_one_space: bool = True,
    is_whole: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Return all metrics of one model, as JSON values; None where one does not apply.

    Args:
        subject: embeddings of the model.
        reference: embeddings of the teacher, of the same rows; None: nothing is compared with them.
        eval_set: images and texts of those rows.
        map_ED: linear map from the model's space to the teacher's, ``x_ND @ map_ED.T``. None: with
            equal widths the spaces are the same, with other widths the cosine is None.
        is_one_space: False: the spaces differ even with equal widths, and the cosine is None.
        is_whole: False: leave out teacher_index, calibration and intervals, a quarter of the time.
        seed: random seed of the pairs of the calibration error, and of the intervals.

    Returns:
        name; missing_images and missing_texts (rows without an embedding, counted as misses);
        retrieval and zero_shot (both with "all", "languages", "macro_mean"); image_cosine and
        text_cosine to the teacher; teacher_index, the recall of its queries in an index of the teacher's
        images, and neighbour_overlap there: what share of the 10 images that the teacher's own query finds
        first it finds; image_correlation and neighbour_overlap (of the 10 nearest) among
        different pictures; soft_loss_excess in nats a pair; calibration_error, of own pairs and as many
        others; calibration, of all pairs: prior (the share that match), predicted (the mean probability)
        and error_per_match (of bins of the logit, as a share of the matches); intervals: [low, high] of
        each of these figures, at the same place, 95 % of a bootstrap over images.
    """
    images_ND, texts_MD = subject.images_ND, subject.texts_MD
    used_M = eval_set.captions()
    figures = Figures(eval_set.picture_N)
    return {
        "name": subject.name,
        "missing_images": num_missing(images_ND),
        "missing_texts": num_missing(texts_MD[used_M]),
        "retrieval": _retrieval(images_ND, texts_MD, eval_set, figures),
        "zero_shot": _zero_shot(images_ND, texts_MD, eval_set, figures),
        **dict.fromkeys(_OF_REFERENCE),
        **_nearness(subject, reference, eval_set, figures, map_ED, is_one_space, is_whole, seed),
        "calibration_error": calibration_of_half(subject, eval_set, seed, figures),
        "calibration": calibration_of_all(subject, eval_set, seed, figures) if is_whole else None,
        "intervals": figures.intervals(seed=seed) if is_whole else {},
    }


def _nearness(
    subject: Embeddings,
    reference: Embeddings | None,
    eval_set: EvalSet,
    figures: Figures,
    map_ED: NDArray[np.floating[Any]] | None,
    is_one_space: bool,
    is_whole: bool,
    seed: int,
) -> dict[str, Any]:
    if reference is None:
        return {}
    return {
        **_in_teacher_space(
            subject,
            reference,
            map_ED,
            eval_set,
            figures,
            is_one_space=is_one_space,
            is_whole=is_whole,
        ),
        **_agreement(subject, reference, eval_set, figures),
        "soft_loss_excess": soft_loss(subject, reference, eval_set, seed, figures),
    }


def in_student_space(
    rows_NE: NDArray[np.float32], map_ED: NDArray[np.floating[Any]] | None
) -> NDArray[np.float32]:
    """Return images or texts of the teacher in the student's space, (N, D) unit rows.

    They are those of a student that has only the other tower. map_ED None: the spaces are the same.
    """
    return rows_NE if map_ED is None else unit_rows_float32(rows_NE @ map_ED.astype(np.float32))


def _retrieval(
    images_ND: Rows, texts_MD: Rows, eval_set: EvalSet, figures: Figures
) -> dict[str, Any] | None:
    if not has_texts(texts_MD[eval_set.text_P]):
        return None

    def rates(
        path: tuple[str, ...], images_N: Ints, is_of_P: NDArray[np.bool_] | None
    ) -> dict[str, Any]:
        # A caption of several images is a query of each of them, in equal shares.
        image_P, text_P, share_P = eval_set.shares(is_of_P)
        own_P = np.searchsorted(images_N, image_P).astype(np.int64)
        found = retrieval(
            images_ND[images_N], texts_MD, own_P, text_P, eval_set.picture_N[images_N]
        )
        query_P = np.searchsorted(found.text_M, text_P)
        for k in CUTOFFS:
            for_images, for_texts = ((*path, way, str(k)) for way in _WAYS)
            figures.add_mean(for_images, images_N[found.image_Q], found.to_text_Q < k)
            figures.add_mean(for_texts, image_P, found.to_image_M[query_P] < k, share_P)
        return found.rates()

    languages: dict[str, dict[str, Any]] = {}
    for number, lang in enumerate(eval_set.langs):
        is_of_P = eval_set.lang_P == number
        if lang is not None and is_of_P.any():
            path = ("retrieval", "languages", lang)
            languages[lang] = rates(path, np.unique(eval_set.image_P[is_of_P]), is_of_P)
    if languages:
        for way in _WAYS:
            target = ("retrieval", "macro_mean", way)
            _add_macro_mean(figures, languages, "retrieval", way, target, CUTOFFS)
    return {
        "all": rates(("retrieval", "all"), np.arange(len(images_ND)), None),
        "languages": languages,
        "macro_mean": {
            way: macro_mean({lang: found[way] for lang, found in languages.items()})
            for way in _WAYS
        },
    }


def _add_macro_mean(
    figures: Figures,
    languages: Mapping[str, Any],
    task: str,
    name: str,
    target: tuple[str, ...],
    ks: Sequence[int],
) -> None:
    """Add the means over languages of the rates of one name of a task, as figures below ``target``."""
    for k in map(str, ks):
        paths = [(task, "languages", lang, name, k) for lang in languages]
        figures.add_mean_of((*target, k), paths)


def _zero_shot(
    images_ND: Rows, texts_MD: Rows, eval_set: EvalSet, figures: Figures
) -> dict[str, Any] | None:
    """Return zero-shot accuracies; a prompt without a language counts for every language."""
    prompts_QD = texts_MD[eval_set.prompt_Q]
    if not has_texts(prompts_QD):
        return None

    def rates(path: tuple[str, ...], is_of_Q: NDArray[np.bool_]) -> dict[str, Any] | None:
        found = zero_shot(
            images_ND, eval_set.label_N, prompts_QD[is_of_Q], eval_set.class_Q[is_of_Q]
        )
        if found is None:
            return None
        for k in TOPS:
            figures.add_mean((*path, "accuracy", str(k)), found.image_Q, found.rank_Q < k)
        return found.rates()

    lang_Q = np.array(eval_set.lang_Q, object)
    languages: dict[str, dict[str, Any]] = {}
    for lang in sorted({lang for lang in eval_set.lang_Q if lang is not None}):
        is_of_Q = (lang_Q == lang) | (lang_Q == None)  # noqa: E711 - element by element
        found = rates(("zero_shot", "languages", lang), is_of_Q)
        if found is not None:
            languages[lang] = found
    if languages:
        target = ("zero_shot", "macro_mean")
        _add_macro_mean(figures, languages, "zero_shot", "accuracy", target, TOPS)
    return {
        "all": rates(("zero_shot", "all"), np.ones(len(lang_Q), np.bool_)),
        "languages": languages,
        "macro_mean": macro_mean({lang: found["accuracy"] for lang, found in languages.items()}),
    }


def _in_teacher_space(
    subject: Embeddings,
    reference: Embeddings,
    map_ED: NDArray[np.floating[Any]] | None,
    eval_set: EvalSet,
    figures: Figures,
    *,
    is_one_space: bool,
    is_whole: bool,
) -> dict[str, Any]:
    """Return what needs embeddings in the teacher's space; None where there are none."""
    images_NE, texts_ME = subject.images_ND, subject.texts_MD
    if map_ED is not None:
        images_NE, texts_ME = (rows @ map_ED.T.astype(np.float32) for rows in (images_NE, texts_ME))
    if not is_one_space or images_NE.shape != reference.images_ND.shape:
        return dict.fromkeys(("image_cosine", "text_cosine", "teacher_index"))
    image_N, (image_P, text_P, share_P) = np.arange(len(images_NE)), eval_set.shares()
    cosine_N = row_cosines(images_NE, reference.images_ND)
    cosine_M = row_cosines(texts_ME, reference.texts_MD)
    figures.add_mean(("image_cosine",), image_N, cosine_N)
    figures.add_mean(("text_cosine",), image_P, cosine_M[text_P], share_P)
    return {
        "image_cosine": finite_mean(cosine_N),
        "text_cosine": finite_mean(cosine_M[eval_set.captions()]),
        "teacher_index": _teacher_index(images_NE, texts_ME, reference, eval_set, figures)
        if is_whole
        else None,
    }


def _teacher_index(
    images_NE: Rows, texts_ME: Rows, reference: Embeddings, eval_set: EvalSet, figures: Figures
) -> dict[str, Any]:
    """Return the recall of queries in an index of the teacher's images, and what the teacher finds too."""
    image_N, (image_P, text_P, share_P) = np.arange(len(images_NE)), eval_set.shares()
    found = index_recall(
        reference.images_ND,
        images_NE,
        texts_ME,
        eval_set.image_P,
        eval_set.text_P,
        eval_set.picture_N,
    )
    of_texts_P = found.by_text_M[np.searchsorted(found.text_M, text_P)]
    for k in CUTOFFS:
        by_text, by_image = (
            ("teacher_index", f"{way}_to_image", str(k)) for way in ("text", "image")
        )
        figures.add_mean(by_text, image_P, of_texts_P < k, share_P)
        figures.add_mean(by_image, image_N, found.by_image_N < k)
    index_NE, captions = reference.images_ND, eval_set.captions()
    shares_M = index_overlap(index_NE, texts_ME[captions], reference.texts_MD[captions])
    own = (eval_set.picture_N, eval_set.picture_N)
    shares_N = index_overlap(index_NE, images_NE, index_NE, own)
    shares_P = shares_M[np.searchsorted(captions, text_P)]
    path = ("teacher_index", "neighbour_overlap")
    figures.add_mean((*path, "text_to_image"), image_P, shares_P, share_P)
    figures.add_mean((*path, "image_to_image"), image_N, shares_N)
    overlap = {"text_to_image": finite_mean(shares_M), "image_to_image": finite_mean(shares_N)}
    return {**found.rates(), "neighbour_overlap": overlap}


def _agreement(
    subject: Embeddings, reference: Embeddings, eval_set: EvalSet, figures: Figures
) -> dict[str, float | None]:
    _, first_of_picture = np.unique(eval_set.picture_N, return_index=True)
    images = np.sort(first_of_picture)
    found = image_agreement(subject.images_ND[images], reference.images_ND[images])
    if found.overlap is not None:
        there = images[found.images_N]
        figures.add_mean(("neighbour_overlap",), there, found.shared_N)
    if found.correlation is not None:
        whole_5 = found.moments_N5.mean(axis=0)
        sums_N6 = np.zeros((len(eval_set.picture_N), 6))
        sums_N6[images[found.images_N]] = np.insert(found.moments_N5, 5, 1, axis=1)

        def correlation_of(sums_R6: Rows) -> Rows:
            # A pair changes with both of its images: to first order by twice the change of one.
            return correlation(2 * sums_R6[:, :5] / sums_R6[:, 5:] - whole_5)

        figures.add(("image_correlation",), sums_N6, correlation_of)
    return {"image_correlation": found.correlation, "neighbour_overlap": found.overlap}
