"""The build: plan, enroll the teacher, make every missing unit, say what became of it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import BuildError, SettingError
from ..siglip import (
    COMPUTE_DTYPES,
    Checkpoint,
    check_max_num_patches,
    resolve_checkpoint,
    resolve_compute_dtype,
    resolve_device,
)
from ..store import layout
from ..store.cache import Cache
from ..store.commits import clear_garbage, roll_forward
from ..store.files import LocalFiles
from ..store.layout import MODALITIES, Modality
from ..store.manifest import TeacherRecord, UnitCommit
from ..store.pixels import DECODES, Decode
from ..store.records import sha256_hex
from . import enroll
from .disk import refuse_small_disk
from .embed import Embedder, split_images
from .plan import Plan, PlanConfig, make_plan
from .progress import PlainProgress, Progress
from .teacher import Teacher
from .units import Job, StageTimes
from .workers import UnitWorker, num_cores

_LARGEST_BATCH = 65_536
"""A typo's limit: four batches of pixels are in memory at a time, of a small NaFlex batch sixteen."""

_MOST_WORKERS = 1024
"""A typo's limit: each is a process."""


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

    max_num_patches: int | None = None
    """Patches of a view at most, for a NaFlex checkpoint; None: what the cache recorded, else what the
    checkpoint's processor is set to."""

    batch_size: int | None = None
    """Images, and texts, in one forward pass; None: what the cache recorded, else measured once."""

    decode: Decode | None = None
    """How pictures are decoded; None: what the cache recorded, else exact."""

    decode_workers: int | None = None
    """Processes that decode; 0 decodes in the main process; None: one a core, at most 16."""

    sample_timeout_s: float = 60.0
    """Seconds that one image may take to read and decode before it is rejected."""

    retry_rejected: bool = False
    """Try the rejected rows of committed units once more."""

    def __post_init__(self) -> None:
        if self.batch_size is not None and not 1 <= self.batch_size <= _LARGEST_BATCH:
            raise SettingError(f"batch size must be 1 to {_LARGEST_BATCH:,}, got {self.batch_size}")
        if self.decode_workers is not None and not 0 <= self.decode_workers <= _MOST_WORKERS:
            raise SettingError(
                f"decode workers must be 0 to {_MOST_WORKERS:,}, got {self.decode_workers}"
            )
        if not self.sample_timeout_s > 0:
            raise SettingError(f"sample timeout must be above 0 s, got {self.sample_timeout_s}")
        if self.dtype not in ("auto", *COMPUTE_DTYPES):
            raise SettingError(
                f"dtype {self.dtype!r} is not one of auto, {', '.join(COMPUTE_DTYPES)}"
            )
        if self.max_num_patches is not None:
            check_max_num_patches(self.max_num_patches)
        if self.decode not in (None, *DECODES):
            raise SettingError(f"decode {self.decode!r} is not one of {', '.join(DECODES)}")
        if self.device.partition(":")[0] not in ("auto", "cpu", "cuda", "mps"):
            raise SettingError(
                f"device {self.device!r} is not one of auto, cpu, cuda, cuda:NUMBER, mps"
            )

    @property
    def choices(self) -> enroll.TeacherChoices:
        """What was chosen about the teacher."""
        return enroll.TeacherChoices(
            compute_dtype=self.dtype, decode=self.decode, max_num_patches=self.max_num_patches
        )

    @property
    def num_workers(self) -> int:
        """Decoding processes."""
        if self.decode_workers is not None:
            return self.decode_workers
        return min(16, num_cores())


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

    num_rejected_now: int = 0
    """Images that this run rejected."""

    first_rejected: list[str] = field(default_factory=list[str])
    """The first few, as ``key: reason``."""

    image_batch: int = 0
    text_batch: int = 0
    elapsed_s: float = 0.0
    num_workers: int = 0
    times: StageTimes = field(default_factory=StageTimes)


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

    def run(self) -> BuildSummary:
        started = time.monotonic()
        checkpoint = resolve_checkpoint(self._config.teacher, revision=self._config.revision)
        checkpoint = self._config.choices.of(checkpoint)
        self._refuse_early()
        plan = make_plan(self._config.plan, self._files, on_scan=self._say_scanning)
        enroll.finish_enrolments(self._files)
        cache = self._open()
        record = self._find_or_enroll(cache, checkpoint)
        checkpoint = enroll.as_recorded(checkpoint, record)
        cache = self._open()
        enroll.grow_arrays(cache, record)
        self._roll_forward_units(record.name)
        summary = BuildSummary(plan=plan, teacher=record.name, num_workers=self._config.num_workers)
        jobs = self._list_jobs(cache, record, checkpoint)
        if jobs:
            self._make_units(cache, record, checkpoint, jobs, summary)
        clear_garbage(self._files)
        summary.times = self._times
        summary.elapsed_s = time.monotonic() - started
        _count_rejected(self._open(), record.name, summary)
        is_all = 0 < summary.num_images == summary.num_rejected_now
        if is_all and not self._config.retry_rejected:
            raise BuildError(
                f"every image that this run was to embed was rejected ({summary.num_images:,}); "
                f"siglip2-cache info {self._config.cache} --rejected lists them; mend them and run "
                "again with --retry-rejected, or say --corpus-root OLD=NEW if the corpus moved"
            )
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
        name, choices = self._config.teacher_name, self._config.choices
        record = enroll.find_teacher(cache, checkpoint, choices, name=name)
        if record is not None:
            return record
        dtype = _settle_dtype(checkpoint, self._config.device, self._config.dtype)
        refuse_small_disk(cache, checkpoint.embed_dim, set())
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
            decode=choices.decode or "exact",
            batch_size={"image": images, "text": texts},
        )
        found = enroll.find_teacher(self._open(), checkpoint, choices, name=name)
        assert found is not None
        return found

    def _roll_forward_units(self, teacher: str) -> None:
        folder = layout.commits_folder(teacher)
        for name in self._files.names(folder):
            if name.endswith(".intent"):
                roll_forward(self._files, f"{folder}/{name.removesuffix('.intent')}")

    def _list_jobs(self, cache: Cache, record: TeacherRecord, checkpoint: Checkpoint) -> list[Job]:
        commits = cache.commits(record.name)
        for message in commits.damaged:
            self._progress.say(f"warning: {message}; the unit is made again")
        jobs: list[Job] = []
        samples, _ = split_images(
            checkpoint.image, self._batch_size(record, "image"), cache.num_views
        )
        for modality in MODALITIES:
            batch = samples if modality == "image" else self._batch_size(record, "text")
            for unit in cache.manifest.units(modality):
                place = (modality, unit.number)
                attempt = commits.next_attempt.get(place, 0)
                done = commits.units.get(place)
                if done is None:
                    jobs.append(Job(unit, attempt, batch))
                elif done.rejected and self._config.retry_rejected:
                    is_sound = self._is_sound(done)
                    jobs.append(Job(unit, attempt, batch, previous=done if is_sound else None))
        return jobs

    def _is_sound(self, commit: UnitCommit) -> bool:
        """Say whether the rows of a unit that are not tried again may be taken over as they are."""
        for path, described in commit.files.items():
            try:
                is_same = sha256_hex(self._files.read(path)) == described["sha256"]
            except FileNotFoundError:
                is_same = False
            if not is_same:
                self._progress.say(f"warning: {path} is damaged; its whole unit is made again")
                return False
        return True

    def _batch_size(self, record: TeacherRecord, modality: Modality) -> int:
        return self._config.batch_size or record.batch_size[modality]

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
        refuse_small_disk(cache, record.embed_dim, done)
        teacher = self._teacher(checkpoint, str(record.identity["compute_dtype"]))
        self._warn_of_other_provenance(cache, record, teacher)
        self._warn_of_other_batch_size(record)
        _, image_batch = split_images(
            checkpoint.image, self._batch_size(record, "image"), cache.num_views
        )
        embedder = Embedder(teacher, image_batch, self._batch_size(record, "text"))
        by_modality: dict[Modality, list[Job]] = {
            m: [job for job in jobs if job.unit.modality == m] for m in MODALITIES
        }
        totals: dict[Modality, int] = {
            m: sum(job.num_wanted for job in by_modality[m]) for m in MODALITIES
        }
        self._progress.start(totals, {m: len(by_modality[m]) for m in MODALITIES})
        worker = UnitWorker(
            cache,
            record.name,
            embedder,
            decode=enroll.decode_of(record),
            num_decoders=self._config.num_workers,
            timeout_s=self._config.sample_timeout_s,
            progress=self._progress,
            times=self._times,
        )
        try:
            worker.run(jobs)
        finally:
            self._progress.stop()
            summary.num_units = worker.num_units
            summary.num_images = worker.num_rows["image"]
            summary.num_texts = worker.num_rows["text"]
            summary.num_rejected_now = worker.num_rejected_images
        summary.image_batch, summary.text_batch = embedder.image_batch, embedder.text_batch

    def _warn_of_other_batch_size(self, record: TeacherRecord) -> None:
        asked = self._config.batch_size
        for modality, recorded in record.batch_size.items():
            if asked is not None and asked != recorded:
                self._progress.say(
                    f"warning: {modality} batch size was {recorded} and is {asked}: embeddings may "
                    "differ from earlier ones in rounding"
                )

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


def _settle_dtype(checkpoint: Checkpoint, device: str, dtype: str) -> str:
    if dtype != "auto":  # no need to ask torch for the device
        return resolve_compute_dtype(checkpoint, "cpu", dtype)
    return resolve_compute_dtype(checkpoint, resolve_device(device), dtype)


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
