"""The build: plan, enroll the teacher, make every missing unit, say what became of it."""

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import BuildError, DiskFullError, SettingError
from ..siglip import COMPUTE_DTYPES, Checkpoint, resolve_checkpoint
from ..store import layout
from ..store.cache import Cache
from ..store.commits import clear_garbage, roll_forward
from ..store.files import LocalFiles
from ..store.layout import MODALITIES, Modality
from ..store.manifest import TeacherRecord
from . import enroll
from .decode import DecodedBatch, Decoder, PixelFormat
from .embed import Embedder
from .plan import Plan, PlanConfig, make_plan
from .progress import PlainProgress, Progress, format_bytes
from .teacher import Teacher
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

_LARGEST_BATCH = 65_536
"""A typo's limit: four batches of pixels are in memory at a time."""

_IMAGES_ROW_BYTES = 44
"""One row of teachers/<name>/images: 32 of hash, the rest with some room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildConfig:
    """Settings of one run of a build."""

    plan: PlanConfig
    """The corpus."""

    cache: Path
    """Folder of the cache."""

    teacher: str
    """Hub id or folder of the checkpoint."""

    revision: str | None = None
    """Revision of a hub id; None is its main branch."""

    teacher_name: str | None = None
    """Name of the teacher in the cache; None is the checkpoint's own."""

    device: str = "auto"
    """auto (cuda, mps, cpu) or a device's name."""

    dtype: str = "auto"
    """auto, float32, bfloat16 or float16; auto is bfloat16 on CUDA, else as the weights are stored."""

    batch_size: int | None = None
    """Images, and texts, in one forward pass; None: what the cache recorded, else measured once."""

    decode_workers: int | None = None
    """Processes that decode; 0 decodes in the main process; None: one a core, at most 16."""

    sample_timeout_s: float = 60.0
    """Seconds that one image may take to read and decode before it is rejected."""

    retry_rejected: bool = False
    """Try the rejected rows of committed units once more."""

    def __post_init__(self) -> None:
        if self.batch_size is not None and not 1 <= self.batch_size <= _LARGEST_BATCH:
            raise SettingError(f"batch size must be 1 to {_LARGEST_BATCH:,}, got {self.batch_size}")
        if self.decode_workers is not None and self.decode_workers < 0:
            raise SettingError(f"decode workers must be 0 or more, got {self.decode_workers}")
        if not self.sample_timeout_s > 0:
            raise SettingError(f"sample timeout must be above 0 s, got {self.sample_timeout_s}")
        if self.dtype not in ("auto", *COMPUTE_DTYPES):
            raise SettingError(
                f"dtype {self.dtype!r} is not one of auto, {', '.join(COMPUTE_DTYPES)}"
            )
        if self.device.partition(":")[0] not in ("auto", "cpu", "cuda", "mps"):
            raise SettingError(
                f"device {self.device!r} is not one of auto, cpu, cuda, cuda:NUMBER, mps"
            )

    @property
    def num_workers(self) -> int:
        """Decoding processes."""
        if self.decode_workers is not None:
            return self.decode_workers
        return min(16, _num_cores())


@dataclass(slots=True, kw_only=True)
class BuildSummary:
    """What a build did, and what the cache holds after it."""

    plan: Plan
    teacher: str
    num_units: int = 0
    """Units this run committed."""

    num_images: int = 0
    """Images this run put through the teacher or rejected."""

    num_texts: int = 0
    num_rejected: int = 0
    """Rejected rows in the whole cache, images and texts."""

    first_rejected: list[str] = field(default_factory=list[str])
    """The first few, as ``key: reason``."""

    image_batch: int = 0
    text_batch: int = 0
    elapsed_s: float = 0.0
    num_workers: int = 0
    times: StageTimes = field(default_factory=StageTimes)


class BuildInterrupted(BuildError):  # noqa: N818 - an interruption is not an error
    """The user stopped the build; what was committed stays."""


TeacherFactory = Callable[[Checkpoint, str, str], Teacher]
"""(checkpoint, device, dtype) -> teacher; tests put a fake one here."""


