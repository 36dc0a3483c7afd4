"""The build: plan, enroll the teacher, make every missing unit, say what became of it."""

import gc
import time
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from ..errors import BuildError
from ..formatting import format_count
from ..siglip import Checkpoint, resolve_checkpoint
from ..store.cache import Cache
from ..store.format.layout import MODALITIES, Modality
from ..store.format.teacher_record import TeacherRecord
from ..store.format.transaction import clear_garbage
from ..store.io.location import parse_location
from ..store.io.storage import open_storage
from .config import BuildConfig, BuildSummary
from .estimate.disk import refuse_small_disk
from .executor.driver import Account, Engine, compare_provenance
from .executor.helper import Helper
from .executor.in_process import HereEngine
from .executor.local import LocalEngine, own_gpu
from .executor.pending import describe_missing, find_jobs, roll_forward_units
from .executor.progress import BuildProgress, Progress
from .executor.unit import Job
from .executor.work_queue import Ledger, describe
from .executor.worker import WorkOrder
from .prepare import Beginning
from .teacher import identity as enroll
from .teacher.embedder import split_images
from .teacher.teacher import Teacher, TeacherFactory, load_teacher

_MEND: dict[Modality, str] = {
    "image": "mend them and run again with --retry-rejected, or say --corpus-root OLD=NEW if the corpus "
    "moved",
    "text": "the checkpoint's text tower is the likely cause: look at its weights, and build with a whole "
    "one into another cache",
}


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
    return _Build(config, progress or BuildProgress(), make_teacher).run()


