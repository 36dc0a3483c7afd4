"""Where units are made: one teacher on one device, whatever process or machine that is in.

A worker takes units, makes them and commits them; it shares nothing with other workers but the cache,
so engines of several processes or machines (engine.py) are so many of these.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from ...cores import decoders_for, num_cores
from ...errors import BuildError
from ...images.decoder import Decoder
from ...images.image import DecodedBatch, PixelFormat
from ...images.pixels import Decode
from ...siglip import Checkpoint
from ...store.cache import Cache
from ...store.format import layout
from ...store.format.layout import Modality
from ...store.io.location import Location
from ..teacher.embedder import Embedder
from ..teacher.teacher import Teacher
from .unit import (
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

    def __init__(
        self, message: str = "stopped; finished units are kept, run the same command to go on"
    ) -> None:
        super().__init__(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkOrder:
    """What a worker must know of a build, in whatever process it is. Picklable."""

    cache: Location
    """Absolute path of the cache's folder."""

    corpus_roots: Mapping[str, str]
    teacher: str
    """Name of the teacher in the cache."""

    checkpoint: Checkpoint
    """As it was recorded."""

    device: str
    compute_dtype: str
    image_batch: int
    """Views in one forward pass."""

    text_batch: int
    """Texts in one forward pass."""

    decode: Decode
    num_decoders: int | None
    """Decoding processes of this worker; 0 decodes in the worker itself; None: one for each thread of
    its teacher, at most 16."""

    sample_timeout_s: float
    num_threads: int | None
    """CPU threads of the teacher; None: as many as torch takes by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedUnit:
    """A unit that needs no more work."""

    modality: Modality
    number: int
    is_ours: bool
    """False where another worker had committed it, or trying again gained nothing."""

    num_wanted: int
    num_rejected: int


class Report(Protocol):
    """Who is told how the work goes. Called from two threads."""

    def advanced(self, modality: Modality, num_rows: int, num_rejected: int) -> None:
        """Hear of embedded and rejected rows."""
        ...

    def finished(self, unit: FinishedUnit) -> None:
        """Hear of a unit that stands in the cache."""
        ...


Take = Callable[[Modality | None], Job | None]
"""Gives a worker its next unit: of a modality, None where there is none for it now; or (asked for
None) of any, which may wait for one to turn up, None where there is nothing left to do."""


class UnitWorker:
    """Decodes, embeds and commits units, each stage overlapping the others."""

    def __init__(self, order: WorkOrder, cache: Cache, teacher: Teacher, report: Report) -> None:
        self._order, self._cache, self._report = order, cache, report
        self.embedder = Embedder(teacher, order.image_batch, order.text_batch)
        self.times = StageTimes()
        self.num_decoders = (
            decoders_for(order.num_threads or num_cores())
            if order.num_decoders is None
            else order.num_decoders
        )
        self._stop = threading.Event()

    def run(self, take: Take, stop: threading.Event) -> None:
        """Make units until there are none; all that was finished is committed however this ends.

        Raises:
            BuildInterrupted: stop was set; the batch at hand was finished.
            CacheError: the disk is full, the decoders cannot start, memory does not do for one row.
        """
        self._stop = stop
        provenance = self.embedder.teacher.provenance()
        writer = _Writer(self._cache, self._order.teacher, provenance, self.times, self._report)
        try:
            while not stop.is_set() and (first := take(None)) is not None:
                jobs = self._of_one_modality(first, take)
                if first.unit.modality == "image":
                    self._embed_images(jobs, first.batch_size, writer)
                else:
                    self._embed_texts(jobs, writer)
                writer.settle()  # or who waits for another's unit could wait for one of its own
            if stop.is_set():
                raise BuildInterrupted
        finally:
            writer.finish()

    def _embed_images(self, jobs: Iterator[Job], batch_images: int, writer: "_Writer") -> None:
        order, times = self._order, self.times
        form = PixelFormat(
            num_views=self._cache.num_views,
            recipe=self.embedder.teacher.image,
            decode=order.decode,
        )
        decoder = Decoder(
            form,
            batch_images=batch_images,
            num_workers=self.num_decoders,
            timeout_s=order.sample_timeout_s,
        )

        def start(batch: DecodedBatch) -> Callable[[], None]:
            rows, where = batch.tag
            times.read_s += sum(image.read_s for image in batch.images)
            times.decode_s += sum(image.decode_s for image in batch.images)
            started = time.perf_counter()
            wait = fill_images(batch, self.embedder)
            times.forward_s += time.perf_counter() - started
            return lambda: self._finish_batch("image", rows, where, wait, writer)

        batches = decoder.decode(image_batches(self._cache, order.teacher, jobs))
        with contextlib.closing(_as_generator(batches)) as decoded:
            self._pipeline(_timed(decoded, times), start)

    def _embed_texts(self, jobs: Iterator[Job], writer: "_Writer") -> None:
        def batches() -> Iterator[tuple[UnitRows, slice, Sequence[str]]]:
            for job in jobs:
                rows, texts = (
                    open_rows(self._cache, self._order.teacher, job),
                    unit_texts(self._cache, job.unit),
                )
                for where in wanted_batches(rows.wanted, job.batch_size):
                    yield rows, where, texts

        def start(batch: tuple[UnitRows, slice, Sequence[str]]) -> Callable[[], None]:
            rows, where, texts = batch
            started = time.perf_counter()
            wait = fill_texts(rows, where, texts, self.embedder)
            self.times.forward_s += time.perf_counter() - started

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
        self.times.forward_s += time.perf_counter() - started
        num_wanted = int(rows.wanted[where].sum())
        self._report.advanced(modality, num_wanted, len(rows.rejected) - before)
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
            raise BuildInterrupted

    def _of_one_modality(self, first: Job, take: Take) -> Iterator[Job]:
        """Yield units of one modality, but those that another process has committed meanwhile."""
        job: Job | None = first
        while job is not None and not self._stop.is_set():
            unit = job.unit
            record = layout.unit_record(
                self._order.teacher, unit.modality, unit.number, job.attempt
            )
            if self._cache.files.exists(record):
                self._report.advanced(unit.modality, job.num_wanted, 0)
                self._report.finished(_finished(job, is_ours=False, num_rejected=0))
            else:
                yield job
            job = take(unit.modality)


class _Writer:
    """Encodes and commits finished units in a thread of its own, so that the teacher goes on."""

    def __init__(
        self,
        cache: Cache,
        teacher: str,
        provenance: Mapping[str, Any],
        times: StageTimes,
        report: Report,
    ) -> None:
        self._cache, self._teacher, self._provenance = cache, teacher, provenance
        self._times, self._report = times, report
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="siglip2-cache-writer")
        self._pending: Future[None] | None = None

    def submit(self, rows: UnitRows) -> None:
        """Hand over a finished unit; waits for the one before, so two are in memory at most."""
        self.settle()
        self._pending = self._executor.submit(self._write, rows)

    def settle(self) -> None:
        """Wait until every unit handed over is committed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def finish(self) -> None:
        """Wait for the last unit, and end the thread."""
        try:
            self.settle()
        finally:
            self._executor.shutdown()

    def _write(self, rows: UnitRows) -> None:
        started = time.perf_counter()
        is_ours = commit_unit(self._cache, self._teacher, rows, self._provenance)
        self._times.write_s += time.perf_counter() - started
        self._report.finished(_finished(rows.job, is_ours=is_ours, num_rejected=len(rows.rejected)))


def _finished(job: Job, *, is_ours: bool, num_rejected: int) -> FinishedUnit:
    return FinishedUnit(
        modality=job.unit.modality,
        number=job.unit.number,
        is_ours=is_ours,
        num_wanted=job.num_wanted,
        num_rejected=num_rejected,
    )


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
