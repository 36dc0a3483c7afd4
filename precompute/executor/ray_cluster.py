"""The engine of a Ray cluster: an actor is a worker, on whatever node has room for it.

Actors only talk: messages and units go through Ray, pixels and embeddings do not. They read the corpus
and write the cache themselves, so every node must see both under the same paths. The driver waits for
*any* actor and for none in particular: a call on an actor of a node that has gone can hang for a minute.
"""

import contextlib
import math
import platform
import queue
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from ...errors import SettingError
from ...formatting import first_line, format_count
from ...siglip import Checkpoint, resolve_checkpoint
from ..teacher.teacher import Teacher, TeacherFactory
from .driver import Account, Died, Driver, Ended, Failed, Message
from .remote_worker import Inbox, serve
from .unit import Job
from .work_queue import Ledger
from .worker import WorkOrder

_TALK_S = 1.0
"""An actor that has nothing to say answers after this: a sign of life, and the next question."""

_SILENCE_S = 120.0
"""An actor that answered before and is silent for so long is given up. Loading weights can take the
whole interpreter for a while."""

_START_PATIENCE_S = 60.0
"""After this a user is told that workers wait for room in the cluster."""


_CONNECT_S = 10.0

_DEATHS = {
    "is unavailable": "it cannot be reached: killed, or its node is gone",
    "node was terminated": "its node is gone",
    "node has been marked dead": "its node is gone",
    "node died": "its node is gone",
    "SYSTEM_ERROR": "killed, by a signal or for want of memory",
}
"""What Ray says of the death of an actor, and what that means."""


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
        """Remember the cluster, see BuildConfig, and how many units there are to make."""
        self._make_teacher, self._address = make_teacher, address
        self._num_workers, self._gpus_per_worker = num_workers, gpus_per_worker
        self._num_units = num_units

    def run(self, order: WorkOrder, ledger: Ledger, account: Account) -> None:
        """See Engine.

        Raises:
            SettingError: Ray is not installed, there is no cluster, or it has no room for one worker.
        """
        ray = import_ray()
        is_ours = not ray.is_initialized()
        if is_ours:
            _connect(ray, self._address)
        try:
            room = describe_room(ray, order, self._num_workers, self._gpus_per_worker)
            # After the threads are settled: a resumed build must not take more for its last units.
            room = replace(room, num_workers=min(room.num_workers, self._num_units))
            account.say(f"starting {room}")
            order = replace(order, num_threads=room.threads)
            crew = _Actors(ray, order, self._make_teacher, room, account.say)
            Driver(crew, room.num_workers, ledger, account).run()
        finally:
            if is_ours:
                ray.shutdown()


def import_ray() -> Any:
    """Return the module.

    Raises:
        SettingError: it is not installed.
    """
    try:
        import ray
    except ImportError:
        raise SettingError(
            "engine ray needs Ray, which is not installed: pip install 'siglip2-cache[ray]'"
        ) from None
    return ray


def _connect(ray: Any, address: str | None) -> None:
    try:
        if address is not None and (found := re.fullmatch(r"([^/:]+):([0-9]{1,5})", address)):
            # Ray itself would try for many minutes.
            socket.create_connection((found[1], int(found[2])), _CONNECT_S).close()
        ray.init(address=address, log_to_driver=False, logging_level="warning")
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        raise SettingError(
            f"there is no Ray cluster at {address or 'RAY_ADDRESS'} ({first_line(error)}); start one "
            "with ray start --head, or name another with --address"
        ) from error


@dataclass(frozen=True, slots=True)
class Room:
    """How many workers there are to be, and what each gets."""

    num_workers: int
    threads: int
    gpus: float
    num_nodes: int

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        return (
            f"{format_count(self.num_workers, 'worker')} on a Ray cluster of "
            f"{format_count(self.num_nodes, 'node')}, each with {self.threads} CPU{gpus}"
        )


