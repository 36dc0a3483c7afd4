"""The build: plan, add the teacher, make every missing unit, and summarise the result."""

import gc
import time
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from ..errors import BuildError
from ..formatting import format_count
from ..siglip import Checkpoint, resolve_checkpoint
from ..store.cache import Cache
from ..store.format.kept_pixels import KeptPixels
from ..store.format.layout import MODALITIES, Modality
from ..store.format.pixel_settings import PixelSettings
from ..store.format.teacher_files import grow_arrays
from ..store.format.teacher_record import TeacherRecord
from ..store.format.transaction import clear_garbage
from ..store.io.location import parse_location
from ..store.io.storage import open_storage
from .config import BuildConfig, BuildSummary
from .estimate.disk import refuse_small_disk
from .executor.driver import Engine
from .executor.in_process import InProcessEngine
from .executor.local import LocalEngine, own_gpu
from .executor.messages import WorkOrder
from .executor.pending import describe_missing, find_jobs, roll_forward_units
from .executor.progress import BuildProgress
from .executor.row_targets import TeacherTargets
from .executor.totals import BuildTotals, compare_provenance
from .executor.unit import Job
from .executor.work_queue import WorkQueue
from .executor.work_stealing import WorkStealing
from .keep_pixels import keep_pixels, settle_pixel_settings
from .prepare import Preparation
from .teacher.embedder import split_images
from .teacher.identity import (
    recorded_compiled,
    recorded_decode,
    recorded_dtype,
    restore_checkpoint,
)
from .teacher.siglip_teacher import load_teacher
from .teacher.teacher import Teacher, TeacherFactory, with_compile

_MAX_COMPARED = 1_000_000
"""Samples of a cache whose images are compared after a build, some 100 bytes of memory each."""

_REMEDY: dict[Modality, str] = {
    "image": "repair them and run again with --retry-rejected, or use --corpus-root OLD=NEW if the corpus "
    "moved",
    "text": "the checkpoint's text tower is probably damaged: check its weights, and build another cache "
    "with an intact checkpoint",
}


def build(
    config: BuildConfig,
    *,
    progress: BuildProgress | None = None,
    make_teacher: TeacherFactory = load_teacher,
) -> BuildSummary:
    """Embed everything that the cache does not hold yet, and return a summary.

    Safe to kill at any time and to run again, also several times at once on one cache.

    Raises:
        CacheError: of any kind; the message says how to continue.
        BuildInterrupted: Ctrl-C or SIGTERM, after the current batch.
    """
    return _Build(config, progress or BuildProgress(), make_teacher).run()


