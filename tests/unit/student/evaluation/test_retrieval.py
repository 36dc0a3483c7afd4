"""Ranks worked by hand, and against loops over every query and candidate."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from siglip2_cache.student.evaluation import metrics
from siglip2_cache.student.evaluation.retrieval import (
    NEVER,
    class_embeddings,
    dots,
    hit_rates,
    index_recall,
    macro_mean,
    ranks,
    retrieval,
    with_equal_pictures,
    zero_shot,
)

NAN, INF = np.nan, np.inf


def both_ways(
    scores: Any, pairs: list[tuple[int, int]], pictures: list[int]
) -> tuple[list[int], list[int]]:
    """Ranks of the images among texts, and of the texts among images, from a matrix of scores."""
    scores_NM = np.array(scores, np.float64)
    image_P, text_P = (np.array(side) for side in zip(*pairs, strict=True))
    to_text = ranks(lambda rows: scores_NM[rows], scores_NM.shape, image_P, text_P)
    holder_P, held_P = with_equal_pictures(image_P, text_P, np.array(pictures))
    to_image = ranks(lambda rows: scores_NM.T[rows], scores_NM.T.shape, held_P, holder_P)
    return to_text.tolist(), to_image.tolist()


def test_an_image_of_several_captions_counts_its_best_and_each_caption_is_a_query() -> None:
    scores = [
        # t0   t1   t2   t3      owns t0 t1 / t2 / t3
        [0.9, 0.1, 0.5, 0.2],  # best own .9, nothing else is as high: 0
        [0.8, 0.3, 0.6, 0.7],  # own .6, behind .8 and .7: 2
        [0.4, 0.95, 0.1, 0.5],  # own .5, behind .95: 1
    ]
    # t0: own .9 above .8, .4: 0    t1: own .1 behind .3, .95: 2    t2: .6 above .5, .1: 0
    # t3: own .5 behind .7: 1
    found = both_ways(scores, [(0, 0), (0, 1), (1, 2), (2, 3)], [0, 1, 2])
    assert found == ([0, 2, 1], [0, 2, 0, 1])


def test_ties_count_against() -> None:
    scores = [
        [0.5, 0.5, 0.1],  # own .5, another .5: 1
        [0.2, 0.7, 0.7],  # own .7, another .7: 1
        [0.3, 0.3, 0.9],  # 0
    ]
    # columns: .5 above .2 .3; .7 above .5 .3; .9 above .1 .7: all 0
    assert both_ways(scores, [(0, 0), (1, 1), (2, 2)], [0, 1, 2]) == ([1, 1, 0], [0, 0, 0])
    # A model that says one thing of everything finds nothing first.
    assert both_ways(np.ones((3, 3)), [(0, 0), (1, 1), (2, 2)], [0, 1, 2]) == ([2] * 3, [2] * 3)


def test_scores_that_are_not_finite_never_hit_and_never_rank_before_another() -> None:
    scores = [
        [NAN, 0.1, 0.2],  # own is NaN: never
        [NAN, 0.4, 0.9],  # own .4, behind .9, NaN does not count: 1
        [INF, 0.8, -0.5],  # own -.5, behind .8, infinity does not count: 1
    ]
    # t0: own NaN: never   t1: own .4 behind .8: 1   t2: own -.5 behind .2, .9: 2
    found = both_ways(scores, [(0, 0), (1, 1), (2, 2)], [0, 1, 2])
    assert found == ([NEVER, 1, 1], [NEVER, 1, 2])
    # An infinite own score is not the best of several: the finite one is.
    assert both_ways([[INF, 0.3, 0.5]], [(0, 0), (0, 1)], [0])[0] == [1]
    assert both_ways([[-INF, NAN]], [(0, 0), (0, 1)], [0]) == ([NEVER], [NEVER, NEVER])


def test_a_shared_text_hits_by_any_image_that_holds_it_and_by_copies_of_its_picture() -> None:
    scores = [
        # t0   t1   t2       i0 and i1 hold t0; i2 holds t1; i3, the same picture as i2, holds t2
        [0.6, 0.7, 0.1],  # own .6, behind .7: 1
        [0.9, 0.2, 0.3],  # 0
        [0.1, 0.4, 0.5],  # own .4, behind .5: its copy's text is not its own: 1
        [0.1, 0.4, 0.5],  # 0
    ]
    # t0: best holder .9, i0 is no competitor: 0   t1: .4 by i2 or i3, behind .7: 1
    # t2: .5 by i3 or i2, which do not tie: 0
    pairs = [(0, 0), (1, 0), (2, 1), (3, 2)]
    assert both_ways(scores, pairs, [0, 1, 2, 2]) == ([1, 0, 1, 0], [0, 1, 0])
    # Were i2 and i3 different pictures, each would tie with the other in t1 and t2.
    assert both_ways(scores, pairs, [0, 1, 2, 3]) == ([1, 0, 1, 0], [0, 2, 1])


def test_queries_meet_the_other_models_images_and_a_copy_of_a_picture_is_a_hit() -> None:
    index = np.eye(3, dtype=np.float32)
    images = np.array([[0.9, 0.1, 0], [0, 0.2, 0.8], [0, 0.9, 0.1]])  # images 1 and 2 are swapped
    texts = np.array([[0, 0, 1.0], [0, 1.0, 0], [0.5, 0.6, 0]])  # in no pair: the second
    image_P, text_P = (
        np.array([2, 0]),
        np.array([0, 2]),
    )  # text 0 is right, text 2 nearer to image 1
    found = index_recall(index, images, texts, image_P, text_P, np.arange(3)).rates()
    assert found["text_to_image"] == {"1": 0.5, "5": 1, "10": 1}
    assert found["image_to_image"] == {"1": 1 / 3, "5": 1, "10": 1}
    copies = index_recall(index, images, texts, image_P, text_P, np.array([0, 1, 1])).rates()
    assert copies["image_to_image"]["1"] == 1


def test_a_rank_of_k_is_no_hit_at_k() -> None:
    rank = np.array([0, 1, 4, 5, 9, 10, NEVER])
    assert hit_rates(rank) == {"1": 1 / 7, "5": 3 / 7, "10": 5 / 7}
    assert hit_rates(np.empty(0, np.int64)) is None


def brute_force_rank(own: list[float], others: list[float]) -> int:
    finite = [score for score in own if np.isfinite(score)]
    if not finite:
        return NEVER
    return sum(bool(np.isfinite(score) and score >= max(finite)) for score in others)


@pytest.mark.parametrize("block_rows", [1, 2, 3, 7, 8, 100, None])
def test_blocks_of_any_size_give_the_ranks_that_loops_over_everything_give(
    block_rows: int | None,
) -> None:
    draw = np.random.default_rng(0)
    # Small whole numbers: products are exact, and many are equal.
    images = draw.integers(-2, 3, (8, 3)).astype(np.float32)
    texts = draw.integers(-2, 3, (17, 3)).astype(np.float32)
    images[2], texts[5] = NAN, NAN
    image_P, text_P = draw.integers(0, 8, 20), draw.integers(0, 17, 20)
    scores = [[float(np.dot(x, y)) for y in texts] for x in images]

    expected = []
    for i in range(8):
        owned = {int(t) for n, t in zip(image_P, text_P, strict=True) if n == i}
        own = [scores[i][t] for t in owned]
        expected.append(brute_force_rank(own, [scores[i][t] for t in range(17) if t not in owned]))
    found = ranks(dots(images, texts), (8, 17), image_P, text_P, block_rows=block_rows)
    assert found.tolist() == expected
    assert NEVER in expected
    assert len(set(expected)) > 4


def worked() -> tuple[NDArray[np.float32], NDArray[np.float32], Any, Any, Any]:
    """The case of shared texts and equal pictures, as embeddings: texts are the axes."""
    images = np.array(
        [[0.6, 0.7, 0.1], [0.9, 0.2, 0.3], [0.1, 0.4, 0.5], [0.1, 0.4, 0.5], [0.95, 0, 0]],
        np.float32,
    )
    texts = np.eye(3, dtype=np.float32)
    return images, texts, np.array([0, 1, 2, 3]), np.array([0, 0, 1, 2]), np.array([0, 1, 2, 2, 4])


def test_images_without_a_caption_are_in_the_gallery_of_texts_but_ask_for_none() -> None:
    images, texts, image_P, text_P, picture_N = worked()
    found = retrieval(images, texts, image_P, text_P, picture_N).rates()
    assert found == {
        "images": 5,
        "captioned_images": 4,
        "texts": 3,
        "image_to_text": {"1": 0.5, "5": 1.0, "10": 1.0},
        # t0 is now behind the fifth image, .95; t1 behind .7; t2 first
        "text_to_image": {"1": 1 / 3, "5": 1.0, "10": 1.0},
    }


def test_texts_that_are_no_caption_are_not_in_the_gallery() -> None:
    images, texts, image_P, text_P, picture_N = worked()
    more = np.concatenate(
        [texts, 10 * np.ones((2, 3), np.float32)]
    )  # they would beat every caption
    wanted = retrieval(images, texts, image_P, text_P, picture_N).rates()
    assert retrieval(images, more, image_P, text_P, picture_N).rates() == wanted


def test_a_gallery_without_any_caption_has_no_rates() -> None:
    none = np.empty(0, np.int64)
    found = retrieval(np.eye(2), np.empty((0, 2)), none, none, np.arange(2)).rates()
    assert found["image_to_text"] is None
    assert found["text_to_image"] is None


def test_a_class_is_the_mean_of_its_unit_prompts_of_unit_length_again() -> None:
    # class 0: (1, 0) and (0, 1): mean (.5, .5), of length 1 again (.7071, .7071)
    # class 1: (-1, 0) and one that is missing: (-1, 0)   class 2: none
    prompts = np.array([[1, 0], [-1, 0], [0, 1], [NAN, NAN]], np.float32)
    found = class_embeddings(prompts, np.array([0, 1, 0, 1]), 3)
    np.testing.assert_allclose(found[:2], [[0.5**0.5, 0.5**0.5], [-1, 0]])
    assert np.isnan(found[2]).all()


def test_zero_shot_counts_images_whose_label_has_prompts_and_ties_against() -> None:
    prompts = np.array([[1, 0], [0, 1], [0, 1]], np.float32)  # classes 3, 7 and, equal to it, 8
    images = np.array(
        [
            [1, 0],  # class 3, right
            [0, 1],  # class 7, but 8 ties
            [0.6, 0.8],  # class 3, behind both others: wrong at 1, right at 5
            [1, 0],  # class 5 has no prompt
            [1, 0],  # no label
            [NAN, 1],  # class 3, never right
        ],
        np.float32,
    )
    found = zero_shot(images, np.array([3, 7, 3, 5, -1, 3]), prompts, np.array([3, 7, 8]))
    assert found is not None
    assert found.rates() == {"images": 4, "classes": 3, "accuracy": {"1": 0.25, "5": 0.75}}
    assert zero_shot(images, np.full(6, -1), prompts, np.array([3, 7, 8])) is None
    assert zero_shot(images, np.zeros(6, np.int64), prompts[:0], np.empty(0, np.int64)) is None


def test_the_macro_mean_weighs_languages_alike_and_leaves_out_those_without_numbers() -> None:
    found = macro_mean({"de": {"1": 0.2, "5": 0.4}, "en": {"1": 0.6, "5": 1.0}, "fr": None})
    assert found == pytest.approx({"1": 0.4, "5": 0.7})
    assert macro_mean({"fr": None}) is None


def test_blocks_cover_every_row_once_and_never_hold_more_than_their_bound() -> None:
    found = list(metrics.blocks(10_000, 50_000))
    assert np.concatenate([np.arange(10_000)[rows] for rows in found]).tolist() == [*range(10_000)]
    assert max(rows.stop - rows.start for rows in found) * 50_000 <= 1 << 22
    assert list(metrics.blocks(0, 5)) == []
    assert len(list(metrics.blocks(3, 1 << 30))) == 3  # a row that is a block by itself
