"""The engine of several processes on this machine: one for each GPU, or sharing the cores.

Workers are spawned, never forked: CUDA and the threads of torch do not survive a fork.
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
from .driver import Account, Died, Driver, Message
from .remote_worker import Inbox, serve
from .unit import Job
from .work_queue import Ledger
from .worker import WorkOrder

_STOP = "stop"
_KILL_PATIENCE_S = 10.0


class LocalEngine:
    """Makes units in processes of this machine."""

    def __init__(self, make_teacher: TeacherFactory, *, num_workers: int) -> None:
        """Remember how a worker loads its teacher; the function is pickled."""
        self._make_teacher, self._num_workers = make_teacher, num_workers

    def run(self, order: WorkOrder, ledger: Ledger, account: Account) -> None:
        """See Engine."""
        devices = spread_over_gpus(order.device, self._num_workers)
        crew = _Processes([replace(order, device=d) for d in devices], self._make_teacher)
        account.say(f"starting {self._num_workers} workers on {', '.join(dict.fromkeys(devices))}")
        Driver(crew, self._num_workers, ledger, account).run()


def spread_over_gpus(device: str, num_workers: int) -> list[str]:
    """Return each worker's device: the GPUs by turns, unless one device was named.

    Raises:
        SettingError: there is no such device here.
    """
    device = resolve_device(device)
    if device != "cuda":
        return [device] * num_workers
    import torch

    return [f"cuda:{i % torch.cuda.device_count()}" for i in range(num_workers)]


def own_gpu(device: str, local_index: int | None) -> str:
    """Return the device of one of several processes that were started alike on this machine.

    Args:
        device: what was asked for; one that is named is taken as it is.
        local_index: number of the process on this machine; None where nobody said.
    """
    if local_index is None or device not in ("auto", "cuda"):
        return device
    import torch

    num_gpus = torch.cuda.device_count()  # 1 where each process was given its own
    return f"cuda:{local_index % num_gpus}" if num_gpus > 1 else device


@dataclass(slots=True)
class _Process:
    """One worker, as the driver sees it."""

    slot: int
    process: Any
    connection: Connection
    is_open: bool = True
    """Whether more can be heard of it."""


class _Processes:
    """A Crew of processes, each with a pipe."""

    def __init__(self, orders: list[WorkOrder], make_teacher: TeacherFactory) -> None:
        self._orders, self._make_teacher = orders, make_teacher
        self._context = multiprocessing.get_context("spawn")
        self._free_slots = list(range(len(orders)))
        self._workers: dict[int, _Process] = {}

    def start(self, worker: int) -> None:
        slot = self._free_slots.pop(0)
        order = self._orders[slot]
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work,
            args=(theirs, order, self._make_teacher),
            name=f"siglip2-cache-worker-{worker}",
        )
        with hide_main_module(), _signals_held(), _threads_in_environment(order.num_threads):
            process.start()
        theirs.close()  # so that a worker's death, and ours, close the pipe
        self._workers[worker] = _Process(slot, process, ours)

    def hear(self, timeout_s: float) -> list[tuple[int, Message]]:
        sources: dict[Any, int] = {}
        for number, worker in self._workers.items():
            sources[worker.process.sentinel] = number
            if worker.is_open:
                sources[worker.connection] = number
        found = multiprocessing.connection.wait(list(sources), timeout_s)
        heard: list[tuple[int, Message]] = []
        for number in dict.fromkeys(sources[source] for source in found):
            worker = self._workers[number]
            is_dead = worker.process.sentinel in found
            heard += [(number, message) for message in _drain(worker)]
            if is_dead:
                worker.process.join()
                worker.connection.close()
                del self._workers[number]
                self._free_slots.append(worker.slot)
                heard.append((number, Died(_say_exit(worker.process.exitcode))))
        return heard

    def give(self, worker: int, job: Job | None) -> None:
        self._send(worker, job)

    def ask_to_stop(self, worker: int) -> None:
        self._send(worker, _STOP)

    def kill(self, worker: int) -> None:
        if worker in self._workers:
            self._workers[worker].process.kill()

    def close(self) -> None:
        for worker in self._workers.values():
            worker.process.kill()
        for worker in self._workers.values():
            worker.process.join(_KILL_PATIENCE_S)
            worker.connection.close()
        self._workers.clear()

    def _send(self, worker: int, what: Any) -> None:
        if worker in self._workers:
            with contextlib.suppress(OSError):  # it has just died, which is heard next
                self._workers[worker].connection.send(what)


def _drain(worker: _Process) -> list[Message]:
    """Return what a worker has sent, down to the last message before its death."""
    messages: list[Message] = []
    try:
        while worker.is_open and worker.connection.poll():
            messages.append(worker.connection.recv())
    except (EOFError, OSError):  # its end is closed, perhaps within a message
        worker.is_open = False
    return messages


def _say_exit(exitcode: int) -> str:
    if exitcode >= 0:
        return f"ended with status {exitcode}"
    return f"killed by {signal.Signals(-exitcode).name}"


@contextlib.contextmanager
def _signals_held() -> Generator[None]:
    """Start a process that Ctrl-C and SIGTERM do not reach before it can ignore them: they are sent to
    all processes of a terminal or a job, and ending the workers is the driver's business."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # else starting the process would, and lift the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _threads_in_environment(num_threads: int | None) -> Generator[None]:
    """Start a process whose OpenMP counts its threads before torch can be told."""
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
    """Pass on what the driver sends; its death ends this process, whatever it is doing."""
    try:
        while True:
            given = connection.recv()
            if given == _STOP:
                inbox.ask_to_stop()
            else:
                inbox.give(given)
    except (EOFError, OSError):
        os._exit(1)
