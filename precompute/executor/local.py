"""The engine with several processes on this machine: one for each GPU, or sharing the cores.

Workers are spawned, never forked: CUDA and torch's threads do not survive a fork.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Generator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from ...images.main_module import hide_main_module
from ...siglip import resolve_device
from ..teacher.teacher import TeacherFactory
from .driver import Driver
from .messages import Died, Message, WorkOrder
from .remote_worker import Inbox, serve
from .totals import BuildTotals
from .unit import Job
from .work_queue import WorkQueue

_STOP = "stop"
_KILL_TIMEOUT_S = 10.0


class LocalEngine:
    """Makes units in processes of this machine."""

    def __init__(self, make_teacher: TeacherFactory, *, num_workers: int) -> None:
        """Set how a worker loads its teacher; the function is pickled."""
        self._make_teacher, self._num_workers = make_teacher, num_workers

    def run(self, order: WorkOrder, work_queue: WorkQueue, totals: BuildTotals) -> None:
        """See Engine."""
        devices = spread_over_gpus(order.device, self._num_workers)
        pool = _ProcessPool([replace(order, device=d) for d in devices], self._make_teacher)
        totals.say(f"starting {self._num_workers} workers on {', '.join(dict.fromkeys(devices))}")
        Driver(pool, self._num_workers, work_queue, totals).run()


def spread_over_gpus(device: str, num_workers: int) -> list[str]:
    """Return each worker's device: the GPUs in turn, unless one device was named.

    Raises:
        SettingError: this machine has no such device.
    """
    device = resolve_device(device)
    if device != "cuda":
        return [device] * num_workers
    import torch

    return [f"cuda:{i % torch.cuda.device_count()}" for i in range(num_workers)]


def own_gpu(device: str, local_rank: int | None) -> str:
    """Return the device of one of several processes that were started alike on this machine.

    Args:
        device: the setting; a named device is returned unchanged.
        local_rank: rank of the process on this machine; None if unknown.
    """
    if local_rank is None or device not in ("auto", "cuda"):
        return device
    import torch

    num_gpus = torch.cuda.device_count()  # 1 where each process was given its own
    return f"cuda:{local_rank % num_gpus}" if num_gpus > 1 else device


@dataclass(slots=True)
class _WorkerProcess:
    """The driver's view of one worker."""

    slot: int
    process: Any
    connection: Connection
    is_open: bool = True
    """Whether more messages can come."""


class _ProcessPool:
    """A WorkerPool of processes, each with a pipe."""

    def __init__(self, orders: list[WorkOrder], make_teacher: TeacherFactory) -> None:
        self._orders, self._make_teacher = orders, make_teacher
        self._context = multiprocessing.get_context("spawn")
        self._free_slots = list(range(len(orders)))
        self._workers: dict[int, _WorkerProcess] = {}

    def start(self, worker: int) -> None:
        slot = self._free_slots.pop(0)
        order = self._orders[slot]
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work,
            args=(theirs, order, self._make_teacher),
            name=f"siglip2-cache-worker-{worker}",
        )
        with hide_main_module(), _signals_blocked(), _threads_in_environment(order.num_threads):
            process.start()
        theirs.close()  # so that a worker's death, and ours, close the pipe
        self._workers[worker] = _WorkerProcess(slot, process, ours)

    def receive(self, timeout_s: float) -> list[tuple[int, Message]]:
        sources: dict[Any, int] = {}
        for number, worker in self._workers.items():
            sources[worker.process.sentinel] = number
            if worker.is_open:
                sources[worker.connection] = number
        found = multiprocessing.connection.wait(list(sources), timeout_s)
        received: list[tuple[int, Message]] = []
        for number in dict.fromkeys(sources[source] for source in found):
            worker = self._workers[number]
            is_dead = worker.process.sentinel in found
            received += [(number, message) for message in _drain(worker)]
            if is_dead:
                worker.process.join()
                worker.connection.close()
                del self._workers[number]
                self._free_slots.append(worker.slot)
                received.append((number, Died(_describe_exit(worker.process.exitcode))))
        return received

    def assign(self, worker: int, job: Job | None) -> None:
        self._send(worker, job)

    def request_stop(self, worker: int) -> None:
        self._send(worker, _STOP)

    def kill(self, worker: int) -> None:
        if worker in self._workers:
            self._workers[worker].process.kill()

    def close(self) -> None:
        for worker in self._workers.values():
            worker.process.kill()
        for worker in self._workers.values():
            worker.process.join(_KILL_TIMEOUT_S)
            worker.connection.close()
        self._workers.clear()

    def _send(self, worker: int, what: Any) -> None:
        if worker in self._workers:
            with contextlib.suppress(OSError):  # it has just died; receive reports that next
                self._workers[worker].connection.send(what)


def _drain(worker: _WorkerProcess) -> list[Message]:
    """Return all messages of a worker, up to the last one before its death."""
    messages: list[Message] = []
    try:
        while worker.is_open and worker.connection.poll():
            messages.append(worker.connection.recv())
    except (EOFError, OSError):  # its end is closed, perhaps in the middle of a message
        worker.is_open = False
    return messages


def _describe_exit(exitcode: int) -> str:
    if exitcode >= 0:
        return f"ended with status {exitcode}"
    return f"killed by {signal.Signals(-exitcode).name}"


@contextlib.contextmanager
def _signals_blocked() -> Generator[None]:
    """Block Ctrl-C and SIGTERM while a process starts, until it can ignore them.

    They are sent to all processes of a terminal or a job, and only the driver ends workers.
    """
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # else starting the process does it, and lifts the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _threads_in_environment(num_threads: int | None) -> Generator[None]:
    """Set the threads of OpenMP while a process starts: it reads them before torch can be called."""
    before = os.environ.get("OMP_NUM_THREADS")
    if num_threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(num_threads)
    try:
        yield
    finally:
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before
        else:
            os.environ.pop("OMP_NUM_THREADS", None)


# -- in the worker


def _work(connection: Connection, order: WorkOrder, make_teacher: TeacherFactory) -> None:
    """Make units until the driver has no more. Runs in a worker process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    lock = threading.Lock()

    def send(message: Message) -> None:
        with lock:
            connection.send(message)

    inbox = Inbox(send)
    threading.Thread(target=_listen, args=(connection, inbox), daemon=True).start()
    serve(order, make_teacher, send, inbox)


def _listen(connection: Connection, inbox: Inbox) -> None:
    """Pass on what the driver sends; end this process at once if the driver dies."""
    try:
        while True:
            received = connection.recv()
            if received == _STOP:
                inbox.request_stop()
            else:
                inbox.put(received)
    except (EOFError, OSError):
        os._exit(1)
