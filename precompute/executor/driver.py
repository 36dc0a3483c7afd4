"""Engines: who makes the units of a build.

A *driver* plans, enrols the teacher and hands out units; *workers* (workers.py) make them. An engine
brings the two together: in one process (here_engine.py), in processes of this machine
(local_engine.py) or in actors of a Ray cluster (ray_engine.py). What differs between the latter two is
how workers are started, heard and given something: a Crew. How work is dealt out, and what happens when
a worker dies, is the same for all and stands here.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ...errors import BuildError
from ...formatting import format_count
from ...store.format.layout import MODALITIES, Modality
from .progress import Progress
from .unit import Job, StageTimes
from .work_queue import Ledger, describe
from .worker import BuildInterrupted, FinishedUnit, WorkOrder

_TICK_S = 0.2
"""How long a driver may take to notice Ctrl-C."""

_FAILED_STARTS = 3
"""Times in a row that workers die before they are ready; then no more are started. Those that were
loading at one time, such as all of a machine that is lost, count once."""


# -- what a driver hears of a worker


@dataclass(frozen=True, slots=True)
class Ready:
    """The teacher is loaded."""

    provenance: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Wants:
    """The worker asks for a unit; see Take (workers.py)."""

    modality: Modality | None


@dataclass(frozen=True, slots=True)
class Advanced:
    """Rows were embedded or rejected."""

    modality: Modality
    num_rows: int
    num_rejected: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The worker has ended by itself, or as it was asked to."""

    times: StageTimes
    num_decoders: int
    image_batch: int
    text_batch: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker met an error that is not its own: a full disk, a checkpoint that cannot be loaded."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Died:
    """The worker is gone. Nobody sends this; the crew finds out."""

    reason: str


Message = Ready | Wants | Advanced | FinishedUnit | Ended | Failed | Died


class Engine(Protocol):
    """Makes the units of a build."""

    def run(self, order: WorkOrder, ledger: Ledger, account: "Account") -> None:
        """Make every unit of the ledger.

        Raises:
            BuildInterrupted: Ctrl-C or SIGTERM, after the batches at hand.
            CacheError: it cannot be done; units finished before are committed.
        """
        ...


class Crew(Protocol):
    """Workers by number. A worker that died gets a successor with a number of its own.

    A worker may be dead before its Died is heard: whatever it is told then does nothing.
    """

    def start(self, worker: int) -> None:
        """Start a worker; returns before it is ready."""
        ...

    def hear(self, timeout_s: float) -> list[tuple[int, Message]]:
        """Wait for *any* worker, and return what was heard; the last of each worker is Died."""
        ...

    def give(self, worker: int, job: Job | None) -> None:
        """Answer what a worker wanted."""
        ...

    def ask_to_stop(self, worker: int) -> None:
        """Let a worker end after the batch at hand."""
        ...

    def kill(self, worker: int) -> None:
        """End a worker at once."""
        ...

    def close(self) -> None:
        """End what still runs, at once."""
        ...


class Account:
    """What came of a build, counted and shown, whoever made it."""

    def __init__(
        self, progress: Progress, on_provenance: Callable[[Mapping[str, Any]], None]
    ) -> None:
        """Start at nothing; ``on_provenance`` is told what the first worker is."""
        self.say = progress.say
        self.num_units = 0
        """Units this build committed."""

        self.num_rows: dict[Modality, int] = dict.fromkeys(MODALITIES, 0)
        """Rows of those units that were wanted."""

        self.num_rejected: dict[Modality, int] = dict.fromkeys(MODALITIES, 0)
        """Rows of those units that were rejected."""

        self.times = StageTimes()
        """Summed over the workers that ended by themselves."""

        self.num_ended = 0
        """Those workers."""

        self.num_decoders = 0
        """Decoding processes of each."""

        self.image_batch, self.text_batch = 0, 0
        """Smallest that a worker came to."""

        self._progress = progress
        self._on_provenance = on_provenance
        self._provenance: Mapping[str, Any] | None = None
        self._unfinished: dict[tuple[int, Modality], tuple[int, int]] = {}

    def ready(self, provenance: Mapping[str, Any]) -> None:
        """Note what a worker is."""
        if self._provenance is None:
            self._provenance = provenance
            self._on_provenance(provenance)
        elif differences := compare_provenance(self._provenance, provenance):
            self.say(f"warning: workers differ, and so may rounding: {differences}")

    def advanced(self, worker: int, modality: Modality, num_rows: int, num_rejected: int) -> None:
        """Count rows of a worker."""
        rows, rejected = self._unfinished.get((worker, modality), (0, 0))
        self._unfinished[worker, modality] = rows + num_rows, rejected + num_rejected
        self._progress.advance(modality, num_rows, num_rejected)

    def finished(self, worker: int, unit: FinishedUnit) -> None:
        """Count a unit of a worker."""
        rows, rejected = self._unfinished.get((worker, unit.modality), (0, 0))
        rest = rows - unit.num_wanted, rejected - unit.num_rejected
        self._unfinished[worker, unit.modality] = rest
        if unit.is_ours:
            self.num_units += 1
            self.num_rows[unit.modality] += unit.num_wanted
            self.num_rejected[unit.modality] += unit.num_rejected
        self._progress.unit_done(unit.modality)

    def lost(self, worker: int) -> None:
        """Take back the rows of units that a worker did not finish: they are made again."""
        for modality in MODALITIES:
            rows, rejected = self._unfinished.pop((worker, modality), (0, 0))
            if rows or rejected:
                self._progress.advance(modality, -rows, -rejected)

    def ended(self, end: Ended) -> None:
        """Add a worker's times."""
        self.times += end.times
        self.num_ended += 1
        self.num_decoders = end.num_decoders
        self.image_batch = min(self.image_batch or end.image_batch, end.image_batch)
        self.text_batch = min(self.text_batch or end.text_batch, end.text_batch)


