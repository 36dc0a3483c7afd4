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

from typing import Any, Literal

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
    seed: int,
    epoch: int,
    rows_N: NDArray[np.int64],
    counts_N: NDArray[np.int64],
    *,
    num_drawn: int = 1,
    weight_C: NDArray[np.float64] | None = None,
) -> NDArray[np.int64]:
    """Return the numbers of each row's captions in an epoch, (N, D), all different; -1 for none.

    They are at positions (epoch * D + i) mod K, i below D, of a permutation of the row's K captions. After K
    epochs each was drawn D times, and another permutation follows, so that a view does not meet the same
    caption in each round. A row of fewer than D captions has all of them in every epoch.

    Args:
        seed: random seed.
        epoch: the epoch.
        rows_N: rows of the cache.
        counts_N: captions of each.
        num_drawn: D.
        weight_C: weight of each caption, at least 0; None: all equal. A caption of weight 0 is never drawn.
            Where the others differ, each epoch draws anew, without replacement and in proportion to them.
    """
    start_N, row_C = np.cumsum(counts_N) - counts_N, np.repeat(np.arange(len(rows_N)), counts_N)
    number_C = np.arange(len(row_C)) - start_N[row_C]
    usable_N, is_weighed_N = counts_N, np.zeros(len(rows_N), np.bool_)
    if weight_C is not None:
        usable_N = np.bincount(row_C[weight_C > 0], minlength=len(rows_N))
        largest_N = np.zeros(len(rows_N))
        np.maximum.at(largest_N, row_C, weight_C)
        is_weighed_N[row_C[(weight_C > 0) & (weight_C < largest_N[row_C])]] = True
    round_N, at_N = np.divmod(epoch, np.maximum(usable_N, 1))
    round_N, at_N = np.where(is_weighed_N, epoch, round_N), np.where(is_weighed_N, 0, at_N)
    words_N = _next(draw_words(seed, rows_N, "caption"), round_N.astype(np.uint64))
    words_C = _next(words_N[row_C], number_C.astype(np.uint64))
    keys: list[NDArray[Any]] = [words_C, row_C]
    if weight_C is not None:
        keys.insert(1, _order_by_weight(words_C, weight_C, is_weighed_N[row_C]))
    permuted_C = number_C[np.lexsort(keys)]
    num_own_N1 = np.minimum(num_drawn, usable_N)[:, None]
    i_D = np.arange(num_drawn)
    position_ND = (at_N[:, None] * num_own_N1 + i_D) % np.maximum(usable_N, 1)[:, None]
    has_ND = i_D < num_own_N1
    drawn_ND = np.full(has_ND.shape, -1, np.int64)
    drawn_ND[has_ND] = permuted_C[(start_N[:, None] + position_ND)[has_ND]]
    return drawn_ND


def _order_by_weight(
    words_C: NDArray[np.uint64], weight_C: NDArray[np.float64], is_weighed_C: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return what captions are ordered by first: infinity for a weight of 0, and 0 in rows of equal weights.

    Elsewhere an exponential variable of rate weight: the first in that order is each with a probability in
    proportion to its weight. Source: Efraimidis, Spirakis 2006, Weighted random sampling with a reservoir.
    """
    uniform_C = ((words_C >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    order_C = np.full(len(words_C), np.inf)
    np.divide(-np.log(uniform_C), weight_C, out=order_C, where=weight_C > 0)
    return np.where(is_weighed_C | (weight_C == 0), order_C, 0.0)


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
