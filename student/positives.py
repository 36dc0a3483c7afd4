"""Which drawn captions count as a match in hard terms, and how much."""

import math
from dataclasses import dataclass
from typing import Literal

from ..errors import SettingError


@dataclass(frozen=True, slots=True)
class Positives:
    """How much a drawn caption counts, by the teacher's probability that it matches its image."""

    kind: Literal["all", "weighed", "above"] = "all"
    """all: 1. weighed: the probability. above: 1 where the probability is above the threshold, else 0."""

    above: float = 0.0
    """The threshold, 0 to below 1."""


ALL = Positives()
"""Every drawn caption counts 1."""


def parse_positives(text: str) -> Positives:
    """Return what ``all``, ``weighed`` or ``above=P`` means.

    Raises:
        SettingError: it is none of them, or P is not a number from 0 to below 1.
    """
    if text == "all" or text == "weighed":
        return Positives(text)
    kind, separator, number = text.partition("=")
    if kind != "above" or not separator:
        raise SettingError(f"positives {text!r} is not one of all, weighed, above=P")
    try:
        above = float(number)
    except ValueError:
        above = math.nan
    if not 0 <= above < 1:
        raise SettingError(
            f"positives {text!r} needs a probability from 0 to below 1, such as above=0.1"
        )
    return Positives("above", above)
