"""Processes that decode images: a pool that replaces workers that die or hang.

Pixels do not travel through pipes: workers write them into shared memory (an unlinked file, so that
nothing remains when a process is killed, and /dev/shm may be small).
"""

import contextlib
import multiprocessing
import multiprocessing.context
import os
import queue
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any

from ..errors import BuildError
from . import decode_worker
from .decode_worker import Descriptor, SharedPixels, work
from .image import DecodedBatch, DecodedImage, ImageRef, PixelFormat
from .kept import KeptFormat
from .main_module import hide_main_module
from .prefetch_remote import strip_location

_TASK_IMAGES = 8
"""Most images of one task. Several save messages; there are fewer when workers would be idle, so that
all workers finish together."""

_START_TIMEOUT_S = 120.0
"""Seconds that a worker may take to start. It takes 0.1 s unless a disk or the system hangs."""


@dataclass(slots=True)
class _Task:
    """A few images of one batch, for one worker."""

    batch: "_Batch"
    positions: deque[int]


@dataclass(slots=True)
class _Batch:
    tag: Any
    refs: list[ImageRef]
    slot: int
    images: list[DecodedImage | None]
    num_left: int
    num_tries: dict[int, int] = field(default_factory=dict[int, int])


class _Worker:
    """One process and its current task."""

    def __init__(
        self,
        context: multiprocessing.context.BaseContext,
        shared: SharedPixels,
        form: PixelFormat | KeptFormat,
        timeout_s: float,
        number: int,
    ) -> None:
        self.number = number
        """Index in shared memory of the position of its current image."""

        ours, theirs = context.Pipe()
        descriptor = Descriptor(shared.descriptor)
        self.process: Any = context.Process(  # type: ignore[attr-defined]
            target=work, args=(theirs, descriptor, shared.shape, form, number), daemon=True
        )
        with hide_main_module():
            self.process.start()
        theirs.close()
        _limit_sending(ours, timeout_s)
        self.connection: Connection = ours
        self.is_ready = False
        self.task: _Task | None = None
        self.deadline = time.monotonic() + _START_TIMEOUT_S

    def kill(self) -> None:
        """Kill the process. It writes no pixels after this, unless it is stuck in the kernel."""
        self.process.kill()
        self.process.join(1)
        self.connection.close()


