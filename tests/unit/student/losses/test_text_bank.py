"""The teacher-text bank: what is drawn, and what never is."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from siglip2_cache.student.data.corpus import Corpus, starts_of
from siglip2_cache.student.losses.text_bank import BankDraw, TextBank


class Texts:
    """Targets of which each row says what row it is."""

    def __init__(self, lacking: int = -1) -> None:
        self._lacking = lacking

    def available(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        return rows != self._lacking

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        return np.stack([rows, -rows], axis=1).astype(np.float16)


def corpus_of(texts: list[list[int]], pictures: list[int] | None = None) -> Corpus:
    """A corpus of images with these text rows each."""
    N = len(texts)
    flat = [text for own in texts for text in own]
    return Corpus(
        rows_N=np.arange(N),
        sha256_N=np.zeros((N, 32), np.uint8),
        size_N2=np.zeros((N, 2), np.int32),
        picture_N=np.array(pictures if pictures is not None else range(N)),
        is_val_N=np.zeros(N, np.bool_),
        caption_start=starts_of(np.array([len(own) for own in texts])),
        caption_text_row=np.array(flat, np.int64),
        langs=(None,),
        one_text=np.arange(max(flat, default=0) + 1),
    )


# Images 0 and 4 are the same picture. Texts 3 and 50 are of held-out images, too.
TRAIN = corpus_of([[0, 1], [2, 3], [], [4], [5]], pictures=[0, 1, 2, 3, 0])
HELD_OUT = corpus_of([[3, 50], [51]])
POSITIONS, CAPTION, BATCH_TEXTS = np.array([4, 1, 2, 3]), np.array([0, 1, -1, 2]), [5, 3, 4]


def bank_of(train: Corpus = TRAIN, *, size: int = 100, seed: int = 0) -> TextBank:
    texts: Any = Texts()
    return TextBank(train, HELD_OUT, texts, size=size, seed=seed)


def draw_of(bank: TextBank, step: int = 1) -> BankDraw:
    return bank.draw(step, POSITIONS, CAPTION, np.array(BATCH_TEXTS))


def test_a_text_that_a_held_out_image_has_leaves_the_bank() -> None:
    bank = bank_of()
    assert len(bank) == 5  # 0, 1, 2, 4, 5
    drawn = draw_of(bank)
    assert sorted(drawn.text_rows_K.tolist()) == [0, 1, 2, 4, 5]
    # Image 1 drew text 3, which is not among the columns.
    assert drawn.caption_NC.tolist() == [0, -1, -1, 1]


def test_a_text_of_weight_0_leaves_the_bank() -> None:
    weight_C = np.array([0, 1, 1, 1, 1, 1], float)
    assert len(bank_of(replace(TRAIN, caption_weight=weight_C))) == 4  # 1, 2, 4, 5


def test_a_text_without_a_target_leaves_the_bank() -> None:
    texts: Any = Texts(lacking=4)
    assert len(TextBank(TRAIN, HELD_OUT, texts, size=100, seed=0)) == 4


def test_the_texts_of_the_batch_come_first_and_none_stands_twice() -> None:
    drawn = draw_of(bank_of(size=3))
    assert drawn.text_rows_K[:2].tolist() == [5, 4]
    assert len(set(drawn.text_rows_K.tolist())) == len(drawn.text_rows_K)
    own = [
        BATCH_TEXTS[caption] for caption in CAPTION if caption >= 0 and BATCH_TEXTS[caption] != 3
    ]
    found = drawn.text_rows_K[drawn.caption_NC[drawn.caption_NC >= 0]]
    assert found.tolist() == own


def test_each_column_has_the_target_of_its_text() -> None:
    drawn = draw_of(bank_of())
    np.testing.assert_array_equal(drawn.targets_KE[:, 0], drawn.text_rows_K)


def test_all_captions_of_the_same_picture_are_known_to_match() -> None:
    drawn = draw_of(bank_of())
    known = {(int(i), int(drawn.text_rows_K[k])) for i, k in drawn.matching_2P.T}
    # Row 0 of the batch is image 4, the same picture as image 0, whose captions are 0 and 1.
    assert known == {(0, 0), (0, 1), (0, 5), (1, 2), (3, 4)}


LARGE = corpus_of([[i] for i in range(10_000)])


def drawn_texts(step: int, *, seed: int = 0, size: int = 500) -> NDArray[np.int64]:
    none = np.array([], np.int64)
    return bank_of(LARGE, size=size, seed=seed).draw(step, none, none, none).text_rows_K


def test_a_draw_depends_on_seed_and_step_and_on_nothing_else() -> None:
    np.testing.assert_array_equal(drawn_texts(7), drawn_texts(7))
    bank = bank_of(LARGE, size=500)
    none = np.array([], np.int64)
    for step in (3, 9, 7):
        last = bank.draw(step, none, none, none)
    np.testing.assert_array_equal(last.text_rows_K, drawn_texts(7))
    assert set(drawn_texts(7)) != set(drawn_texts(7, seed=1))


def test_steps_have_no_more_texts_in_common_than_chance_gives() -> None:
    # 500 of 9,997 each: 25 in common by chance, with a deviation of 4.7.
    steps = [drawn_texts(step) for step in range(8)]
    assert all(len(step) == 500 for step in steps)
    common = [len(np.intersect1d(steps[i], steps[j])) for i in range(8) for j in range(i)]
    assert max(common) < 25 + 5 * 4.7
    assert np.mean(common) == pytest.approx(25, abs=4)
    # Nor neighbours of those of the step before: at this density they are 5 away on average.
    away = [np.abs(a[:, None] - b[None]).min(axis=1).mean() for a, b in itertools.pairwise(steps)]
    assert min(away) > 8


def test_a_bank_that_is_smaller_than_asked_for_is_taken_whole() -> None:
    assert len(drawn_texts(1, size=20_000)) == len(LARGE) - 3  # 3, 50, 51 are held out
    assert len(drawn_texts(1, size=0)) == 0
