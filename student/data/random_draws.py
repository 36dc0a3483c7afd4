"""The random choices of a training, each a pure function of (seed, epoch, row).

Views and captions are drawn without replacement over the epochs: a row has a permutation of them, and an
epoch takes the next ones. So no target of the cache is left unused while another is used twice.

Random words come from a counter-based hash: the finaliser of splitmix64 over seed, purpose and row in turn.
So a choice does not depend on the order of rows, the batch, the rank or the rest of the corpus, and no
worker has a state.

Shape letters in this file: N = rows, K = views of an image, V = views drawn, C = captions of all rows.
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


def draw_words(seed: int, rows_N: NDArray[np.int64], purpose: Purpose) -> NDArray[np.uint64]:
    """Return a random 64-bit word for each row of the cache, (N,) uint64."""
    state = _next(np.array([seed], np.uint64), np.array([_PURPOSES[purpose]], np.uint64))
    return _next(state, rows_N.astype(np.uint64))


def draw_captions(
    seed: int, epoch: int, rows_N: NDArray[np.int64], counts_N: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the number of each row's caption in an epoch, below its count; -1 for a count of 0.

    After as many epochs as a row has captions each was drawn once. Then another permutation follows, so that
    a view does not meet the same caption in each round.
    """
    round_N, position_N = np.divmod(epoch, np.maximum(counts_N, 1))
    words_N = _next(draw_words(seed, rows_N, "caption"), round_N.astype(np.uint64))
    start_N = np.cumsum(counts_N) - counts_N
    row_C = np.repeat(np.arange(len(rows_N)), counts_N)
    number_C = np.arange(len(row_C)) - start_N[row_C]
    words_C = _next(words_N[row_C], number_C.astype(np.uint64))
    permuted_C = number_C[np.lexsort((words_C, row_C))]
    has_N = counts_N > 0
    drawn_N = np.full(len(rows_N), -1, np.int64)
    drawn_N[has_N] = permuted_C[(start_N + position_N)[has_N]]
    return drawn_N


def draw_views(
    seed: int, epoch: int, rows_N: NDArray[np.int64], *, num_views: int, num_drawn: int
) -> NDArray[np.int64]:
    """Return the views of each row in an epoch, (N, V), all different, in random order.

    They are at positions (epoch * V + i) mod K, i below V, of the row's permutation of all K views. So after
    any number of epochs the views of a row were drawn equally often, or differ by one.
    """
    words_NK = _next(
        draw_words(seed, rows_N, "view")[:, None], np.arange(num_views, dtype=np.uint64)
    )
    positions_V = (epoch * num_drawn + np.arange(num_drawn)) % num_views
    return np.argsort(words_NK, axis=1, kind="stable")[:, positions_V]


def epoch_generator(seed: int, epoch: int) -> np.random.Generator:
    """Return the generator that orders the rows of an epoch."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64)))


def step_generator(seed: int, step: int, purpose: int) -> np.random.Generator:
    """Return the generator of one step's draws, of another stream for each purpose."""
    # The step is in the highest word: in the lowest, the streams of two steps would overlap.
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=[0, 0, 0, step]))


def step_seed(seed: int, step: int, number: int) -> int:
    """Return a seed for torch's generators in one step, another for each rank or purpose."""
    words = np.random.SeedSequence([seed, step, number]).generate_state(1, np.uint64)
    return int(words[0] >> 1)


def _next(state: NDArray[np.uint64], counter: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the word ``counter`` steps after a state; numpy arrays wrap silently."""
    z = state + (counter + np.uint64(1)) * np.uint64(_GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