class _Build:
    """One run of a build."""

    def __init__(
        self, config: BuildConfig, progress: BuildProgress, make_teacher: TeacherFactory
    ) -> None:
        self._config, self._progress, self._make_teacher = config, progress, make_teacher
        self._files = open_storage(parse_location(config.cache))
        self._loaded: Teacher | None = None
        self._is_compiled = bool(config.compile)
        self._pixels: PixelSettings | None = None
        self._preparation = Preparation(
            config, self._files, progress.say, progress.scanned, self._teacher
        )

    def run(self) -> BuildSummary:
        started = time.monotonic()
        checkpoint = resolve_checkpoint(self._config.teacher, revision=self._config.revision)
        checkpoint = self._config.choices.apply(checkpoint)
        plan, record = self._preparation.run(checkpoint)
        self._is_compiled = recorded_compiled(record)
        checkpoint = restore_checkpoint(checkpoint, record)
        cache = self._preparation.open()
        grow_arrays(cache.files, cache.manifest, record)
        roll_forward_units(self._files, record.name)
        pixels = settle_pixel_settings(self._config, cache, checkpoint, self._progress.say)
        kept = cache.kept_pixels()
        jobs = self._find_jobs(cache, record, checkpoint)
        if kept is not None and any(_needs_tar(job, kept) for job in jobs):
            self._pixels = pixels
        if self._config.finish and jobs:
            raise BuildError(f"{cache.root} is not finished: {describe_missing(cache, jobs)}")
        summary = BuildSummary(plan=plan, teacher=record.name)
        if jobs:
            self._make_units(cache, record, checkpoint, jobs, summary)
        if pixels is not None:
            num_before = kept.num_images if kept is not None else 0
            keep_pixels(self._config, cache.renewed(), pixels, self._progress, summary, num_before)
        clear_garbage(self._files)
        summary.elapsed_s = time.monotonic() - started
        cache = cache.renewed()
        count_rejected(cache, record.name, summary)
        _refuse_if_all_rejected(cache, record.name)
        _count_copies(cache, record.name, summary)
        if not self._config.retry_rejected:
            self._refuse_all_rejected("image", summary.num_images, summary)
            self._refuse_all_rejected("text", summary.num_texts, summary)
        return summary

    def _refuse_all_rejected(
        self, modality: Modality, num_rows: int, summary: BuildSummary
    ) -> None:
        if 0 < num_rows == summary.num_rejected_now[modality]:
            raise BuildError(
                f"every {modality} of this run was rejected ({num_rows:,}); "
                f"siglip2-cache info {self._config.cache} --rejected lists them; {_REMEDY[modality]}"
            )

    @property
    def _factory(self) -> TeacherFactory:
        return with_compile(self._make_teacher, self._is_compiled)

    def _teacher(self, checkpoint: Checkpoint, dtype: str) -> Teacher:
        if self._loaded is None:
            self._progress.say(f"loading teacher {checkpoint.given}")
            self._loaded = self._factory(checkpoint, self._device(), dtype)
        return self._loaded

    def _device(self) -> str:
        """Return the device of the config; for one of several ranks on a machine its own GPU."""
        rank = self._config.rank
        if rank is None or (self._config.workers or 1) > 1:
            return self._config.device
        return own_gpu(self._config.device, rank.local_rank)

    def _find_jobs(self, cache: Cache, record: TeacherRecord, checkpoint: Checkpoint) -> list[Job]:
        samples, _ = split_images(
            checkpoint.image, self._batch_size(record, "image"), cache.num_views
        )
        return find_jobs(
            cache,
            record.name,
            batch_size={"image": samples, "text": self._batch_size(record, "text")},
            retry_rejected=self._config.retry_rejected,
            say=self._progress.say,
            owns=rank.owns if (rank := self._config.rank) else lambda unit: True,
        )

    def _batch_size(self, record: TeacherRecord, modality: Modality) -> int:
        return self._config.batch_size or record.batch_size[modality]

    def _make_units(
        self,
        cache: Cache,
        record: TeacherRecord,
        checkpoint: Checkpoint,
        jobs: list[Job],
        summary: BuildSummary,
    ) -> None:
        own, stealing = self._divide(jobs, record.name)
        if not own and (stealing is None or stealing.num_missing == 0):
            return
        done = set(cache.commits(record.name).units) - {job.id for job in jobs}
        layouts = cache.manifest.layouts(record.embed_dim, record.encoding, record.patches)
        refuse_small_disk(cache, layouts, done)
        order = self._order(cache, record, checkpoint)

        def begin(provenance: Mapping[str, Any]) -> None:
            self._warn_of_other_provenance(cache, record, provenance)
            self._warn_of_other_batch_size(record)
            start_progress(self._progress, own)

        totals = BuildTotals(self._progress, begin)
        try:
            self._engine(order, len(jobs)).run(order, WorkQueue(own, stealing), totals)
        finally:
            self._progress.stop()
            count_rows(totals, summary)
            summary.times, summary.num_decoders = totals.times, totals.num_decoders
            summary.num_workers = max(1, totals.num_ended)
        summary.image_batch, summary.text_batch = totals.image_batch, totals.text_batch

    def _divide(self, jobs: list[Job], teacher: str) -> tuple[list[Job], WorkStealing | None]:
        """Return the units of this rank, and what finds units of other ranks after these."""
        rank = self._config.rank
        if rank is None:
            return jobs, None
        own = [job for job in jobs if rank.owns(job.unit.number)]
        others = [job for job in jobs if not rank.owns(job.unit.number)]
        self._progress.say(
            f"rank {rank} (from {rank.source}): {format_count(len(own), 'unit')} of {len(jobs):,}"
        )
        return own, WorkStealing(self._files, teacher, others, rank, self._add_unit)

    def _engine(self, order: WorkOrder, num_units: int) -> Engine:
        """Return the engine, with at most one worker a unit: more would only load the teacher."""
        config = self._config
        num_workers = min(config.workers or 1, num_units)
        if config.engine == "local" and num_workers == 1:
            return InProcessEngine(self._targets)
        self._release_teacher()
        if config.engine == "local":
            return LocalEngine(self._factory, num_workers=num_workers)
        from .executor.ray_cluster import RayEngine

        return RayEngine(
            self._factory,
            address=config.address,
            num_workers=config.workers,
            gpus_per_worker=config.gpus_per_worker,
            num_units=num_units,
        )

    def _targets(self, order: WorkOrder) -> TeacherTargets:
        assert order.checkpoint is not None
        teacher = self._teacher(order.checkpoint, order.compute_dtype)
        patches = self._preparation.open().patch_map(order.teacher)
        return TeacherTargets(teacher, order.image_batch, order.text_batch, patches)

    def _release_teacher(self) -> None:
        """Free the memory of this process's teacher: the workers load their own."""
        if self._loaded is None:
            return
        is_on_gpu = self._loaded.device.startswith("cuda")
        self._loaded = None
        gc.collect()
        if is_on_gpu:
            import torch

            torch.cuda.empty_cache()

    def _order(self, cache: Cache, record: TeacherRecord, checkpoint: Checkpoint) -> WorkOrder:
        _, image_batch = split_images(
            checkpoint.image, self._batch_size(record, "image"), cache.num_views
        )
        return WorkOrder(
            cache=cache.root,
            corpus_roots=cache.corpus_roots,
            teacher=record.name,
            checkpoint=checkpoint,
            device=self._device(),
            compute_dtype=recorded_dtype(record),
            image_batch=image_batch,
            text_batch=self._batch_size(record, "text"),
            decode=recorded_decode(record),
            num_decoders=self._config.decode_workers
            if self._config.engine
            == "ray"  # nodes may have other numbers of cores than this machine
            else self._config.num_decoders,
            sample_timeout_s=self._config.sample_timeout_s,
            num_threads=self._config.num_threads,
            targets_budget=self._config.targets_budget,
            pixels=self._pixels,
        )

    def _add_unit(self, job: Job) -> None:
        self._progress.say(f"helping with {job}")
        self._progress.grow(job.unit.modality, job.num_wanted)

    def _warn_of_other_batch_size(self, record: TeacherRecord) -> None:
        asked = self._config.batch_size
        for modality, recorded in record.batch_size.items():
            if asked is not None and asked != recorded:
                self._progress.say(
                    f"warning: {modality} batch size was {recorded} and is {asked}: embeddings may "
                    "differ from earlier ones in rounding"
                )

    def _warn_of_other_provenance(
        self, cache: Cache, record: TeacherRecord, provenance: Mapping[str, Any]
    ) -> None:
        units = cache.commits(record.name).units
        if not units:
            return
        changed = compare_provenance(next(iter(units.values())).provenance, provenance)
        if changed:
            self._progress.say(
                f"warning: {changed}: embeddings may differ from earlier ones in rounding"
            )


