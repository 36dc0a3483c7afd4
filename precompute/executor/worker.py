"""A worker, which makes and commits units: one teacher on one device, or one import.

Workers share nothing but the cache, so they may run in any process on any machine.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from ...cores import decoders_for, num_cores
from ...formatting import format_count
from ...images.decoder import Decoder
from ...images.image import DecodedBatch, PixelFormat
from ...images.kept import KeptFormat
from ...store.cache import Cache
from ...store.format import layout
from ...store.format.layout import Modality
from .messages import Advanced, BuildInterrupted, Ended, FinishedUnit, WorkOrder
from .pixel_tar import PixelTar, open_tar
from .row_targets import RowTargets
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

Report = Callable[[Advanced | FinishedUnit], None]
"""Receives the results of a worker; called from two threads."""

Take = Callable[[Modality | None], Job | None]
"""Returns the next unit for a worker. With a modality: one of that modality, or None if there is none
now. With None: one of any modality, waiting for it if need be, or None if there is nothing left to do."""


class UnitWorker:
    """Decodes, embeds and commits units, each stage overlapping the others."""

    def __init__(self, order: WorkOrder, cache: Cache, targets: RowTargets, report: Report) -> None:
        self._order, self._cache, self._report = order, cache, report
        self._targets = targets
        self.times = StageTimes()
        self.num_decoders = (
            decoders_for(order.num_threads or num_cores())
            if order.num_decoders is None
            else order.num_decoders
        )
        self._stop = threading.Event()
        self._tar: PixelTar | None = None
        self._tar_opened = contextlib.ExitStack()

    def run(self, take: Take, stop: threading.Event) -> None:
        """Make units until there are none; finished units are committed however this ends.

        Raises:
            BuildInterrupted: stop was set; the current batch was finished.
            CacheError: the disk is full, the decoders cannot start, memory is too small for one row.
        """
        self._stop = stop
        provenance = self._targets.provenance()
        writer = _Writer(self._cache, self._order, provenance, self.times, self._report)
        try:
            with self._tar_opened:
                while not stop.is_set() and (first := take(None)) is not None:
                    jobs = self._of_one_modality(first, take)
                    if first.unit.modality == "image":
                        self._embed_images(jobs, first.batch_size, writer)
                    else:
                        self._embed_texts(jobs, writer)
                    writer.flush()  # else a worker could wait for a unit that it has not written itself
                if stop.is_set():
                    raise BuildInterrupted
        finally:
            writer.close()

    def summarize(self) -> Ended:
        """Return the times, decoders and batch sizes of this worker."""
        return Ended(self.times, self.num_decoders, *self._targets.batch_sizes)

    def _embed_images(self, jobs: Iterator[Job], batch_images: int, writer: "_Writer") -> None:
        order, times = self._order, self.times
        form = PixelFormat(
            num_views=self._cache.num_views,
            recipe=self._targets.image,
            decode=order.decode,
            kept=None if order.pixels is None else KeptFormat(order.pixels),
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
            wait = fill_images(batch, self._targets)
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
            wait = fill_texts(rows, where, texts, self._targets)
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
        self._report(Advanced(modality, num_wanted, len(rows.rejected) - before))
        tar = self._keep(rows, where) if modality == "image" and self._order.pixels else None
        if rows.num_left == 0:
            writer.submit(rows, tar)

    def _keep(self, rows: UnitRows, where: slice) -> PixelTar | None:
        """Append the accepted images of a batch to the tar of their unit; return it once it is whole.

        A unit that is retried, or whose images are kept, has no tar.
        """
        unit = rows.job.unit
        if where.start == 0 and rows.job.previous is None:
            record = layout.pixels_unit_record(unit.number)
            if not self._cache.files.exists(record):
                opening = open_tar(self._cache, unit, attempt=0)
                self._tar = self._tar_opened.enter_context(opening)
        for position in range(where.start, where.stop):
            image, row = rows.images[position], unit.rows.first + position
            if image is not None and image.kept:
                if self._tar is not None and row not in rows.rejected:
                    self._tar.add(row, image)
                rows.images[position] = replace(
                    image, kept=b""
                )  # a unit of these would fill the memory
        if rows.num_left > 0:
            return None
        self._tar_opened.close()
        tar, self._tar = self._tar, None
        return tar

    def _pipeline(self, batches: Iterator[Any], start: Callable[[Any], Callable[[], None]]) -> None:
        """Start each batch before waiting for the previous one, so that the device is never idle."""
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
        """Yield units of one modality, without those that another process has committed meanwhile."""
        job: Job | None = first
        while job is not None and not self._stop.is_set():
            unit = job.unit
            record = layout.unit_record(
                self._order.teacher, unit.modality, unit.number, job.attempt
            )
            if self._cache.files.exists(record):
                self._report(Advanced(unit.modality, job.num_wanted, 0))
                self._report(_finished_unit(job, is_ours=False, num_rejected=0))
            else:
                yield job
            job = take(unit.modality)


class _Writer:
    """Encodes and commits finished units in its own thread, while the teacher continues."""

    def __init__(
        self,
        cache: Cache,
        order: WorkOrder,
        provenance: Mapping[str, Any],
        times: StageTimes,
        report: Report,
    ) -> None:
        self._cache, self._order, self._provenance = cache, order, provenance
        self._times, self._report = times, report
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="siglip2-cache-writer")
        self._pending: Future[None] | None = None

    def submit(self, rows: UnitRows, tar: PixelTar | None) -> None:
        """Write a finished unit; wait for the previous one first, so at most two are in memory."""
        self.flush()
        self._pending = self._executor.submit(self._write, rows, tar)

    def flush(self) -> None:
        """Wait until every submitted unit is committed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait for the last unit, and end the thread."""
        try:
            self.flush()
        finally:
            self._executor.shutdown()

    def _write(self, rows: UnitRows, tar: PixelTar | None) -> None:
        started, is_ours = time.perf_counter(), False
        try:
            is_ours = commit_unit(
                self._cache,
                self._order.teacher,
                rows,
                self._provenance,
                budget=self._order.targets_budget,
            )
        finally:
            if tar is not None and not is_ours:
                tar.abandon()
        if tar is not None and is_ours:
            tar.commit(rows.rejected)
        self._times.write_s += time.perf_counter() - started
        finished = _finished_unit(rows.job, is_ours=is_ours, num_rejected=len(rows.rejected))
        self._report(replace(finished, warning=_why_it_stays(rows)))


def _why_it_stays(rows: UnitRows) -> str | None:
    """Return a line about the rows that a new attempt would have lost; None if there are none."""
    lost = rows.lost
    if not lost:
        return None
    return (
        f"{rows.job} stays as it is: made again it would lose {format_count(len(lost), 'row')} with an "
        f"intact target (first: row {lost[0]}: {rows.rejected[lost[0]]}); make these files readable, or "
        "restore the damaged file from a copy, and run again with --retry-rejected"
    )


def _finished_unit(job: Job, *, is_ours: bool, num_rejected: int) -> FinishedUnit:
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


@contextlib.contextmanager
def torch_threads(num_threads: int | None) -> Generator[None]:
    """Let torch use so many CPU threads, and restore its setting afterwards.

    Args:
        num_threads: None: change nothing. Where torch is not loaded, nothing is to be computed in it.
    """
    torch = sys.modules.get("torch")
    if num_threads is None or torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
