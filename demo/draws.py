"""Random draws that stay the same on every machine and with every version of Python and numpy.

Of ``random.Random`` only seeding by a text and ``random()`` are promised to stay as they are.
"""

from collections.abc import Sequence
from random import Random
from typing import TypeVar

_Item = TypeVar("_Item")


def pick(items: Sequence[_Item], rng: Random) -> _Item:
    """One of the items, each as likely."""
    return items[int(rng.random() * len(items))]


def shuffled(items: Sequence[_Item], rng: Random) -> list[_Item]:
    """The items in a random order."""
    return [item for _, item in sorted(((rng.random(), i), item) for i, item in enumerate(items))]


def between(low: float, high: float, rng: Random) -> float:
    """A number of [low, high)."""
    return low + (high - low) * rng.random()
