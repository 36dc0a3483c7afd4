"""What is left to make, who is at it, and what to do about what a worker that died was making.

A unit is handed to one worker at a time. Where two come to make one all the same, for one of them was
thought dead, the commit protocol makes that harmless.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable

from ...errors import BuildError
from ...store.format.layout import MODALITIES, Modality
from .unit import Job

Place = tuple[Modality, int]
"""Modality and number of a unit."""

_FATAL_DEATHS = 3
"""Workers that may die over one unit before the unit is to blame."""


class Ledger:
    """Units to be made, images first. May be asked from several threads."""

    def __init__(
        self, jobs: Iterable[Job], more: Callable[[set[Place]], list[Job]] | None = None
    ) -> None:
        """Take the jobs.

        Args:
            jobs: units of this build.
            more: asked for further jobs when these are handed out, until it has none; is told the
                units that are being made.
        """
        self._lock = threading.Lock()
        self._waiting: dict[Modality, deque[Job]] = {m: deque() for m in MODALITIES}
        self._suspects: deque[Job] = deque()
        self._held: dict[int, dict[Place, Job]] = {}
        self._deaths: Counter[Place] = Counter()
        self._more = more  # None once it has had none
        self._add(jobs)

    @property
    def num_waiting(self) -> int:
        """Units that nobody is making."""
        return len(self._suspects) + sum(map(len, self._waiting.values()))

    @property
    def is_done(self) -> bool:
        """Whether every unit is made, and there are no more."""
        with self._lock:
            is_held = any(self._held.values())
            return self.num_waiting == 0 and not is_held and self._more is None

    def take(self, worker: int, modality: Modality | None) -> Job | None:
        """Hand a unit to a worker: of one modality, or (None) of any; None where there is none now.

        Of the units that a worker held when it died any may have killed it. Each of them is made
        after all others, by a worker that has no other unit, so that the next death is its own.
        """
        with self._lock:
            held = self._held.setdefault(worker, {})
            if any(self._deaths[place] for place in held):
                return None
            job = self._next(modality)
            if job is not None:
                held[_place(job)] = job
            return job

    def finished(self, worker: int, place: Place) -> None:
        """Note that a unit stands in the cache."""
        with self._lock:
            self._held.get(worker, {}).pop(place, None)

    def released(self, worker: int) -> list[Job]:
        """Take back what a worker held that ended without finishing it."""
        with self._lock:
            jobs = list(self._held.pop(worker, {}).values())
            self._add(jobs)
            return jobs

    def died(self, worker: int, reason: str) -> list[Job]:
        """Take back what a worker held when it died.

        Raises:
            BuildError: its unit was the death of others before.
        """
        with self._lock:
            jobs = list(self._held.pop(worker, {}).values())
            for job in jobs:
                self._deaths[_place(job)] += 1
                self._suspects.append(job)
        for job in jobs:
            if self._deaths[_place(job)] >= _FATAL_DEATHS:
                raise BuildError(
                    f"{describe(job)} was the death of {_FATAL_DEATHS} workers, the last {reason}; "
                    "where memory ran out, take fewer --workers or --decode-workers, or a smaller "
                    "--batch-size; finished units are kept"
                )
        return jobs

    def _next(self, modality: Modality | None) -> Job | None:
        wanted = MODALITIES if modality is None else (modality,)
        for each in wanted:
            if self._waiting[each]:
                return self._waiting[each].popleft()
        if modality is not None:
            return None
        if self._suspects:
            return self._suspects.popleft()
        if self._more is not None:
            found = self._more({place for held in self._held.values() for place in held})
            if found:
                self._add(found)
                return self._next(None)
            self._more = None
        return None

    def _add(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            self._waiting[job.unit.modality].append(job)


def describe(job: Job) -> str:
    """Name a unit for people."""
    unit = job.unit
    return f"{unit.modality} unit {unit.number} (rows {unit.rows.first}..{unit.rows.end - 1})"


def _place(job: Job) -> Place:
    return job.unit.modality, job.unit.number