def describe_room(
    ray: Any, order: WorkOrder, num_workers: int | None, gpus_per_worker: float | None
) -> Room:
    """Return what a cluster has room for, or what was asked.

    Raises:
        SettingError: no node has a CPU, or the GPUs of one worker.
    """
    alive: list[dict[str, float]] = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    num_gpus = sum(node.get("GPU", 0.0) for node in alive)
    if gpus_per_worker is None:
        gpus_per_worker = 1.0 if num_gpus and order.device != "cpu" else 0.0
    # A head is often started without CPUs, so that no work comes to it.
    nodes = [node for node in alive if node.get("CPU", 0.0) >= 1]
    if not nodes:
        raise SettingError(
            f"no node of the Ray cluster has a CPU for workers ({format_count(len(alive), 'node')}); start "
            "one with ray start --address HEAD --num-cpus N"
        )
    nodes = [node for node in nodes if node.get("GPU", 0.0) >= gpus_per_worker]
    if not nodes:
        raise SettingError(
            f"a worker is to have {gpus_per_worker:g} GPU, and no node of the Ray cluster has so many "
            f"({num_gpus:g} in {format_count(len(alive), 'node')}); lower --gpus-per-worker"
        )
    if num_workers is None:
        num_workers = len(nodes)
        if gpus_per_worker:
            num_workers = sum(int(node["GPU"] / gpus_per_worker) for node in nodes)
    share = int(min(node["CPU"] for node in nodes) // math.ceil(num_workers / len(nodes)))
    threads = order.num_threads or max(1, share)
    return Room(num_workers, threads, gpus_per_worker, len(nodes))


@dataclass(slots=True)
class _Remote:
    """One actor, as the driver sees it."""

    actor: Any
    asked_at: float
    answer: Any = None
    """Reference to what it will say next; None where it was not asked."""

    given: list[Job | None] = field(default_factory=list["Job | None"])
    """To be told with the next question."""

    is_to_stop: bool = False
    has_spoken: bool = False


class _Actors:
    """A Crew of actors, each asked again and again what it has to say."""

    def __init__(
        self,
        ray: Any,
        order: WorkOrder,
        make_teacher: TeacherFactory,
        room: Room,
        say: Callable[[str], None],
    ) -> None:
        self._ray, self._say, self._order, self._make_teacher = ray, say, order, make_teacher
        self._actor_class = ray.remote(
            num_cpus=room.threads,
            num_gpus=room.gpus,
            max_restarts=0,  # a successor is the driver's business
            max_task_retries=0,
            scheduling_strategy="SPREAD",
            # Ray would set it by itself, to another number in each version.
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(room.threads)}},
        )(_Actor)
        self._workers: dict[int, _Remote] = {}
        self._dead: list[tuple[int, Message]] = []
        self._is_told = False

    def start(self, worker: int) -> None:
        actor = self._actor_class.remote(self._order, self._make_teacher)
        self._workers[worker] = _Remote(actor, time.monotonic())

    def hear(self, timeout_s: float) -> list[tuple[int, Message]]:
        waiting: dict[Any, int] = {}
        for number, worker in self._workers.items():
            if worker.answer is None:
                worker.answer = worker.actor.talk.remote(worker.given, worker.is_to_stop)
                worker.given, worker.asked_at = [], time.monotonic()
            waiting[worker.answer] = number
        heard, self._dead = self._dead, []
        if waiting:
            self._ray.wait(list(waiting), num_returns=1, timeout=0 if heard else timeout_s)
            ready, _ = self._ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
            for answer in ready:
                heard += self._read(waiting[answer])
        return heard + self._find_silent()

    def give(self, worker: int, job: Job | None) -> None:
        if worker in self._workers:
            self._workers[worker].given.append(job)

    def ask_to_stop(self, worker: int) -> None:
        if worker in self._workers:
            self._workers[worker].is_to_stop = True

    def kill(self, worker: int) -> None:
        if worker in self._workers:
            self._bury(worker, "killed")

    def close(self) -> None:
        for worker in list(self._workers):
            with contextlib.suppress(
                Exception
            ):  # the cluster is gone, and what ends the build is known
                self._bury(worker, "killed")

    def _read(self, number: int) -> list[tuple[int, Message]]:
        """Return what an actor has said, or that it is dead."""
        worker = self._workers[number]
        try:
            messages: list[Message] = self._ray.get(worker.answer, timeout=_TALK_S)
        except self._ray.exceptions.RayError as error:
            self._bury(number, say_death(error))
            return []
        worker.answer, worker.has_spoken = None, True
        if any(isinstance(message, Ended | Failed) for message in messages):
            self._bury(number, "ended")
        return [(number, message) for message in messages]

    def _find_silent(self) -> list[tuple[int, Message]]:
        now = time.monotonic()
        for number, worker in list(self._workers.items()):
            silent_s = now - worker.asked_at
            if worker.has_spoken and silent_s > _SILENCE_S:
                self._bury(number, f"silent for {silent_s:.0f} s")
        late = [w for w in self._workers.values() if not w.has_spoken]
        if any(now - w.asked_at > _START_PATIENCE_S for w in late) and not self._is_told:
            self._is_told = True
            free = self._ray.available_resources()
            self._say(
                f"warning: {len(late)} of {format_count(len(self._workers), 'worker')} wait for room in the "
                f"Ray cluster, which has {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs "
                "free; the others go on; --workers and --threads say how much is wanted"
            )
        return []

    def _bury(self, number: int, reason: str) -> None:
        """Let go of an actor, which must not go on where it is only thought dead; never waits."""
        worker = self._workers.pop(number)
        self._ray.kill(worker.actor, no_restart=True)
        self._dead.append((number, Died(reason)))