def compare_provenance(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return what differs, for people; empty where nothing does."""
    return "; ".join(
        f"{key} was {before.get(key)} and is {value}"
        for key, value in now.items()
        if before.get(key) != value
    )


class Driver:
    """Deals out the units of a ledger to a crew, until all are made."""

    def __init__(self, crew: Crew, num_workers: int, ledger: Ledger, account: Account) -> None:
        self._crew, self._num_workers = crew, num_workers
        self._ledger, self._account = ledger, account
        self._loading: dict[int, int] = {}
        """Those that load the teacher, and the failed starts that were known when each was started."""

        self._working: set[int] = set()
        self._ended: set[int] = set()
        """Workers that have ended and whose process has not been seen to."""

        self._asking: dict[int, Modality | None] = {}
        self._num_started = 0
        self._num_failed_starts = 0
        self._is_stopping = False
        self._failure: Exception | None = None

    def run(self) -> None:
        """Start the workers and return when every unit is made.

        Raises:
            As Engine.run.
        """
        stop = threading.Event()
        with stopping_on_signals(stop):
            try:
                for _ in range(self._num_workers):
                    self._start()
                while not self._is_over:
                    if stop.is_set() and not self._is_stopping:
                        self._ask_to_stop()
                    heard = self._crew.hear(_TICK_S)
                    for worker, message in heard:
                        self._note(worker, message)
                    if heard:
                        self._answer()
            finally:
                self._crew.close()
        if self._failure is not None:
            raise self._failure
        if stop.is_set():
            raise BuildInterrupted
        if not self._ledger.is_done:
            raise BuildError(
                "no worker is left: every one that was started died; the warnings above say how; "
                "finished units are kept, run the same command to go on"
            )

    @property
    def _is_over(self) -> bool:
        """Whether nobody has anything left to say; who is still loading then came too late."""
        if self._working or self._ended:
            return False
        return not self._loading or self._ledger.is_done

    def _start(self) -> None:
        worker = self._num_started
        self._num_started += 1
        self._loading[worker] = self._num_failed_starts
        self._crew.start(worker)

    def _ask_to_stop(self) -> None:
        self._is_stopping = True
        for worker in self._loading:
            self._crew.kill(worker)
        for worker in self._working:
            self._crew.ask_to_stop(worker)

    def _note(self, worker: int, message: Message) -> None:
        match message:
            case Ready():
                self._loading.pop(worker, None)
                self._working.add(worker)
                self._num_failed_starts = 0
                self._loading = dict.fromkeys(self._loading, 0)
                self._account.ready(message.provenance)
            case Wants():
                self._asking[worker] = message.modality
            case Advanced():
                self._account.advanced(
                    worker, message.modality, message.num_rows, message.num_rejected
                )
            case FinishedUnit():
                self._ledger.finished(worker, (message.modality, message.number))
                self._account.finished(worker, message)
            case Ended():
                self._end(worker)
                self._account.ended(message)
            case Failed():
                self._end(worker)
                self._failure = self._failure or message.error
                self._ask_to_stop()
            case Died():
                self._bury(worker, message.reason)

    def _end(self, worker: int) -> None:
        self._loading.pop(worker, None)
        self._working.discard(worker)
        self._ended.add(worker)
        self._ledger.released(worker)
        self._account.lost(worker)

    def _bury(self, worker: int, reason: str) -> None:
        if worker in self._ended:
            self._ended.discard(worker)
            return
        num_before = self._loading.pop(worker, None)
        was_loading = num_before is not None
        self._working.discard(worker)
        self._asking.pop(worker, None)
        self._account.lost(worker)
        if self._is_stopping:
            self._ledger.released(worker)
            return
        released = self._ledger.died(worker, reason)
        if num_before is not None:
            self._num_failed_starts = max(self._num_failed_starts, num_before + 1)
        is_replaced = self._ledger.num_waiting > 0 and self._num_failed_starts < _FAILED_STARTS
        what = ", ".join(map(describe, released)) or "no unit"
        when = "while it loaded the teacher" if was_loading else f"with {what} in work"
        then = "another takes its place" if is_replaced else "it is not replaced"
        self._account.say(f"warning: worker {worker} died {when} ({reason}); {then}")
        if is_replaced:
            self._start()
        elif was_loading and self._num_failed_starts >= _FAILED_STARTS:
            left = format_count(len(self._loading) + len(self._working), "worker")
            self._account.say(
                f"warning: workers died {_FAILED_STARTS} times in a row as they loaded the teacher; going "
                f"on with {left} (is there memory for so many teachers?)"
            )

    def _answer(self) -> None:
        """Give units to those who asked; who would take any waits while others may yet fail."""
        for worker, modality in list(self._asking.items()):
            job = None if self._is_stopping else self._ledger.take(worker, modality)
            is_over = self._is_stopping or self._ledger.is_done
            if job is None and modality is None and not is_over:
                continue
            del self._asking[worker]
            self._crew.give(worker, job)


@contextlib.contextmanager
def stopping_on_signals(stop: threading.Event) -> Generator[None]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop after the batch at hand."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def request(number: int, frame: object) -> None:
        stop.set()
        signal.signal(number, previous[number])  # a second one acts at once

    previous: dict[int, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, request)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
