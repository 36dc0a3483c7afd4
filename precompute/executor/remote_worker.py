"""A worker away from its driver: what it is given comes in, what it has to say goes out.

How the two travel is the business of the engine: through a pipe, or as calls of an actor.
"""

import contextlib
import pickle
import queue
import threading
import traceback
from collections.abc import Callable

from ...errors import CacheError
from ...store.cache import Cache
from ...store.format.layout import Modality
from ..teacher.teacher import TeacherFactory
from .driver import Advanced, Failed, Message, Ready, Wants
from .in_process import threads_of_torch, worker_end
from .unit import Job
from .worker import BuildInterrupted, FinishedUnit, UnitWorker, WorkOrder

Send = Callable[[Message], None]
"""Takes a message to the driver; called from several threads."""


class Inbox:
    """What the driver gave and the worker has not taken yet."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._given: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.stop = threading.Event()

    def take(self, modality: Modality | None) -> Job | None:
        """Ask the driver for a unit and wait for the answer; see Take (workers.py)."""
        self._send(Wants(modality))
        return self._given.get()

    def give(self, job: Job | None) -> None:
        """Answer what the worker wanted."""
        self._given.put(job)

    def ask_to_stop(self) -> None:
        """Let the worker end after the batch at hand."""
        self.stop.set()
        self._given.put(None)  # it may be waiting


def serve(order: WorkOrder, make_teacher: TeacherFactory, send: Send, inbox: Inbox) -> None:
    """Load the teacher and make units until there are none; whatever happens, the driver is told."""
    try:
        cache = Cache(order.cache, corpus_roots=order.corpus_roots)
        with threads_of_torch(order.num_threads):
            teacher = make_teacher(order.checkpoint, order.device, order.compute_dtype)
            send(Ready(teacher.provenance()))
            worker = UnitWorker(order, cache, teacher, _Report(send))
            with contextlib.suppress(BuildInterrupted):  # the driver knows
                worker.run(inbox.take, inbox.stop)
        send(worker_end(worker))
    except Exception as error:
        send(Failed(_portable(error)))


class _Report:
    """Tells the driver."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def advanced(self, modality: Modality, num_rows: int, num_rejected: int) -> None:
        self._send(Advanced(modality, num_rows, num_rejected))

    def finished(self, unit: FinishedUnit) -> None:
        self._send(unit)


def _portable(error: Exception) -> Exception:
    """Return an error that survives the way to the driver; that of a bug takes its traceback along."""
    if not isinstance(error, CacheError):
        error.add_note(f"in a worker:\n{traceback.format_exc()}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"a worker failed:\n{traceback.format_exc()}")
    return error
