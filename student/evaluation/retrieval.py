"""Retrieval and zero-shot classification. Plain numpy.

All functions work on blocks of queries, so a matrix of all images by all texts is never held. A score that
is not finite (NaN where an embedding is missing) is a miss and never ranks before another.

Shape letters in this file:
    N = images, M = texts, D = embedding width, C = classes, P = pairs (of an image with its caption)
    or prompts, Q = queries, B = queries of a block.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .metrics import Ints, Rows, blocks

NEVER = int(np.iinfo(np.int64).max)
"""Rank of a query without a finite score for any of its own candidates."""

CUTOFFS = (1, 5, 10)
"""The k of R@k."""

TOPS = (1, 5)
"""The k of the accuracy among the first k classes."""


def ranks(
    scores_of: Callable[[slice], Rows],
    shape: tuple[int, int],
    query_P: Ints,
    candidate_P: Ints,
    *,
    block_rows: int | None = None,
) -> Ints:
    """Return each query's rank: the number of other candidates that score at least its best own one.

    Rank 0 is a hit at 1. Ties count against the query; its further own candidates do not count. Scores
    that are not finite are ignored.

    Args:
        scores_of: (B, candidates) scores of a slice of queries; larger is nearer.
        shape: (queries, candidates).
        query_P: the query of each own pair, in any order.
        candidate_P: the candidate of each own pair.
        block_rows: queries scored at a time; None: one block.

    Returns:
        (queries,) int64; NEVER for a query without an own candidate of finite score.
    """
    num_queries, num_candidates = shape
    order_P = np.argsort(query_P, kind="stable")
    query_P, candidate_P = query_P[order_P], candidate_P[order_P]
    found = np.full(num_queries, NEVER, np.int64)
    for rows in blocks(num_queries, num_candidates, block_rows):
        first, last = np.searchsorted(query_P, (rows.start, rows.stop))
        own_P = query_P[first:last] - rows.start
        found[rows] = _ranks_of_block(scores_of(rows), own_P, candidate_P[first:last])
    return found


def dots(queries_ND: Rows, candidates_MD: Rows) -> Callable[[slice], Rows]:
    """Return the dot products of a slice of queries with all candidates, for ranks."""

    def scores_of(rows: slice) -> Rows:
        with np.errstate(invalid="ignore", over="ignore"):
            return queries_ND[rows] @ candidates_MD.T

    return scores_of


def hit_rates(rank_N: Ints, cutoffs: tuple[int, ...] = CUTOFFS) -> dict[str, float] | None:
    """Return the share of queries with a hit among the first k, by k; None without queries."""
    if len(rank_N) == 0:
        return None
    return {str(k): float(np.mean(rank_N < k)) for k in cutoffs}


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """The ranks of retrieval both ways."""

    num_images: int
    image_Q: Ints
    """(Q,) the image of each query of image to text: those with a caption."""

    to_text_Q: Ints
    """(Q,) their ranks."""

    text_M: Ints
    """(M,) the text of each query of text to image: the captions."""

    to_image_M: Ints
    """(M,) their ranks."""

    def rates(self) -> dict[str, Any]:
        """Return R@1, 5 and 10 both ways, and the sizes of the galleries, as JSON values."""
        return {
            "images": self.num_images,
            "captioned_images": len(self.image_Q),
            "texts": len(self.text_M),
            "image_to_text": hit_rates(self.to_text_Q),
            "text_to_image": hit_rates(self.to_image_M),
        }


def retrieval(
    images_ND: Rows, texts_MD: Rows, image_P: Ints, text_P: Ints, picture_N: Ints
) -> Retrieval:
    """Return the ranks of retrieval both ways.

    Image to text: the queries are the images with a caption, the gallery is every caption; a hit is any
    own caption of the image. Text to image: the queries are those captions, each once, the gallery is
    *all* images, captioned or not; a hit is any image with the caption, or the same picture as one. (On
    COCO, where every image has captions, this is the protocol of the retrieval papers.)

    Args:
        images_ND: unit rows.
        texts_MD: unit rows; texts in no pair are left out.
        image_P: the image of each pair of an image with its caption.
        text_P: the text of each pair.
        picture_N: equal numbers for equal pictures.
    """
    captioned, own_image_P = np.unique(image_P, return_inverse=True)
    captions, own_text_P = np.unique(text_P, return_inverse=True)
    gallery_MD = texts_MD[captions]
    to_text = ranks(
        dots(images_ND[captioned], gallery_MD),
        (len(captioned), len(captions)),
        own_image_P.astype(np.int64),
        own_text_P.astype(np.int64),
    )
    own_P = own_text_P.astype(np.int64)
    return Retrieval(
        num_images=len(images_ND),
        image_Q=captioned,
        to_text_Q=to_text,
        text_M=captions,
        to_image_M=_ranks_of_images(gallery_MD, images_ND, image_P, own_P, picture_N),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRecall:
    """The ranks of one model's queries among another model's images."""

    text_M: Ints
    """(M,) the text of each query of text to image: the captions."""

    by_text_M: Ints
    """(M,) their ranks."""

    by_image_N: Ints
    """(N,) the ranks of the images."""

    def rates(self) -> dict[str, Any]:
        """Return R@1, 5 and 10 of texts and images, as JSON values."""
        return {
            "text_to_image": hit_rates(self.by_text_M),
            "image_to_image": hit_rates(self.by_image_N),
        }


def index_recall(
    index_NE: Rows,
    images_NE: Rows,
    texts_ME: Rows,
    image_P: Ints,
    text_P: Ints,
    picture_N: Ints,
) -> IndexRecall:
    """Return the ranks of one model's queries among another model's images, in one space.

    This is what an index is worth whose images are not embedded again. Text to image as in retrieval. Image
    to image: the queries are all images; a hit is the image itself in the index, or the same picture.

    Args:
        index_NE: unit rows of the other model.
        images_NE: unit rows of the queries.
        texts_ME: unit rows of the queries; texts in no pair are left out.
        image_P: the image of each pair of an image with its caption.
        text_P: the text of each pair.
        picture_N: equal numbers for equal pictures.
    """
    captions, own_text_P = np.unique(text_P, return_inverse=True)
    own_P, every_N = own_text_P.astype(np.int64), np.arange(len(index_NE))
    return IndexRecall(
        text_M=captions,
        by_text_M=_ranks_of_images(texts_ME[captions], index_NE, image_P, own_P, picture_N),
        by_image_N=_ranks_of_images(images_NE, index_NE, every_N, every_N, picture_N),
    )


def _ranks_of_images(
    queries_QD: Rows, images_ND: Rows, image_P: Ints, query_P: Ints, picture_N: Ints
) -> Ints:
    """Return the rank of each query's own images, or of the same pictures, among all images."""
    holder_P, held_P = with_equal_pictures(image_P, query_P, picture_N)
    shape = (len(queries_QD), len(images_ND))
    return ranks(dots(queries_QD, images_ND), shape, held_P, holder_P)


