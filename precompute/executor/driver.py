"""The driver of a build: gives units to workers, replaces workers that die, stops on signals.

A driver plans, adds the teacher and hands out units; workers (worker.py) make them. An engine connects
the two: in one process (in_process.py), in processes of this machine (local.py) or in actors of a Ray
cluster (ray_cluster.py). The last two differ only in how workers are started and how messages travel:
each implements WorkerPool.
"""

import contextlib
import signal
import threading
from collections.abc import Generator
from typing import Any, Protocol

from ...errors import BuildError
from ...formatting import format_count
from ...store.format.layout import Modality
from .messages import (
    Advanced,
    BuildInterrupted,
    Died,
    Ended,
    Failed,
    FinishedUnit,
    Message,
    Ready,
    Request,
    WorkOrder,
)
from .totals import BuildTotals
from .unit import Job
from .work_queue import WorkQueue

_TICK_S = 0.2
"""Longest delay before a driver notices Ctrl-C."""

_MAX_FAILED_STARTS = 3
"""After so many consecutive deaths of loading workers no more are started. Workers that were loading at
the same time, such as all workers of a lost machine, count once."""


class Engine(Protocol):
    """Makes the units of a build."""

    def run(self, order: WorkOrder, work_queue: WorkQueue, totals: BuildTotals) -> None:
        """Make every unit of the queue.

        Raises:
            BuildInterrupted: Ctrl-C or SIGTERM, after the current batches.
            CacheError: the build cannot continue; finished units are committed.
        """
        ...


class WorkerPool(Protocol):
    """Workers by number. The successor of a worker that died has a new number.

    A worker may be dead before its Died message is received: calls for it then do nothing.
    """

    def start(self, worker: int) -> None:
        """Start a worker; return before it is ready."""
        ...

    def receive(self, timeout_s: float) -> list[tuple[int, Message]]:
        """Wait for *any* worker, and return all messages; the last of each worker is Died."""
        ...

    def assign(self, worker: int, job: Job | None) -> None:
        """Answer a worker's Request; None: there is no unit for it."""
        ...

    def request_stop(self, worker: int) -> None:
        """Let a worker end after its current batch."""
        ...

    def kill(self, worker: int) -> None:
        """End a worker at once."""
        ...

    def close(self) -> None:
        """End all running workers at once."""
        ...


class Driver:
    """Gives the units of a queue to a pool of workers until all are made."""

    def __init__(
        self, pool: WorkerPool, num_workers: int, work_queue: WorkQueue, totals: BuildTotals
    ) -> None:
        self._pool, self._num_workers = pool, num_workers
        self._work_queue, self._totals = work_queue, totals
        self._loading: dict[int, int] = {}
        """Workers that load the teacher, each with the failed starts so far when it was started."""

        self._working: set[int] = set()
        self._ended: set[int] = set()
        """Workers that have sent Ended or Failed and not yet Died."""

        self._requests: dict[int, Modality | None] = {}
        self._num_started = 0
        self._num_failed_starts = 0
        self._is_stopping = False
        self._failure: Exception | None = None

    def run(self) -> None:
        """Start the workers and return when every unit is made.

        Raises:
            BuildInterrupted: Ctrl-C or SIGTERM, after the current batches.
            BuildError: every worker died, or one unit crashed several.
            Exception: the error of the first worker that failed.
        """
        stop = threading.Event()
        with stop_on_signals(stop):
            try:
                for _ in range(self._num_workers):
                    self._start()
                while not self._is_over:
                    if stop.is_set() and not self._is_stopping:
                        self._stop_all()
                    received = self._pool.receive(_TICK_S)
                    for worker, message in received:
                        self._handle(worker, message)
                    if received:
                        self._assign_units()
            finally:
                self._pool.close()
        if self._failure is not None:
            raise self._failure
        if stop.is_set():
            raise BuildInterrupted
        if not self._work_queue.is_done:
            raise BuildError(
                "no worker is left: every worker died, for the reasons in the warnings above; "
                "finished units are kept, run the same command again to resume"
            )

    @property
    def _is_over(self) -> bool:
        """Whether no worker has anything left to do; workers still loading are not needed then."""
        if self._working or self._ended:
            return False
        return not self._loading or self._work_queue.is_done

    def _start(self) -> None:
        worker = self._num_started
        self._num_started += 1
        self._loading[worker] = self._num_failed_starts
        self._pool.start(worker)

    def _stop_all(self) -> None:
        self._is_stopping = True
        for worker in self._loading:
            self._pool.kill(worker)
        for worker in self._working:
            self._pool.request_stop(worker)

    def _handle(self, worker: int, message: Message) -> None:
        match message:
            case Ready():
                self._loading.pop(worker, None)
                self._working.add(worker)
                self._num_failed_starts = 0
                self._loading = dict.fromkeys(self._loading, 0)
                self._totals.add_provenance(message.provenance)
            case Request():
                self._requests[worker] = message.modality
            case Advanced():
                self._totals.add_rows(worker, message)
            case FinishedUnit():
                self._work_queue.finish(worker, (message.modality, message.number))
                self._totals.add_unit(worker, message)
            case Ended():
                self._end(worker)
                self._totals.add_worker(message)
            case Failed():
                self._end(worker)
                self._failure = self._failure or message.error
                self._stop_all()
            case Died():
                self._handle_death(worker, message.reason)

    def _end(self, worker: int) -> None:
        self._loading.pop(worker, None)
        self._working.discard(worker)
        self._ended.add(worker)
        self._work_queue.release(worker)
        self._totals.drop_unfinished(worker)

    def _handle_death(self, worker: int, reason: str) -> None:
        if worker in self._ended:
            self._ended.discard(worker)
            return
        num_before = self._loading.pop(worker, None)
        was_loading = num_before is not None
        self._working.discard(worker)
        self._requests.pop(worker, None)
        self._totals.drop_unfinished(worker)
        if self._is_stopping:
            self._work_queue.release(worker)
            return
        released = self._work_queue.fail(worker, reason)
        if num_before is not None:
            self._num_failed_starts = max(self._num_failed_starts, num_before + 1)
        has_given_up = self._num_failed_starts >= _MAX_FAILED_STARTS
        is_replaced = self._work_queue.num_waiting > 0 and not has_given_up
        units = ", ".join(map(str, released)) or "no unit"
        when = "while loading the teacher" if was_loading else f"while making {units}"
        then = "starting another" if is_replaced else "not replaced"
        self._totals.say(f"warning: worker {worker} died {when} ({reason}); {then}")
        if is_replaced:
            self._start()
        elif was_loading and has_given_up:
            left = format_count(len(self._loading) + len(self._working), "worker")
            self._totals.say(
                f"warning: workers died {_MAX_FAILED_STARTS} times in a row while loading the teacher; "
                f"continuing with {left} (is there enough memory for so many teachers?)"
            )

    def _assign_units(self) -> None:
        """Answer the requests; a request for any modality waits while other workers may still fail."""
        for worker, modality in list(self._requests.items()):
            job = None if self._is_stopping else self._work_queue.take(worker, modality)
            is_over = self._is_stopping or self._work_queue.is_done
            if job is None and modality is None and not is_over:
                continue
            del self._requests[worker]
            self._pool.assign(worker, job)


@contextlib.contextmanager
def stop_on_signals(stop: threading.Event) -> Generator[None]:
    """Set ``stop`` at the first Ctrl-C or SIGTERM; a second one acts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def request(number: int, frame: object) -> None:
        stop.set()
        signal.signal(number, previous[number])

    previous: dict[int, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, request)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
