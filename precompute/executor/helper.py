"""Helping other shares: a share that has made its own units makes some of those that are left."""

from collections.abc import Callable

from ...store.format import layout
from ...store.io.storage import Storage
from ..shares import Share
from .unit import Job
from .work_queue import Place

_GOLDEN = 0.618034  # multiples of it, modulo 1, stay apart


class Helper:
    """Finds a share that has made its own units others to make.

    The records say which are missing. Of those a helper takes one that its owner will come to late, and
    helpers spread over these, so that two seldom meet; where they do, or meet the owner, one record wins.
    """

    def __init__(
        self,
        files: Storage,
        teacher: str,
        jobs: list[Job],
        share: Share,
        on_help: Callable[[Job], None],
    ) -> None:
        """Take the jobs of the others, in order.

        Args:
            files: the cache.
            teacher: its name in the cache.
            jobs: units of all other shares that were missing when this one began. What is tried again
                for its rejected rows is left to its owner: without gain it leaves no record.
            share: this one.
            on_help: told of every unit that is taken on.
        """
        self._files, self._teacher, self._share = files, teacher, share
        self._left = [job for job in jobs if job.previous is None]
        self._on_help = on_help
        self._given: set[Place] = set()

    @property
    def num_left(self) -> int:
        """Units that were missing when last looked."""
        return len(self._left)

    def __call__(self, held: set[Place]) -> list[Job]:
        """Return one unit that nobody has committed, or none; see Ledger."""
        committed = set(self._files.names(layout.commits_folder(self._teacher)))
        self._left = [job for job in self._left if self._record(job) not in committed]
        num_before: dict[int, int] = {}
        far: list[tuple[int, Job]] = []
        for job in self._left:
            owner = job.unit.number % self._share.count
            num_before[owner] = num_before.get(owner, -1) + 1
            place = (job.unit.modality, job.unit.number)
            if place not in held | self._given:
                far.append((num_before[owner], job))
        if not far:
            return []
        far.sort(key=lambda each: -each[0])
        num_far = (len(far) + 1) // 2
        # Helpers that see the same begin evenly apart, and each jumps about from there.
        where = self._share.index / self._share.count + len(self._given) * _GOLDEN
        _, job = far[int(where % 1 * num_far)]
        self._given.add((job.unit.modality, job.unit.number))
        self._on_help(job)
        return [job]

    def _record(self, job: Job) -> str:
        unit = job.unit
        path = layout.unit_record(self._teacher, unit.modality, unit.number, job.attempt)
        return path.rpartition("/")[2]