def with_equal_pictures(image_P: Ints, text_P: Ints, picture_N: Ints) -> tuple[Ints, Ints]:
    """Return the pairs, each once, and the pairs of other images of the same picture."""
    by_picture_N = np.argsort(picture_N, kind="stable")
    sorted_N = picture_N[by_picture_N]
    pairs = np.unique(np.stack([picture_N[image_P], text_P], axis=1), axis=0)
    first, last = (np.searchsorted(sorted_N, pairs[:, 0], side) for side in ("left", "right"))
    count = last - first
    # The images of a picture are adjacent in by_picture_N: count up from the first of each pair.
    offset = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return by_picture_N[np.repeat(first, count) + offset], np.repeat(pairs[:, 1], count)


def class_embeddings(prompts_PD: Rows, class_P: Ints, num_classes: int) -> Rows:
    """Return (C, D) float64: the mean of each class's unit prompt rows, normalised again.

    Prompts that are not finite are left out; a class without prompts is NaN.

    Source: the prompt ensembling of CLIP, arXiv:2103.00020, section 3.1.4.
    """
    is_there = np.isfinite(prompts_PD).all(axis=1)
    sums_CD = np.zeros((num_classes, prompts_PD.shape[1]))
    np.add.at(sums_CD, class_P[is_there], prompts_PD[is_there].astype(np.float64))
    with np.errstate(invalid="ignore"):
        return sums_CD / np.linalg.norm(sums_CD, axis=1, keepdims=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroShot:
    """The ranks of zero-shot classification."""

    num_classes: int
    image_Q: Ints
    """(Q,) the images whose class has prompts."""

    rank_Q: Ints
    """(Q,) the rank of each one's class."""

    def rates(self) -> dict[str, Any]:
        """Return the accuracy at 1 and 5 and the sizes, as JSON values."""
        rates = hit_rates(self.rank_Q, TOPS)
        return {"images": len(self.image_Q), "classes": self.num_classes, "accuracy": rates}


def zero_shot(images_ND: Rows, label_N: Ints, prompts_PD: Rows, class_P: Ints) -> ZeroShot | None:
    """Return the ranks of the classes of the images whose class has prompts; ties count against.

    Args:
        images_ND: unit rows.
        label_N: class of each image; negative without one.
        prompts_PD: unit rows.
        class_P: class of each prompt.

    Returns:
        None if no image has a class with prompts.
    """
    classes, class_P = np.unique(class_P, return_inverse=True)
    labelled = np.flatnonzero(np.isin(label_N, classes))
    if len(labelled) == 0:
        return None
    own_N = np.searchsorted(classes, label_N[labelled]).astype(np.int64)
    classes_CD = class_embeddings(prompts_PD, class_P.astype(np.int64), len(classes))
    rank_N = ranks(
        dots(images_ND[labelled], classes_CD),
        (len(labelled), len(classes)),
        np.arange(len(labelled)),
        own_N,
    )
    return ZeroShot(num_classes=len(classes), image_Q=labelled, rank_Q=rank_N)


def macro_mean(found: Mapping[str, Mapping[str, float] | None]) -> dict[str, float] | None:
    """Return the mean over languages of numbers by name; None if no language has them."""
    there = [numbers for numbers in found.values() if numbers is not None]
    if not there:
        return None
    return {name: float(np.mean([numbers[name] for numbers in there])) for name in there[0]}


def _ranks_of_block(scores_BM: Rows, query_P: Ints, candidate_P: Ints) -> Ints:
    scores_BM = np.where(np.isfinite(scores_BM), scores_BM, -np.inf)
    best_B = np.full(len(scores_BM), -np.inf, scores_BM.dtype)
    np.maximum.at(best_B, query_P, scores_BM[query_P, candidate_P])
    scores_BM[query_P, candidate_P] = -np.inf  # own candidates do not count
    rank_B = np.sum(scores_BM >= best_B[:, None], axis=1)
    return np.where(np.isfinite(best_B), rank_B, NEVER)