class DecodePool:
    """Worker processes, and the thread that distributes images and enforces time limits."""

    def __init__(
        self,
        shared: SharedPixels,
        form: PixelFormat | KeptFormat,
        num_workers: int,
        timeout_s: float,
    ) -> None:
        method = (
            "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        )
        self._context = multiprocessing.get_context(method)
        if method == "forkserver":
            self._context.set_forkserver_preload([decode_worker.__name__])
        self._shared, self._form = shared, form
        self._num_workers, self._timeout_s = num_workers, timeout_s
        self._tasks: deque[_Task] = deque()
        self._workers: list[_Worker] = []
        self._num_failed_starts = 0
        self._inbox: queue.SimpleQueue[_Batch] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[_Batch | BaseException] = queue.SimpleQueue()
        self._wake_reader, self._wake_writer = multiprocessing.Pipe(duplex=False)
        # One for all rounds: multiprocessing.connection.wait creates one on each call.
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        self._is_stopping = False
        self._thread = threading.Thread(target=self._dispatch, daemon=True)

    def run(self, batches: Iterable[tuple[Any, Sequence[ImageRef]]]) -> Iterator[DecodedBatch]:
        """Yield decoded batches in order; a batch is valid until the next is requested."""
        self._thread.start()
        source = iter(batches)
        free = deque(range(self._shared.shape[0]))
        order: deque[_Batch] = deque()
        finished: set[int] = set()
        while True:
            while free and (following := next(source, None)) is not None:
                tag, refs = following
                order.append(_Batch(tag, list(refs), free.popleft(), [None] * len(refs), len(refs)))
                self._submit(order[-1])
            if not order:
                return
            while order[0].slot not in finished:
                done = self._done.get()
                if isinstance(done, BaseException):
                    raise done
                finished.add(done.slot)
            batch = order.popleft()
            finished.discard(batch.slot)
            pixels = self._shared.pixels[batch.slot, : len(batch.refs)]
            images = [image for image in batch.images if image is not None]
            yield DecodedBatch(batch.tag, batch.refs, images, pixels)
            free.append(batch.slot)

    def stop(self) -> None:
        """Stop the thread and kill the workers."""
        self._is_stopping = True
        self._wake()
        if self._thread.is_alive():
            self._thread.join()
        for worker in self._workers:
            worker.kill()
        self._selector.close()

    def _submit(self, batch: _Batch) -> None:
        self._inbox.put(batch)
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._wake_writer.send_bytes(b"!")

    # -- the dispatcher's thread

    def _dispatch(self) -> None:
        try:
            self._workers = [self._start_worker(i) for i in range(self._num_workers)]
            while not self._is_stopping:
                self._take_inbox()
                self._deal()
                self._wait()
                self._enforce_deadlines()
        except BaseException as error:
            self._done.put(error)

    def _start_worker(self, number: int) -> _Worker:
        worker = _Worker(self._context, self._shared, self._form, self._timeout_s, number)
        self._selector.register(worker.connection, selectors.EVENT_READ, worker)
        return worker

    def _take_inbox(self) -> None:
        while not self._inbox.empty():
            batch = self._inbox.get()
            if batch.num_left == 0:
                self._done.put(batch)
            share = len(batch.refs) // (2 * self._num_workers)
            size = min(_TASK_IMAGES, max(1, share))
            for first in range(0, len(batch.refs), size):
                last = min(first + size, len(batch.refs))
                self._tasks.append(_Task(batch, deque(range(first, last))))

    def _deal(self) -> None:
        for worker in list(self._workers):
            if worker.is_ready and worker.task is None and self._tasks:
                task = self._tasks.popleft()
                images = [(i, strip_location(task.batch.refs[i])) for i in task.positions]
                worker.task = task
                self._shared.at_image[worker.number] = task.positions[0]
                worker.deadline = time.monotonic() + self._timeout_s
                try:
                    worker.connection.send((task.batch.slot, images))
                except BlockingIOError:  # the worker does not read: it is stopped or stuck
                    self._replace_late(worker)
                except OSError:
                    self._replace_dead(worker)

    def _wait(self) -> None:
        nearest = min((w.deadline for w in self._workers), default=float("inf"))
        timeout = None if nearest == float("inf") else max(0.0, nearest - time.monotonic())
        started = time.monotonic()
        ready = [key.data for key, _ in self._selector.select(timeout)]
        overslept = time.monotonic() - started - (timeout or 0.0)
        if (
            timeout is not None and overslept > 1
        ):  # the whole build was suspended: no worker is late
            for worker in self._workers:
                worker.deadline += overslept
        for worker in ready:
            if worker is None:
                self._wake_reader.recv_bytes()
            else:
                self._receive(worker)

    def _receive(self, worker: _Worker) -> None:
        """Receive one message; polling for more would cost more than another round."""
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            self._replace_dead(worker)
            return
        if message is None:
            worker.is_ready, worker.deadline = True, float("inf")
            self._num_failed_starts = 0
        else:
            self._record_results(worker, message)

    def _record_results(self, worker: _Worker, done: list[tuple[int, DecodedImage]]) -> None:
        task = worker.task
        assert task is not None
        for position, image in done:
            assert task.positions[0] == position
            task.positions.popleft()
            self._record(task.batch, position, image)
        worker.deadline = time.monotonic() + self._timeout_s
        if not task.positions:
            worker.task, worker.deadline = None, float("inf")

    def _record(self, batch: _Batch, position: int, image: DecodedImage) -> None:
        batch.images[position] = image
        batch.refs[position] = replace(batch.refs[position], data=None)  # release the bytes
        batch.num_left -= 1
        if batch.num_left == 0:
            self._done.put(batch)

    def _enforce_deadlines(self) -> None:
        now = time.monotonic()
        for worker in [w for w in self._workers if w.deadline <= now]:
            if worker.is_ready:
                self._replace_late(worker)
            else:
                self._count_failed_start(f"do not start within {_START_TIMEOUT_S:g} s")
                self._replace(worker)

    def _replace_late(self, worker: _Worker) -> None:
        reason = f"took longer than {self._timeout_s:g} s to read and decode, twice"
        task = self._replace(worker)
        if task is not None:
            self._retry_or_reject(task, reason)

    def _replace_dead(self, worker: _Worker) -> None:
        """Replace a worker that died, and retry its image once: another cause is possible."""
        was_ready = worker.is_ready
        worker.process.join(1)
        code = worker.process.exitcode
        if not was_ready:
            self._count_failed_start(f"die as they start (exit code {code})")
        task = self._replace(worker)
        if task is None:
            return
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        self._retry_or_reject(task, f"the decoder process crashed on it twice ({how})")

    def _count_failed_start(self, how: str) -> None:
        self._num_failed_starts += 1
        if self._num_failed_starts >= 2 * self._num_workers + 1:
            raise BuildError(
                f"decode workers {how}; --decode-workers 0 decodes in the main process"
            )

    def _retry_or_reject(self, task: _Task, reason: str) -> None:
        """Retry the current image once, then reject it."""
        current = task.positions[0]
        tries = task.batch.num_tries.get(current, 0) + 1
        task.batch.num_tries[current] = tries
        if tries >= 2:
            self._reject_current(task, reason)
        else:
            self._tasks.appendleft(task)

    def _replace(self, worker: _Worker) -> _Task | None:
        """Replace a worker and return its task, with its current image first."""
        task, worker.task = worker.task, None
        self._selector.unregister(worker.connection)
        worker.kill()
        if task is not None:  # images before the current one were decoded, but not sent
            at = int(self._shared.at_image[worker.number])
            if at in task.positions:  # otherwise it was sent and the next one not started
                task.positions.remove(at)
                task.positions.appendleft(at)
        self._workers[self._workers.index(worker)] = self._start_worker(worker.number)
        return task

    def _reject_current(self, task: _Task, reason: str) -> None:
        position = task.positions.popleft()
        self._shared.pixels[task.batch.slot, position] = 0
        self._record(task.batch, position, DecodedImage(reason=reason))
        if task.positions:
            self._tasks.appendleft(task)


def _limit_sending(connection: Connection, timeout_s: float) -> None:
    """Limit the time of sending: images sent with their bytes fill the pipe to a worker that hangs."""
    seconds = min(timeout_s, 1e6)
    limit = struct.pack("ll", int(seconds), max(1, int(seconds % 1 * 1e6)))
    with socket.socket(fileno=os.dup(connection.fileno())) as pipe:
        pipe.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
