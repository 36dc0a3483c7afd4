"""Where units are made: here, on one device of this machine.

A worker takes jobs and commits units; it shares nothing with other workers but the cache, so that
engines of several processes or machines are so many of these.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ..decoding.decode import Decoder
from ..decoding.images import DecodedBatch, PixelFormat
from ..errors import BuildError
from ..store import layout
from ..store.cache import Cache
from ..store.layout import Modality
from ..store.pixels import Decode
from .embed import Embedder
from .progress import Progress
from .units import (
    Job,
    StageTimes,
    UnitRows,
    commit_unit,
    fill_images,
    fill_texts,
    image_batches,
    open_rows,
    unit_texts,
    wanted_batches,
)


class BuildInterrupted(BuildError):  # noqa: N818 - an interruption is not an error
    """The user stopped the build; what was committed stays."""


class UnitWorker:
    """Decodes, embeds and commits units, each stage overlapping the others."""

    def __init__(
        self,
        cache: Cache,
        teacher: str,
        embedder: Embedder,
        *,
        decode: Decode,
        num_decoders: int,
        timeout_s: float,
        progress: Progress,
        times: StageTimes,
    ) -> None:
        self._cache, self._teacher, self._embedder = cache, teacher, embedder
        self._num_decoders, self._timeout_s = num_decoders, timeout_s
        self._decode: Decode = decode
        self._progress, self._times = progress, times
        self._stop = threading.Event()
        self.num_units = 0
        """Units that run committed."""

        self.num_rows: dict[Modality, int] = {"image": 0, "text": 0}
        """Rows of those units that were wanted."""

        self.num_rejected_images = 0
        """Images of those units that were rejected."""

    def run(self, jobs: Sequence[Job]) -> None:
        """Make the units, images first; all that was finished is committed however this ends.

        Raises:
            BuildInterrupted: Ctrl-C or SIGTERM, after the batch at hand.
            CacheError: the disk is full, the decoders cannot start, memory does not do for one row.
        """
        provenance = self._embedder.teacher.provenance()
        writer = _Writer(self._cache, self._teacher, provenance, self._times, self._progress)
        try:
            with _stopping_on_signals(self._stop):
                self._embed_images([j for j in jobs if j.unit.modality == "image"], writer)
                self._embed_texts([j for j in jobs if j.unit.modality == "text"], writer)
        finally:
            try:
                writer.finish()
            finally:
                self.num_units, self.num_rows = writer.num_units, writer.num_rows
                self.num_rejected_images = writer.num_rejected_images

    def _embed_images(self, jobs: Sequence[Job], writer: "_Writer") -> None:
        if not jobs:
            return
        teacher = self._embedder.teacher
        form = PixelFormat(
            num_views=self._cache.num_views, recipe=teacher.image, decode=self._decode
        )
        decoder = Decoder(
            form,
            batch_images=jobs[0].batch_size,
            num_workers=self._num_decoders,
            timeout_s=self._timeout_s,
        )
        times = self._times

        def start(batch: DecodedBatch) -> Callable[[], None]:
            rows, where = batch.tag
            times.read_s += sum(image.read_s for image in batch.images)
            times.decode_s += sum(image.decode_s for image in batch.images)
            started = time.perf_counter()
            wait = fill_images(batch, self._embedder)
            times.forward_s += time.perf_counter() - started
            return lambda: self._finish_batch("image", rows, where, wait, writer)

        batches = decoder.decode(image_batches(self._cache, self._teacher, self._open_jobs(jobs)))
        with contextlib.closing(_as_generator(batches)) as decoded:
            self._pipeline(_timed(decoded, times), start)

    def _embed_texts(self, jobs: Sequence[Job], writer: "_Writer") -> None:
        def batches() -> Iterator[tuple[UnitRows, slice, Sequence[str]]]:
            for job in self._open_jobs(jobs):
                rows, texts = (
                    open_rows(self._cache, self._teacher, job),
                    unit_texts(self._cache, job.unit),
                )
                for where in wanted_batches(rows.wanted, job.batch_size):
                    yield rows, where, texts

        def start(batch: tuple[UnitRows, slice, Sequence[str]]) -> Callable[[], None]:
            rows, where, texts = batch
            started = time.perf_counter()
            wait = fill_texts(rows, where, texts, self._embedder)
            self._times.forward_s += time.perf_counter() - started

            return lambda: self._finish_batch("text", rows, where, wait, writer)

        self._pipeline(batches(), start)

    def _finish_batch(
        self,
        modality: Modality,
        rows: UnitRows,
        where: slice,
        wait: Callable[[], object],
        writer: "_Writer",
    ) -> None:
        started = time.perf_counter()
        before = len(rows.rejected)
        wait()
        self._times.forward_s += time.perf_counter() - started
        num_wanted = int(rows.wanted[where].sum())
        self._progress.advance(modality, num_wanted, len(rows.rejected) - before)
        if rows.num_left == 0:
            writer.submit(rows)

    def _pipeline(self, batches: Iterator[Any], start: Callable[[Any], Callable[[], None]]) -> None:
        """Start each batch before the one before it is waited for: the device is never idle."""
        pending: Callable[[], None] | None = None
        for batch in batches:
            following = start(batch)
            if pending is not None:
                pending()
            pending = following
            if self._stop.is_set():
                break
        if pending is not None:
            pending()
        if self._stop.is_set():
            raise BuildInterrupted(
                "stopped; finished units are kept, run the same command to go on"
            )

    def _open_jobs(self, jobs: Sequence[Job]) -> Iterator[Job]:
        """Yield the jobs that no other process has committed meanwhile."""
        for job in jobs:
            if self._stop.is_set():
                return
            unit = job.unit
            record = layout.unit_record(self._teacher, unit.modality, unit.number, job.attempt)
            if self._cache.files.exists(record):
                self._progress.advance(unit.modality, job.num_wanted, 0)
                self._progress.unit_done(unit.modality)
            else:
                yield job


class _Writer:
    """Encodes and commits finished units in a thread of its own, so that the teacher goes on."""

    def __init__(
        self,
        cache: Cache,
        teacher: str,
        provenance: Mapping[str, Any],
        times: StageTimes,
        progress: Progress,
    ) -> None:
        self._cache, self._teacher, self._provenance = cache, teacher, provenance
        self._times, self._progress = times, progress
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="siglip2-cache-writer")
        self._pending: Future[None] | None = None
        self.num_units = 0
        self.num_rejected_images = 0
        self.num_rows: dict[Modality, int] = {"image": 0, "text": 0}

    def submit(self, rows: UnitRows) -> None:
        """Hand over a finished unit; waits for the one before, so two are in memory at most."""
        self._join()
        self._pending = self._executor.submit(self._write, rows)

    def finish(self) -> None:
        """Wait for the last unit."""
        try:
            self._join()
        finally:
            self._executor.shutdown()

    def _join(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(self, rows: UnitRows) -> None:
        started = time.perf_counter()
        if commit_unit(self._cache, self._teacher, rows, self._provenance):
            self.num_units += 1
            self.num_rows[rows.job.unit.modality] += int(rows.wanted.sum())
            if rows.job.unit.modality == "image":
                self.num_rejected_images += len(rows.rejected)
        self._times.write_s += time.perf_counter() - started
        self._progress.unit_done(rows.job.unit.modality)


@contextlib.contextmanager
def _stopping_on_signals(stop: threading.Event) -> Generator[None]:
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


def _timed(batches: Iterator[Any], times: StageTimes) -> Iterator[Any]:
    while True:
        started = time.perf_counter()
        batch = next(batches, None)
        times.wait_s += time.perf_counter() - started
        if batch is None:
            return
        yield batch


def _as_generator(batches: Iterator[Any]) -> Generator[Any]:
    assert isinstance(batches, Generator)
    return batches


def num_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
