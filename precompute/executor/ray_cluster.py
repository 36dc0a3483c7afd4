"""The engine of a Ray cluster: each worker is an actor, on any node that has room for it.

Only messages and units go through Ray, not pixels or embeddings: actors read the corpus and write the
cache themselves, so every node must see both under the same paths. The driver waits for *any* actor, never
for one in particular: a call of an actor on a lost node can hang for a minute.
"""

import contextlib
import platform
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ...errors import SettingError
from ...formatting import first_line, format_count
from ...siglip import Checkpoint, resolve_checkpoint
from ..teacher.teacher import Teacher, TeacherFactory
from .driver import Driver
from .messages import Died, Ended, Failed, Message, WorkOrder
from .ray_placement import Placement, connect, import_ray, place_workers
from .remote_worker import Inbox, serve
from .totals import BuildTotals
from .unit import Job
from .work_queue import WorkQueue

_POLL_S = 1.0
"""An actor without messages answers after this time, as a sign of life, and is polled again."""

_SILENCE_S = 120.0
"""An actor that has answered before and is silent for so long is taken for dead. Loading weights can block
its interpreter for a while."""

_START_WARNING_S = 60.0
"""After this time without an answer, warn that workers wait for room in the cluster."""

_DEATHS = {
    "is unavailable": "it cannot be reached: killed, or its node is gone",
    "node was terminated": "its node is gone",
    "node has been marked dead": "its node is gone",
    "node died": "its node is gone",
    "SYSTEM_ERROR": "killed, by a signal or for want of memory",
}
"""Phrases in Ray's errors about dead actors, and what each means."""


class RayEngine:
    """Makes units in actors of a Ray cluster."""

    def __init__(
        self,
        make_teacher: TeacherFactory,
        *,
        address: str | None,
        num_workers: int | None,
        gpus_per_worker: float | None,
        num_units: int,
    ) -> None:
        """Set the cluster (see BuildConfig) and how many units there are to make."""
        self._make_teacher, self._address = make_teacher, address
        self._num_workers, self._gpus_per_worker = num_workers, gpus_per_worker
        self._num_units = num_units

    def run(self, order: WorkOrder, work_queue: WorkQueue, totals: BuildTotals) -> None:
        """See Engine.

        Raises:
            SettingError: Ray is not installed, there is no cluster, or it has no room for one worker.
        """
        ray = import_ray()
        is_ours = not ray.is_initialized()
        if is_ours:
            connect(ray, self._address)
        try:
            placement = place_workers(ray, order, self._num_workers, self._gpus_per_worker)
            # After the threads are fixed: a resumed build must not use more of them for its last units.
            num_workers = min(placement.num_workers, self._num_units)
            placement = replace(placement, num_workers=num_workers)
            totals.say(f"starting {placement}")
            order = replace(order, num_threads=placement.threads)
            pool = _ActorPool(ray, order, self._make_teacher, placement, totals.say)
            Driver(pool, num_workers, work_queue, totals).run()
        finally:
            if is_ours:
                ray.shutdown()


@dataclass(slots=True)
class _ActorState:
    """The driver's view of one actor."""

    actor: Any
    polled_at: float
    answer: Any = None
    """Reference to its next messages; None if it has not been polled."""

    assigned: list[Job | None] = field(default_factory=list["Job | None"])
    """Units to send with the next poll."""

    is_to_stop: bool = False
    has_answered: bool = False


