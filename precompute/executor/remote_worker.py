"""A worker in another process than its driver: units come in, messages go out.

How they travel is the engine's concern: through a pipe, or as calls of a Ray actor.
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
from .messages import (
    BuildInterrupted,
    Failed,
    Message,
    Ready,
    Request,
    WorkOrder,
)
from .row_targets import TeacherTargets
from .unit import Job
from .worker import UnitWorker, torch_threads

Send = Callable[[Message], None]
"""Sends a message to the driver; called from several threads."""


class Inbox:
    """Units that the driver assigned and the worker has not taken yet."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.stop = threading.Event()

    def take(self, modality: Modality | None) -> Job | None:
        """Request a unit from the driver and wait for the answer; see ``worker.Take``."""
        self._send(Request(modality))
        return self._jobs.get()

    def put(self, job: Job | None) -> None:
        """Add the driver's answer to a request."""
        self._jobs.put(job)

    def request_stop(self) -> None:
        """Let the worker end after its current batch."""
        self.stop.set()
        self._jobs.put(None)  # it may be waiting


def serve(order: WorkOrder, make_teacher: TeacherFactory, send: Send, inbox: Inbox) -> None:
    """Load the teacher and make units until there are none; send the driver any error."""
    try:
        cache = Cache(order.cache, corpus_roots=order.corpus_roots)
        assert order.checkpoint is not None
        teacher = make_teacher(order.checkpoint, order.device, order.compute_dtype)
        with torch_threads(order.num_threads):  # a teacher that needs torch has loaded it
            targets = TeacherTargets(
                teacher, order.image_batch, order.text_batch, cache.patch_map(order.teacher)
            )
            send(Ready(targets.provenance()))
            worker = UnitWorker(order, cache, targets, send)
            with contextlib.suppress(BuildInterrupted):  # the driver requested it
                worker.run(inbox.take, inbox.stop)
        send(worker.summarize())
    except Exception as error:
        send(Failed(_picklable(error)))


def _picklable(error: Exception) -> Exception:
    """Return an error that can be sent to the driver; that of a bug keeps its traceback as a note."""
    if not isinstance(error, CacheError):
        error.add_note(f"in a worker:\n{traceback.format_exc()}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"a worker failed:\n{traceback.format_exc()}")
    return error