def say_death(error: Exception) -> str:
    """Return in a few words how an actor died, of Ray's many lines."""
    text = str(error)
    for sign, words in _DEATHS.items():
        if sign in text:
            return words
    return first_line(error)


# -- in the actor


class _Actor:
    """A worker in a thread of an actor, so that the actor can talk meanwhile."""

    def __init__(self, order: WorkOrder, make_teacher: TeacherFactory) -> None:
        self._outbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._inbox = Inbox(self._outbox.put)
        if not order.cache.is_dir():
            self._outbox.put(Failed(_not_here(order)))
            return
        arguments = (order, _Loading(make_teacher), self._outbox.put, self._inbox)
        threading.Thread(target=serve, args=arguments, daemon=True).start()

    def talk(self, given: list[Job | None], is_to_stop: bool) -> list[Message]:
        """Take what the driver gives, and return what there is to say; waits a second for it."""
        for job in given:
            self._inbox.give(job)
        if is_to_stop and not self._inbox.stop.is_set():
            self._inbox.ask_to_stop()
        messages: list[Message] = []
        try:
            messages.append(self._outbox.get(timeout=_TALK_S))
            while True:
                messages.append(self._outbox.get_nowait())
        except queue.Empty:
            return messages


def _not_here(order: WorkOrder) -> SettingError:
    return SettingError(
        f"{order.cache} is not on node {platform.node()} of the Ray cluster; the cache and the corpus "
        "must lie on a file system that all nodes have under the same path"
    )


class _Loading:
    """Loads a teacher on another machine than the driver's."""

    def __init__(self, make_teacher: TeacherFactory) -> None:
        self._make_teacher = make_teacher

    def __call__(self, checkpoint: Checkpoint, device: str, dtype: str) -> Teacher:
        if checkpoint.revision is not None and not checkpoint.folder.is_dir():
            # The hub's cache lies elsewhere here; a commit is the same everywhere.
            found = resolve_checkpoint(checkpoint.given, revision=checkpoint.revision)
            checkpoint = replace(checkpoint, folder=found.folder)
        return self._make_teacher(checkpoint, device, dtype)
