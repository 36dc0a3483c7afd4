"""The random choices of a training, each a pure function of (seed, epoch, row).

Random words come from a counter-based hash: the finaliser of splitmix64 over seed and purpose, epoch and
row in turn. So a choice does not depend on the order of rows, the batch, the rank or the rest of the
corpus, and no worker has a state.

Shape letters in this file: N = rows, K = views of an image, V = views drawn.
Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"; constants of variant 13
of Stafford, as in java.util.SplittableRandom.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

LARGEST_SEED = 2**63 - 1

Purpose = Literal["caption", "view"]

_PURPOSES: dict[Purpose, int] = {"caption": 1, "view": 2}
_GOLDEN = 0x9E3779B97F4A7C15


def draw_words(
    seed: int, epoch: int, rows_N: NDArray[np.int64], purpose: Purpose
) -> NDArray[np.uint64]:
    """Return a random 64-bit word for each row of the cache, (N,) uint64."""
    state = np.array([seed], np.uint64)
    for counter in (_PURPOSES[purpose], epoch):
        state = _next(state, np.array([counter], np.uint64))
    return _next(state, rows_N.astype(np.uint64))


def draw_captions(
    seed: int, epoch: int, rows_N: NDArray[np.int64], counts_N: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the number of each row's caption in an epoch, below its count; -1 for a count of 0."""
    high_N = draw_words(seed, epoch, rows_N, "caption") >> np.uint64(32)
    drawn_N = (high_N * counts_N.astype(np.uint64)) >> np.uint64(32)  # biased by 2**-32 at most
    return np.where(counts_N > 0, drawn_N.astype(np.int64), -1)


def draw_views(
    seed: int, epoch: int, rows_N: NDArray[np.int64], *, num_views: int, num_drawn: int
) -> NDArray[np.int64]:
    """Return the views of each row in an epoch, (N, V), all different, in random order."""
    if num_views == 1:
        return np.zeros((len(rows_N), num_drawn), np.int64)
    words_N1 = draw_words(seed, epoch, rows_N, "view")[:, None]
    words_NK = _next(words_N1, np.arange(num_views, dtype=np.uint64))
    return np.argsort(words_NK, axis=1, kind="stable")[:, :num_drawn]


def epoch_generator(seed: int, epoch: int) -> np.random.Generator:
    """Return the generator that orders the rows of an epoch."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64)))


def _next(state: NDArray[np.uint64], counter: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the word ``counter`` steps after a state; numpy arrays wrap silently."""
    z = state + (counter + np.uint64(1)) * np.uint64(_GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
