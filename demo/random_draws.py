"""Random draws that are equal on every machine and with every version of Python and numpy.

Python guarantees that for ``random.Random`` only with a string as seed and for ``random()``.
"""

from collections.abc import Sequence
from random import Random
from typing import TypeVar

_Item = TypeVar("_Item")


def pick(items: Sequence[_Item], rng: Random) -> _Item:
    """Return one of the items, all equally likely."""
    return items[int(rng.random() * len(items))]


def shuffled(items: Sequence[_Item], rng: Random) -> list[_Item]:
    """Return the items in random order."""
    return [item for _, item in sorted(((rng.random(), i), item) for i, item in enumerate(items))]


def between(low: float, high: float, rng: Random) -> float:
    """Return a number in [low, high)."""
    return low + (high - low) * rng.random()