def start_progress(progress: BuildProgress, jobs: Sequence[Job]) -> None:
    """Show how many rows and units of each modality are to be made."""
    of: dict[Modality, list[Job]] = {
        m: [job for job in jobs if job.unit.modality == m] for m in MODALITIES
    }
    totals: dict[Modality, int] = {m: sum(job.num_wanted for job in of[m]) for m in MODALITIES}
    progress.start(totals, {m: len(of[m]) for m in MODALITIES})


def count_rows(totals: BuildTotals, summary: BuildSummary) -> None:
    """Count what was made, in the summary."""
    summary.num_units = totals.num_units
    summary.num_images = totals.num_rows["image"]
    summary.num_texts = totals.num_rows["text"]
    summary.num_rejected_now = totals.num_rejected


def _needs_tar(job: Job, kept: KeptPixels) -> bool:
    """Return whether the pixels of a unit are kept as it is embedded."""
    is_new = job.unit.modality == "image" and job.previous is None
    return is_new and job.unit.number not in kept.units


def _count_copies(cache: Cache, teacher: str, summary: BuildSummary) -> None:
    """Count images with the bytes of another image, if a source is a file of rows that hold images."""
    kinds = {source.kind for source in cache.manifest.sources}
    is_packed = not kinds.isdisjoint(("parquet", "datasets"))
    if not (is_packed and summary.num_images) or cache.num_samples > _MAX_COMPARED:
        return
    units = cache.commits(teacher).units_of("image")
    sums = pl.concat([cache.seen(teacher, unit)["sha256"] for unit in units]).drop_nulls()
    summary.num_copies = len(sums) - sums.n_unique()


def count_rejected(cache: Cache, teacher: str, summary: BuildSummary) -> None:
    """Count rejected rows and remember the first few."""
    commits = cache.commits(teacher)
    summary.num_rejected = commits.num_rejected("image") + commits.num_rejected("text")
    if summary.num_rejected:
        shown = cache.rejected(teacher, first=5).collect()
        summary.first_rejected = [
            f"{key or f'{modality} row {row}'}: {reason}"
            for modality, row, key, reason in shown.select(
                "modality", "row", "key", "reason"
            ).iter_rows()
        ]


def _refuse_if_all_rejected(cache: Cache, teacher: str) -> None:
    """Refuse a cache without a target of one modality.

    Raises:
        BuildError: every image, or every text, was rejected.
    """
    commits = cache.commits(teacher)
    for modality in MODALITIES:
        num_committed = sum(c.num_rows for c in commits.units_of(modality).values())
        num_planned = cache.manifest.count(modality)
        if num_committed and commits.num_rejected(modality) == num_committed == num_planned:
            rejected = cache.rejected(teacher).filter(pl.col("modality") == modality).head(1)
            key, row, reason = rejected.select("key", "row", "reason").collect().row(0)
            raise BuildError(
                f"every {modality} was rejected ({num_committed:,} of {num_committed:,}), the first: "
                f"{key or f'{modality} row {row}'}: {reason}; {_REMEDY[modality]}"
            )