def load_teacher(checkpoint: Checkpoint, device: str, dtype: str) -> Teacher:
    """Return the live teacher."""
    from .teacher import SiglipTeacher

    return SiglipTeacher(checkpoint, device=device, compute_dtype=dtype)


def build(
    config: BuildConfig,
    *,
    progress: Progress | None = None,
    make_teacher: TeacherFactory = load_teacher,
) -> BuildSummary:
    """Run the teacher over everything that the cache does not hold yet.

    Safe to kill at any instant and to run again, also several times at once on one cache.

    Raises:
        CacheError: of every kind; the message says how to go on.
        BuildInterrupted: Ctrl-C or SIGTERM, after the batch at hand.
    """
    return _Build(config, progress or PlainProgress(), make_teacher).run()


class _Build:
    """One run of a build."""

    def __init__(
        self, config: BuildConfig, progress: Progress, make_teacher: TeacherFactory
    ) -> None:
        self._config, self._progress, self._make_teacher = config, progress, make_teacher
        self._files = LocalFiles(config.cache.absolute())
        self._times = StageTimes()
        self._loaded: Teacher | None = None
        self._stop = threading.Event()

    def run(self) -> BuildSummary:
        started = time.monotonic()
        checkpoint = resolve_checkpoint(self._config.teacher, revision=self._config.revision)
        self._refuse_early()
        plan = make_plan(self._config.plan, self._files, on_scan=self._say_scanning)
        enroll.finish_enrolments(self._files)
        cache = self._open()
        record = self._find_or_enroll(cache, checkpoint)
        cache = self._open()
        enroll.grow_arrays(cache, record)
        self._roll_forward_units(record.name)
        summary = BuildSummary(plan=plan, teacher=record.name, num_workers=self._config.num_workers)
        jobs = self._list_jobs(cache, record)
        if jobs:
            self._make_units(cache, record, checkpoint, jobs, summary)
        clear_garbage(self._files)
        summary.times = self._times
        summary.elapsed_s = time.monotonic() - started
        _count_rejected(self._open(), record.name, summary)
        return summary

    # -- before the first batch

    def _refuse_early(self) -> None:
        """Refuse what would fail only after the corpus is planned, which may take long."""
        root = self._files.root
        if root.exists() and not root.is_dir():
            raise SettingError(f"{root} is a file; name a folder for the cache")
        if any("\ud800" <= character <= "\udfff" for character in str(root)):
            raise SettingError(
                f"the folder of the cache, {str(root)!r}, has a name that is not UTF-8, which the "
                "readers of its tables do not take; name another"
            )
        is_new = not self._files.exists(layout.CACHE_RECORD)  # else it may need no device at all
        if is_new and self._config.device not in ("auto", "cpu"):
            from .teacher import resolve_device

            resolve_device(self._config.device)

    def _say_scanning(self) -> None:
        self._progress.say(f"planning {', '.join(self._config.plan.sources)}")

    def _open(self) -> Cache:
        return Cache(self._files.root, corpus_roots=self._config.plan.corpus_roots)

    def _teacher(self, checkpoint: Checkpoint, dtype: str) -> Teacher:
        if self._loaded is None:
            self._progress.say(f"loading teacher {checkpoint.given}")
            self._loaded = self._make_teacher(checkpoint, self._config.device, dtype)
        return self._loaded

    def _find_or_enroll(self, cache: Cache, checkpoint: Checkpoint) -> TeacherRecord:
        name, dtype = self._config.teacher_name, self._config.dtype
        record = enroll.find_teacher(cache, checkpoint, name=name, compute_dtype=dtype)
        if record is not None:
            return record
        dtype = _settle_dtype(checkpoint, self._config.device, dtype)
        _refuse_small_disk(cache, checkpoint.embed_dim, set())
        teacher = self._teacher(checkpoint, dtype)
        images, texts = (
            teacher.auto_batch_size()
            if self._config.batch_size is None
            else (self._config.batch_size, self._config.batch_size)
        )
        enroll.enroll(
            cache,
            checkpoint,
            teacher,
            name=name,
            compute_dtype=dtype,
            batch_size={"image": images, "text": texts},
        )
        found = enroll.find_teacher(self._open(), checkpoint, name=name, compute_dtype=dtype)
        assert found is not None
        return found

    def _roll_forward_units(self, teacher: str) -> None:
        folder = layout.commits_folder(teacher)
        for name in self._files.names(folder):
            if name.endswith(".intent"):
                roll_forward(self._files, f"{folder}/{name.removesuffix('.intent')}")

    def _list_jobs(self, cache: Cache, record: TeacherRecord) -> list[Job]:
        commits = cache.commits(record.name)
        for message in commits.damaged:
            self._progress.say(f"warning: {message}; the unit is made again")
        jobs: list[Job] = []
        for modality in MODALITIES:
            batch = self._samples_in_batch(cache, record, modality)
            for unit in cache.manifest.units(modality):
                place = (modality, unit.number)
                attempt = commits.next_attempt.get(place, 0)
                done = commits.units.get(place)
                if done is None:
                    jobs.append(Job(unit, attempt, batch))
                elif done.rejected and self._config.retry_rejected:
                    jobs.append(Job(unit, attempt, batch, previous=done))
        return jobs

    def _samples_in_batch(self, cache: Cache, record: TeacherRecord, modality: Modality) -> int:
        size = self._config.batch_size or record.batch_size[modality]
        return max(1, size // cache.num_views) if modality == "image" else size

    # -- the work

    def _make_units(
        self,
        cache: Cache,
        record: TeacherRecord,
        checkpoint: Checkpoint,
        jobs: Sequence[Job],
        summary: BuildSummary,
    ) -> None:
        missing = {(j.unit.modality, j.unit.number) for j in jobs}
        done = set(cache.commits(record.name).units) - missing
        _refuse_small_disk(cache, record.embed_dim, done)
        teacher = self._teacher(checkpoint, str(record.identity["compute_dtype"]))
        self._warn_of_other_provenance(cache, record, teacher)
        image_batch = self._config.batch_size or record.batch_size["image"]
        if cache.num_views <= image_batch:
            image_batch -= image_batch % cache.num_views
        embedder = Embedder(
            teacher, image_batch, self._config.batch_size or record.batch_size["text"]
        )
        by_modality: dict[Modality, list[Job]] = {
            m: [job for job in jobs if job.unit.modality == m] for m in MODALITIES
        }
        totals: dict[Modality, int] = {
            m: sum(job.num_wanted for job in by_modality[m]) for m in MODALITIES
        }
        self._progress.start(totals, {m: len(by_modality[m]) for m in MODALITIES})
        writer = _Writer(cache, record.name, teacher.provenance(), self._times, self._progress)
        try:
            with _stopping_on_signals(self._stop):
                self._embed_images(cache, record.name, embedder, by_modality["image"], writer)
                self._embed_texts(cache, record.name, embedder, by_modality["text"], writer)
        finally:
            try:
                writer.finish()
            finally:
                self._progress.stop()
                summary.num_units = writer.num_units
                summary.num_images = writer.num_rows["image"]
                summary.num_texts = writer.num_rows["text"]
        summary.image_batch, summary.text_batch = embedder.image_batch, embedder.text_batch

    def _embed_images(
        self,
        cache: Cache,
        name: str,
        embedder: Embedder,
        jobs: Sequence[Job],
        writer: "_Writer",
    ) -> None:
        if not jobs:
            return
        teacher = embedder.teacher
        form = PixelFormat(
            num_views=cache.num_views, size=teacher.image_size, resample=teacher.resample
        )
        decoder = Decoder(
            form,
            batch_images=jobs[0].batch_size,
            num_workers=self._config.num_workers,
            timeout_s=self._config.sample_timeout_s,
        )
        times = self._times

        def start(batch: DecodedBatch) -> Callable[[], None]:
            rows, where = batch.tag
            times.read_s += sum(image.read_s for image in batch.images)
            times.decode_s += sum(image.decode_s for image in batch.images)
            started = time.perf_counter()
            wait = fill_images(batch, embedder)
            times.forward_s += time.perf_counter() - started
            return lambda: self._finish_batch("image", rows, where, wait, writer)

        batches = decoder.decode(image_batches(cache, name, self._open_jobs(name, jobs)))
        with contextlib.closing(_as_generator(batches)) as decoded:
            self._pipeline(_timed(decoded, times), start)

    def _embed_texts(
        self,
        cache: Cache,
        name: str,
        embedder: Embedder,
        jobs: Sequence[Job],
        writer: "_Writer",
    ) -> None:
        def batches() -> Iterator[tuple[UnitRows, slice, Sequence[str]]]:
            for job in self._open_jobs(name, jobs):
                rows, texts = open_rows(cache, name, job), unit_texts(cache, job.unit)
                for where in wanted_batches(rows.wanted, job.batch_size):
                    yield rows, where, texts

        def start(batch: tuple[UnitRows, slice, Sequence[str]]) -> Callable[[], None]:
            rows, where, texts = batch
            started = time.perf_counter()
            wait = fill_texts(rows, where, texts, embedder)
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

    def _open_jobs(self, teacher: str, jobs: Sequence[Job]) -> Iterator[Job]:
        """Yield the jobs that no other process has committed meanwhile."""
        for job in jobs:
            if self._stop.is_set():
                return
            unit = job.unit
            record = layout.unit_record(teacher, unit.modality, unit.number, job.attempt)
            if self._files.exists(record):
                self._progress.advance(unit.modality, job.num_wanted, 0)
                self._progress.unit_done(unit.modality)
            else:
                yield job

    def _warn_of_other_provenance(
        self, cache: Cache, record: TeacherRecord, teacher: Teacher
    ) -> None:
        units = cache.commits(record.name).units
        if not units:
            return
        before, now = next(iter(units.values())).provenance, teacher.provenance()
        changed = [
            f"{key} was {before.get(key)} and is {value}"
            for key, value in now.items()
            if before.get(key) != value
        ]
        if changed:
            self._progress.say(
                f"warning: {'; '.join(changed)}: embeddings may differ from earlier ones in rounding"
            )


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


def _settle_dtype(checkpoint: Checkpoint, device: str, dtype: str) -> str:
    from .teacher import resolve_compute_dtype, resolve_device

    if dtype != "auto":  # no need to ask torch for the device
        return resolve_compute_dtype(checkpoint, "cpu", dtype)
    return resolve_compute_dtype(checkpoint, resolve_device(device), dtype)


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def bytes_to_write(cache: Cache, embed_dim: int, done: set[tuple[Modality, int]]) -> int:
    """Return the bytes of the units that are not done."""
    total = 0
    for modality in MODALITIES:
        array = cache.manifest.array_layout(modality, embed_dim)
        for unit in cache.manifest.units(modality):
            if (modality, unit.number) not in done:
                total += array.shard_bytes(unit.rows.count)
                total += _IMAGES_ROW_BYTES * unit.rows.count if modality == "image" else 0
    return total


def _refuse_small_disk(cache: Cache, embed_dim: int, done: set[tuple[Modality, int]]) -> None:
    needed = bytes_to_write(cache, embed_dim, done)
    free = shutil.disk_usage(cache.root).free
    if needed > free:
        raise DiskFullError(
            f"the disk of {cache.root} has {format_bytes(free)} free and this build writes "
            f"{format_bytes(needed)}; free some, or build on another disk"
        )


def _count_rejected(cache: Cache, teacher: str, summary: BuildSummary) -> None:
    """Count and show rejected rows; a build of which no image was embedded fails.

    Raises:
        BuildError: every image was rejected.
    """
    commits = cache.commits(teacher)
    summary.num_rejected = commits.num_rejected("image") + commits.num_rejected("text")
    if summary.num_rejected:
        shown = cache.rejected(teacher).head(5).collect()
        summary.first_rejected = [
            f"{key or f'{modality} row {row}'}: {reason}"
            for modality, row, key, reason in shown.select(
                "modality", "row", "key", "reason"
            ).iter_rows()
        ]
    num_committed = sum(c.num_rows for c in commits.of("image").values())
    if num_committed and commits.num_rejected("image") == num_committed == cache.num_samples:
        raise BuildError(
            f"every image was rejected ({num_committed:,} of {num_committed:,}), the first: "
            f"{summary.first_rejected[0]}; mend them and run again with --retry-rejected, or say "
            "--corpus-root OLD=NEW if the corpus moved"
        )
