"""Problems of a file with many samples: the first of each kind one by one, the others as a count."""

from collections import Counter
from collections.abc import Iterator

from .samples import Problem

_NUM_SHOWN = 3


class ProblemTally:
    """Counts the problems of one file by kind, so that a problem of every sample takes few lines."""

    def __init__(self, place: str) -> None:
        """Count problems of a file; ``place`` names it in the lines with counts."""
        self._place = place
        self._counts: Counter[str] = Counter()

    def add(self, kind: str, problem: Problem) -> Iterator[Problem]:
        """Yield the problem if it is among the first of its kind, and count it.

        Args:
            kind: what all such problems have in common; it follows "97 more: ".
            problem: the problem.
        """
        self._counts[kind] += 1
        if self._counts[kind] <= _NUM_SHOWN:
            yield problem

    def remaining(self) -> Iterator[Problem]:
        """Yield a line for each kind with problems that were not shown."""
        for kind, count in self._counts.items():
            if count > _NUM_SHOWN:
                yield Problem(place=self._place, reason=f"{count - _NUM_SHOWN:,} more: {kind}")
