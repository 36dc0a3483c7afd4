"""Where a student fails: queries that the teacher gets right at rank 1 and the student does not.

Shape letters in this file: Q = queries, K = candidates, M = captions, T = texts.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..neighbors.items import image_items, text_items
from ..neighbors.report import Group, Item
from ..store.cache import Cache
from ..student.evaluation.compare import Embedded
from ..student.evaluation.embeddings import Embeddings, has_texts
from ..student.evaluation.retrieval import NEVER, Retrieval, retrieval
from .section import Section, Table

Ints = NDArray[np.int64]


def failures_section(embedded: Embedded, cache: Cache, *, examples: int) -> Section | None:
    """Return the part about the student's misses; None without captions of both models."""
    eval_set = embedded.eval_set
    if not len(eval_set.text_P) or not has_texts(embedded.model.texts_MD[eval_set.text_P]):
        return None

    def ranks(subject: Embeddings) -> Retrieval:
        return retrieval(
            subject.images_ND,
            subject.texts_MD,
            eval_set.image_P,
            eval_set.text_P,
            eval_set.picture_N,
        )

    teacher, student = ranks(embedded.teacher), ranks(embedded.model)
    outcomes = {
        "text_to_image": _outcomes(teacher.to_image_M, student.to_image_M),
        "image_to_text": _outcomes(teacher.to_text_Q, student.to_text_Q),
    }
    groups = [
        *_texts(embedded, cache, teacher, student, examples),
        *_images(embedded, cache, teacher, student, examples),
    ]
    words = {"text_to_image": "text to image", "image_to_text": "image to text"}
    return Section(
        name="outcomes",
        title="Where it fails",
        tables=[
            Table(
                heading="Queries by whether the first result is right",
                rows=[
                    ["", "both", "teacher alone", "student alone", "neither"],
                    *(
                        [words[way], *(f"{number:,}" for number in found.values())]
                        for way, found in outcomes.items()
                    ),
                ],
            )
        ],
        groups=groups,
        groups_note="Queries that the teacher gets right and the student does not, the worst rank of the "
        "student first: what is right, and what the student finds first.",
        notes=[] if groups else ["no query is right by the teacher alone"],
        values=outcomes,
    )


def _outcomes(teacher_Q: Ints, student_Q: Ints) -> dict[str, int]:
    """Return how many queries each model has right at rank 1."""
    by_teacher, by_student = teacher_Q == 0, student_Q == 0
    return {
        "both": int((by_teacher & by_student).sum()),
        "teacher_alone": int((by_teacher & ~by_student).sum()),
        "student_alone": int((~by_teacher & by_student).sum()),
        "neither": int((~by_teacher & ~by_student).sum()),
    }


def _missed(teacher_Q: Ints, student_Q: Ints, image_Q: Ints, most: int) -> list[int]:
    """Return the queries to show, the worst rank of the student first, one query of an image."""
    missed = np.flatnonzero((teacher_Q == 0) & (student_Q > 0) & (student_Q < NEVER))
    missed = missed[np.argsort(-student_Q[missed], kind="stable")]
    _, first_N = np.unique(image_Q[missed], return_index=True)
    return missed[np.sort(first_N)[:most]].tolist()


def _texts(
    embedded: Embedded, cache: Cache, teacher: Retrieval, student: Retrieval, most: int
) -> list[Group]:
    """Return rows of a caption, its image, and the image that the student finds first."""
    eval_set, model = embedded.eval_set, embedded.model
    image_T = np.zeros(int(eval_set.text_P.max()) + 1, np.int64)
    image_T[eval_set.text_P] = eval_set.image_P  # an image of each text
    chosen = _missed(teacher.to_image_M, student.to_image_M, image_T[student.text_M], most)
    texts = student.text_M[chosen]
    own = [eval_set.image_P[eval_set.text_P == text] for text in texts]
    cosine_QK = model.texts_MD[texts] @ model.images_ND.T
    return _groups(
        [int(rank) for rank in student.to_image_M[chosen]],
        text_items(cache, eval_set.text_rows_M[texts].tolist()),
        eval_set.text_rows_M[texts],
        cosine_QK,
        own,
        eval_set.rows_N,
        lambda rows: image_items(cache, rows),
    )


def _images(
    embedded: Embedded, cache: Cache, teacher: Retrieval, student: Retrieval, most: int
) -> list[Group]:
    """Return rows of an image, its nearest caption, and the caption that the student finds first."""
    eval_set, model = embedded.eval_set, embedded.model
    captions = eval_set.captions()
    chosen = _missed(teacher.to_text_Q, student.to_text_Q, student.image_Q, most)
    images = student.image_Q[chosen]
    own = [
        np.searchsorted(captions, eval_set.text_P[eval_set.image_P == image]) for image in images
    ]
    cosine_QK = model.images_ND[images] @ model.texts_MD[captions].T
    return _groups(
        [int(rank) for rank in student.to_text_Q[chosen]],
        image_items(cache, eval_set.rows_N[images].tolist()),
        eval_set.rows_N[images],
        cosine_QK,
        own,
        eval_set.text_rows_M[captions],
        lambda rows: text_items(cache, rows),
    )


def _groups(
    ranks: list[int],
    queries: dict[int, Item],
    query_Q: Ints,
    cosine_QK: NDArray[np.float32],
    own_Q: list[Any],
    row_K: Ints,
    items_of: Callable[[list[int]], dict[int, Item]],
) -> list[Group]:
    if not ranks:
        return []
    cosine_QK = np.nan_to_num(cosine_QK, nan=-np.inf)
    first_Q = cosine_QK.argmax(axis=1)
    right_Q = np.array([own[cosine_QK[i, own].argmax()] for i, own in enumerate(own_Q)])
    items = items_of(row_K[np.concatenate([first_Q, right_Q])].tolist())

    def item(i: int, k: int, remark: str) -> Item:
        found = items[int(row_K[k])]
        return replace(found, cosine=float(cosine_QK[i, k]), remarks=(remark, *found.remarks))

    return [
        Group(
            query=queries[int(query_Q[i])],
            items=(
                item(i, int(right_Q[i]), f"right, rank {rank + 1:,}"),
                item(i, int(first_Q[i]), "found first"),
            ),
        )
        for i, rank in enumerate(ranks)
    ]
