"""The teacher-text bank: cached texts that images are compared with, besides those of their batch.

Shape letters in this file: K = bank texts of a step, P = matching pairs.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...store.targets.targets import Targets
from ..data.corpus import Corpus, unseen_text_rows
from ..data.random_draws import step_generator


@dataclass(frozen=True, slots=True)
class BankDraw:
    """The columns of the bank term in one step."""

    text_rows_K: NDArray[np.int64]
    caption_NC: NDArray[np.int64]
    """(N, C) columns of each image's drawn captions; -1 for none."""

    matching_2P: NDArray[np.int64]
    """(2, P) (image, column) of pairs that match, ascending."""

    targets_KE: NDArray[np.float16]


class TextBank:
    """Captions of the train split that have a target and are no captions of held-out images."""

    def __init__(
        self, train: Corpus, held_out: Corpus, texts: Targets, *, size: int, seed: int
    ) -> None:
        self._train, self._texts, self._size, self._seed = train, texts, size, seed
        self._held_out = held_out.text_rows
        pool = unseen_text_rows(train, held_out)
        self._pool = pool[texts.available(pool)]

    def __len__(self) -> int:
        return len(self._pool)

    def draw(
        self,
        step: int,
        positions_N: NDArray[np.int64],
        caption_NC: NDArray[np.int64],
        batch_text_rows_M: NDArray[np.int64],
    ) -> BankDraw:
        """Return the batch's own texts and some drawn from the bank: a pure function of (seed, step).

        Args:
            step: the step.
            positions_N: the images, as positions in the train corpus.
            caption_NC: their drawn captions as positions in batch_text_rows_M; -1 for none.
            batch_text_rows_M: different texts of the global batch.
        """
        generator = step_generator(self._seed, step, 0xBA2C)
        count = min(self._size, len(self._pool))
        drawn = self._pool[generator.choice(len(self._pool), count, replace=False, shuffle=False)]
        is_fair_M = np.isin(batch_text_rows_M, self._held_out, invert=True)
        own = batch_text_rows_M[is_fair_M]
        text_rows_K = np.concatenate([own, np.setdiff1d(drawn, own)])
        column_M = np.where(is_fair_M, np.cumsum(is_fair_M) - 1, -1)
        columns_NC = np.full(caption_NC.shape, -1, np.int64)
        has_caption = caption_NC >= 0
        columns_NC[has_caption] = column_M[caption_NC[has_caption]]
        return BankDraw(
            text_rows_K=text_rows_K,
            caption_NC=columns_NC,
            matching_2P=self._train.matching_pairs(positions_N, text_rows_K),
            targets_KE=self._texts.read(text_rows_K),
        )