class _Build:
    """One run of a build."""

    def __init__(
        self, config: BuildConfig, progress: Progress, make_teacher: TeacherFactory
    ) -> None:
        self._config, self._progress, self._make_teacher = config, progress, make_teacher
        self._files = open_storage(parse_location(config.cache))
        self._loaded: Teacher | None = None
        self._beginning = Beginning(config, self._files, progress.say, self._teacher)

    def run(self) -> BuildSummary:
        started = time.monotonic()
        checkpoint = resolve_checkpoint(self._config.teacher, revision=self._config.revision)
        checkpoint = self._config.choices.of(checkpoint)
        plan, record = self._beginning.run(checkpoint)
        checkpoint = enroll.as_recorded(checkpoint, record)
        cache = self._beginning.open()
        enroll.grow_arrays(cache, record)
        roll_forward_units(self._files, record.name)
        jobs = self._find_jobs(cache, record, checkpoint)
        if self._config.finish and jobs:
            raise BuildError(f"{cache.root} is not finished: {describe_missing(cache, jobs)}")
        summary = BuildSummary(plan=plan, teacher=record.name)
        if jobs:
            self._make_units(cache, record, checkpoint, jobs, summary)
        clear_garbage(self._files)
        summary.elapsed_s = time.monotonic() - started
        _count_rejected(cache.renewed(), record.name, summary)
        if not self._config.retry_rejected:
            self._refuse_all_rejected("image", summary.num_images, summary)
            self._refuse_all_rejected("text", summary.num_texts, summary)
        return summary

    def _refuse_all_rejected(
        self, modality: Modality, num_rows: int, summary: BuildSummary
    ) -> None:
        if 0 < num_rows == summary.num_rejected_now[modality]:
            raise BuildError(
                f"every {modality} that this run was to embed was rejected ({num_rows:,}); "
                f"siglip2-cache info {self._config.cache} --rejected lists them; {_MEND[modality]}"
            )

    def _teacher(self, checkpoint: Checkpoint, dtype: str) -> Teacher:
        if self._loaded is None:
            self._progress.say(f"loading teacher {checkpoint.given}")
            self._loaded = self._make_teacher(checkpoint, self._device(), dtype)
        return self._loaded

    def _device(self) -> str:
        """Return the device: that of the config, for one of several shares on a machine its own GPU."""
        share = self._config.share
        if share is None or (self._config.workers or 1) > 1:
            return self._config.device
        return own_gpu(self._config.device, share.local_index)

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
            owns=share.owns if (share := self._config.share) else lambda unit: True,
        )

    def _batch_size(self, record: TeacherRecord, modality: Modality) -> int:
        return self._config.batch_size or record.batch_size[modality]

    # -- the work

    def _make_units(
        self,
        cache: Cache,
        record: TeacherRecord,
        checkpoint: Checkpoint,
        jobs: list[Job],
        summary: BuildSummary,
    ) -> None:
        own, helper = self._divide(jobs, record.name)
        if not own and (helper is None or helper.num_left == 0):
            return
        missing = {(j.unit.modality, j.unit.number) for j in jobs}
        done = set(cache.commits(record.name).units) - missing
        refuse_small_disk(cache, record.embed_dim, done)
        order = self._order(cache, record, checkpoint)

        def begin(provenance: Mapping[str, Any]) -> None:
            self._warn_of_other_provenance(cache, record, provenance)
            self._warn_of_other_batch_size(record)
            self._start_progress(own)

        account = Account(self._progress, begin)
        try:
            self._engine(order, len(jobs)).run(order, Ledger(own, helper), account)
        finally:
            self._progress.stop()
            summary.num_units = account.num_units
            summary.num_images = account.num_rows["image"]
            summary.num_texts = account.num_rows["text"]
            summary.num_rejected_now = account.num_rejected
            summary.times, summary.num_decoders = account.times, account.num_decoders
            summary.num_workers = max(1, account.num_ended)
        summary.image_batch, summary.text_batch = account.image_batch, account.text_batch

    def _divide(self, jobs: list[Job], teacher: str) -> tuple[list[Job], Helper | None]:
        """Return this share's own units, and what finds it others when they are made."""
        share = self._config.share
        if share is None:
            return jobs, None
        own = [job for job in jobs if share.owns(job.unit.number)]
        others = [job for job in jobs if not share.owns(job.unit.number)]
        self._progress.say(
            f"share {share} (of {share.told_by}): {format_count(len(own), 'unit')} of {len(jobs):,}"
        )
        return own, Helper(self._files, teacher, others, share, self._say_help)

    def _engine(self, order: WorkOrder, num_units: int) -> Engine:
        """Return what makes the units; more workers than units would only load the teacher."""
        config = self._config
        num_workers = min(config.workers or 1, num_units)
        if config.engine == "local" and num_workers == 1:
            return HereEngine(lambda: self._teacher(order.checkpoint, order.compute_dtype))
        self._release_teacher()
        if config.engine == "local":
            return LocalEngine(self._make_teacher, num_workers=num_workers)
        from .executor.ray_cluster import RayEngine

        return RayEngine(
            self._make_teacher,
            address=config.address,
            num_workers=config.workers,
            gpus_per_worker=config.gpus_per_worker,
            num_units=num_units,
        )

    def _release_teacher(self) -> None:
        """Give back the memory of the teacher that was enrolled: the workers load their own."""
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
            compute_dtype=enroll.dtype_of(record),
            image_batch=image_batch,
            text_batch=self._batch_size(record, "text"),
            decode=enroll.decode_of(record),
            num_decoders=self._config.decode_workers
            if self._config.engine == "ray"  # whose nodes may have other cores than this machine
            else self._config.num_decoders,
            sample_timeout_s=self._config.sample_timeout_s,
            num_threads=self._config.num_threads,
        )

    def _start_progress(self, jobs: Sequence[Job]) -> None:
        of: dict[Modality, list[Job]] = {
            m: [job for job in jobs if job.unit.modality == m] for m in MODALITIES
        }
        totals: dict[Modality, int] = {m: sum(j.num_wanted for j in of[m]) for m in MODALITIES}
        self._progress.start(totals, {m: len(of[m]) for m in MODALITIES})

    def _say_help(self, job: Job) -> None:
        self._progress.say(f"helping with {describe(job)}")
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


def _count_rejected(cache: Cache, teacher: str, summary: BuildSummary) -> None:
    """Count and show rejected rows; a build of which no image, or no text, was embedded fails.

    Raises:
        BuildError: every image, or every text, was rejected.
    """
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
    for modality in MODALITIES:
        num_committed = sum(c.num_rows for c in commits.units_of(modality).values())
        num_planned = cache.manifest.count(modality)
        if num_committed and commits.num_rejected(modality) == num_committed == num_planned:
            of_it = cache.rejected(teacher).filter(pl.col("modality") == modality).head(1)
            key, row, reason = of_it.select("key", "row", "reason").collect().row(0)
            raise BuildError(
                f"every {modality} was rejected ({num_committed:,} of {num_committed:,}), the first: "
                f"{key or f'{modality} row {row}'}: {reason}; {_MEND[modality]}"
            )
