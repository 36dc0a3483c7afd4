"""Work stealing: a rank that has made its own units makes some of those that other ranks have left."""

from collections.abc import Callable

from ...store.format import layout
from ...store.io.storage import Storage
from ..ranks import ProcessRank
from .unit import Job, UnitId

_GOLDEN = 0.618034  # multiples of it, modulo 1, stay far apart


class WorkStealing:
    """Finds units of other ranks that are not committed yet.

    Takes those that their owner reaches last, and ranks spread over these, so that two rarely make the
    same unit; if they do, the first record wins.
    """

    def __init__(
        self,
        files: Storage,
        teacher: str,
        jobs: list[Job],
        rank: ProcessRank,
        on_job: Callable[[Job], None],
    ) -> None:
        """Set the units of other ranks.

        Args:
            files: the cache.
            teacher: its name in the cache.
            jobs: units of all other ranks that were missing at the start, in order. Retries of rejected
                rows are left to their owner: a retry that changes nothing leaves no record.
            rank: this process.
            on_job: called with every unit that is taken.
        """
        self._files, self._teacher, self._rank = files, teacher, rank
        self._missing = [job for job in jobs if job.previous is None]
        self._candidates: list[Job] = []
        self._on_job = on_job
        self._taken: set[UnitId] = set()

    @property
    def num_missing(self) -> int:
        """Units that were missing when the records were last listed."""
        return len(self._missing)

    def __call__(self, in_work: set[UnitId]) -> list[Job]:
        """Return one unit that nobody has committed, or none; see WorkQueue."""
        while self._candidates or self._list_candidates(in_work):
            job = self._pop_candidate()
            self._taken.add(job.id)
            if job.id not in in_work and not self._files.exists(self._record(job)):
                self._on_job(job)
                return [job]
        return []

    def _pop_candidate(self) -> Job:
        """Return a candidate: ranks that see the same records start evenly apart, and jump from there."""
        where = self._rank.rank / self._rank.world_size + len(self._taken) * _GOLDEN
        index = int(where % 1 * len(self._candidates))
        job, last = self._candidates[index], self._candidates.pop()
        if job is not last:
            self._candidates[index] = last
        return job

    def _list_candidates(self, in_work: set[UnitId]) -> bool:
        """List the records once and keep the missing units that their owners reach last, if any."""
        committed = set(self._files.names(layout.commits_folder(self._teacher)))
        self._missing = [
            job for job in self._missing if self._record(job).rpartition("/")[2] not in committed
        ]
        excluded = in_work | self._taken
        num_before: dict[int, int] = {}
        found: list[tuple[int, Job]] = []
        for job in self._missing:
            owner = job.unit.number % self._rank.world_size
            num_before[owner] = num_before.get(owner, -1) + 1
            if job.id not in excluded:
                found.append((num_before[owner], job))
        found.sort(key=lambda each: -each[0])
        self._candidates = [job for _, job in found[: (len(found) + 1) // 2]]
        return bool(self._candidates)

    def _record(self, job: Job) -> str:
        unit = job.unit
        return layout.unit_record(self._teacher, unit.modality, unit.number, job.attempt)