class _ActorPool:
    """A WorkerPool of actors, each polled for its messages."""

    def __init__(
        self,
        ray: Any,
        order: WorkOrder,
        make_teacher: TeacherFactory,
        placement: Placement,
        say: Callable[[str], None],
    ) -> None:
        self._ray, self._say, self._order, self._make_teacher = ray, say, order, make_teacher
        self._actor_class = ray.remote(
            num_cpus=placement.threads,
            num_gpus=placement.gpus,
            max_restarts=0,  # the driver starts successors
            max_task_retries=0,
            scheduling_strategy="SPREAD",
            # Ray's own default differs from version to version.
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(placement.threads)}},
        )(_Actor)
        self._workers: dict[int, _ActorState] = {}
        self._dead: list[tuple[int, Message]] = []
        self._has_warned = False

    def start(self, worker: int) -> None:
        actor = self._actor_class.remote(self._order, self._make_teacher)
        self._workers[worker] = _ActorState(actor, time.monotonic())

    def receive(self, timeout_s: float) -> list[tuple[int, Message]]:
        waiting: dict[Any, int] = {}
        for number, worker in self._workers.items():
            if worker.answer is None:
                worker.answer = worker.actor.poll.remote(worker.assigned, worker.is_to_stop)
                worker.assigned, worker.polled_at = [], time.monotonic()
            waiting[worker.answer] = number
        received, self._dead = self._dead, []
        if waiting:
            self._ray.wait(list(waiting), num_returns=1, timeout=0 if received else timeout_s)
            ready, _ = self._ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
            for answer in ready:
                received += self._read(waiting[answer])
        return received + self._find_silent()

    def assign(self, worker: int, job: Job | None) -> None:
        if worker in self._workers:
            self._workers[worker].assigned.append(job)

    def request_stop(self, worker: int) -> None:
        if worker in self._workers:
            self._workers[worker].is_to_stop = True

    def kill(self, worker: int) -> None:
        if worker in self._workers:
            self._remove(worker, "killed")

    def close(self) -> None:
        for worker in list(self._workers):
            with contextlib.suppress(
                Exception
            ):  # the cluster is gone; the build ends for that reason
                self._remove(worker, "killed")

    def _read(self, number: int) -> list[tuple[int, Message]]:
        """Return the messages of an actor; remove it if it is dead."""
        worker = self._workers[number]
        try:
            messages: list[Message] = self._ray.get(worker.answer, timeout=_POLL_S)
        except self._ray.exceptions.RayError as error:
            self._remove(number, describe_death(error))
            return []
        worker.answer, worker.has_answered = None, True
        if any(isinstance(message, Ended | Failed) for message in messages):
            self._remove(number, "ended")
        return [(number, message) for message in messages]

    def _find_silent(self) -> list[tuple[int, Message]]:
        now = time.monotonic()
        for number, worker in list(self._workers.items()):
            silent_s = now - worker.polled_at
            if worker.has_answered and silent_s > _SILENCE_S:
                self._remove(number, f"silent for {silent_s:.0f} s")
        late = [w for w in self._workers.values() if not w.has_answered]
        if any(now - w.polled_at > _START_WARNING_S for w in late) and not self._has_warned:
            self._has_warned = True
            free = self._ray.available_resources()
            self._say(
                f"warning: {len(late)} of {format_count(len(self._workers), 'worker')} wait for room in the "
                f"Ray cluster, which has {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs "
                "free; the others continue; lower --workers or --threads to need less"
            )
        return []

    def _remove(self, number: int, reason: str) -> None:
        """Kill and forget an actor, even one that only seems dead; never wait for it."""
        worker = self._workers.pop(number)
        self._ray.kill(worker.actor, no_restart=True)
        self._dead.append((number, Died(reason)))


def describe_death(error: Exception) -> str:
    """Return in a few words how an actor died; Ray's own error has many lines."""
    text = str(error)
    for sign, words in _DEATHS.items():
        if sign in text:
            return words
    return first_line(error)


# -- in the actor


class _Actor:
    """A worker in a thread of an actor, so that the actor can answer polls meanwhile."""

    def __init__(self, order: WorkOrder, make_teacher: TeacherFactory) -> None:
        self._outbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._inbox = Inbox(self._outbox.put)
        if not order.cache.is_dir():
            self._outbox.put(Failed(_missing_cache(order)))
            return
        load = partial(_load_on_node, make_teacher)
        arguments = (order, load, self._outbox.put, self._inbox)
        threading.Thread(target=serve, args=arguments, daemon=True).start()

    def poll(self, assigned: list[Job | None], is_to_stop: bool) -> list[Message]:
        """Take units from the driver and return the messages for it; wait up to a second for one."""
        for job in assigned:
            self._inbox.put(job)
        if is_to_stop and not self._inbox.stop.is_set():
            self._inbox.request_stop()
        messages: list[Message] = []
        try:
            messages.append(self._outbox.get(timeout=_POLL_S))
            while True:
                messages.append(self._outbox.get_nowait())
        except queue.Empty:
            return messages


def _missing_cache(order: WorkOrder) -> SettingError:
    return SettingError(
        f"{order.cache} is not on node {platform.node()} of the Ray cluster; the cache and the corpus "
        "must be on a file system that all nodes have under the same path"
    )


def _load_on_node(
    make_teacher: TeacherFactory, checkpoint: Checkpoint, device: str, dtype: str
) -> Teacher:
    """Load a teacher on another machine than the driver's, where the hub's cache is another folder."""
    if checkpoint.revision is not None and not checkpoint.folder.is_dir():
        found = resolve_checkpoint(checkpoint.given, revision=checkpoint.revision)
        checkpoint = replace(checkpoint, folder=found.folder)
    return make_teacher(checkpoint, device, dtype)
