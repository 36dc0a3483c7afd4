"""The queue of units to make: which worker makes which, and what happens to the units of a dead worker.

A unit is given to one worker at a time. If two make one all the same, because one of them only seemed
dead, the commit protocol lets the first win.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable

from ...errors import BuildError
from ...store.format.layout import MODALITIES, Modality
from .unit import Job, UnitId

_MAX_CRASHES = 3
"""Workers that may die making one unit before the unit is blamed."""


class WorkQueue:
    """Units to make, images first. Thread-safe."""

    def __init__(
        self, jobs: Iterable[Job], more: Callable[[set[UnitId]], list[Job]] | None = None
    ) -> None:
        """Fill the queue.

        Args:
            jobs: units of this build.
            more: called with the units in work whenever the queue is empty, for further units, until it
                returns none.
        """
        self._lock = threading.Lock()
        self._waiting: dict[Modality, deque[Job]] = {m: deque() for m in MODALITIES}
        self._suspects: deque[Job] = deque()
        self._in_work: dict[int, dict[UnitId, Job]] = {}
        self._crashes: Counter[UnitId] = Counter()
        self._more = more  # None once it has returned none
        self._add(jobs)

    @property
    def num_waiting(self) -> int:
        """Units that no worker makes now."""
        return len(self._suspects) + sum(map(len, self._waiting.values()))

    @property
    def is_done(self) -> bool:
        """Whether every unit is made, and there are no more."""
        with self._lock:
            is_busy = any(self._in_work.values())
            return self.num_waiting == 0 and not is_busy and self._more is None

    def take(self, worker: int, modality: Modality | None) -> Job | None:
        """Return a unit for a worker, of one modality or (None) of any; None if there is none now.

        If a worker dies with several units in work, any of them may have crashed it. Each of these is
        made after all others, by a worker that has no other unit, so that the next crash is its own.
        """
        with self._lock:
            in_work = self._in_work.setdefault(worker, {})
            if any(self._crashes[unit] for unit in in_work):
                return None
            job = self._next(modality)
            if job is not None:
                in_work[job.id] = job
            return job

    def finish(self, worker: int, unit: UnitId) -> None:
        """Remove a unit that is committed."""
        with self._lock:
            self._in_work.get(worker, {}).pop(unit, None)

    def release(self, worker: int) -> list[Job]:
        """Put back the units of a worker that ended normally, and return them."""
        with self._lock:
            jobs = list(self._in_work.pop(worker, {}).values())
            self._add(jobs)
            return jobs

    def fail(self, worker: int, reason: str) -> list[Job]:
        """Put back the units of a worker that died, as suspects, and return them.

        Raises:
            BuildError: one of them has crashed several workers.
        """
        with self._lock:
            jobs = list(self._in_work.pop(worker, {}).values())
            for job in jobs:
                self._crashes[job.id] += 1
                self._suspects.append(job)
        for job in jobs:
            if self._crashes[job.id] >= _MAX_CRASHES:
                raise BuildError(
                    f"{job} crashed {_MAX_CRASHES} workers (last: {reason}); if memory ran out, use fewer "
                    "--workers or --decode-workers, or a smaller --batch-size; finished units are kept"
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
            found = self._more({unit for units in self._in_work.values() for unit in units})
            if found:
                self._add(found)
                return self._next(None)
            self._more = None
        return None

    def _add(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            self._waiting[job.unit.modality].append(job)
