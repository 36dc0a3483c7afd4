"""The steps before the first unit: check settings, plan and add the teacher, or wait until rank 0 has."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext

from ..errors import NotACacheError, SettingError
from ..formatting import format_seconds
from ..siglip import (
    Checkpoint,
    files_sha256,
    find_architecture,
    resolve_compute_dtype,
    resolve_device,
    weight_files,
)
from ..store.cache import Cache
from ..store.format import layout
from ..store.format.patch_map import PatchMap
from ..store.format.row_encoding import FLOAT16, RowCodec, make_codec, parse_encoding
from ..store.format.teacher_record import Distortion, PatchSettings, TeacherRecord
from ..store.io.storage import Storage
from ..store.targets.distortion import distortion_line, refuse_distortion
from .config import BuildConfig
from .distortion import measure_on_sample
from .estimate.disk import refuse_small_disk
from .patches import fit_on_sample
from .planning.plan import Plan, find_plan, make_plan, recorded_plan
from .planning.shared_scan import scan_in_processes, scan_in_thread
from .ranks import ProcessRank, wait_for_rank_0
from .teacher.identity import (
    add_teacher,
    find_teacher,
    finish_interrupted_teachers,
    refuse_other_patches,
    refuse_other_targets,
)
from .teacher.planned_patches import planned_patches
from .teacher.teacher import Teacher


class Preparation:
    """Provides a build with its plan and its teacher's record."""

    def __init__(
        self,
        config: BuildConfig,
        files: Storage,
        say: Callable[[str], None],
        scanned: Callable[[int], None],
        load: Callable[[Checkpoint, str], Teacher],
    ) -> None:
        """Set the build.

        ``scanned`` counts samples while planning; ``load`` returns the live teacher of a checkpoint at a
        dtype.
        """
        self._config, self._files, self._say, self._load = config, files, say, load
        self._scanned = scanned

    def open(self) -> Cache:
        """Return the cache as it is now."""
        return Cache(self._files.root, corpus_roots=self._config.plan.corpus_roots)

    def run(self, checkpoint: Checkpoint) -> tuple[Plan, TeacherRecord]:
        """Return the plan and the teacher's record, both committed to the cache.

        Raises:
            CacheError: the corpus, a setting or the checkpoint is refused.
            BuildError: this is one of several ranks, and rank 0 did not plan in time.
        """
        self._refuse_early()
        arch, config = find_architecture(str(checkpoint.folder)), self._config
        patches = planned_patches(arch, config.patch_targets, config.patch_dims)
        if self._config.finish:
            return self._find_finished(checkpoint)
        if self._config.rank is not None and self._config.rank.rank > 0:
            return self._wait_for_rank_0(checkpoint, self._config.rank)
        plan = make_plan(
            self._config.plan,
            self._files,
            on_scan=self._say_scanning,
            on_samples=self._scanned,
            scan_ahead=self._scan_ahead,
        )
        finish_interrupted_teachers(self._files)
        return plan, self._find_or_add_teacher(self.open(), checkpoint, patches)

    def _find_finished(self, checkpoint: Checkpoint) -> tuple[Plan, TeacherRecord]:
        cache = self.open()
        record = self._find(cache, checkpoint)
        if record is None:
            raise NotACacheError(
                f"{checkpoint.given} is not a teacher of {cache.root} yet; run the build without --finish"
            )
        return recorded_plan(cache), record

    def _wait_for_rank_0(
        self, checkpoint: Checkpoint, rank: ProcessRank
    ) -> tuple[Plan, TeacherRecord]:
        """Wait until the sources are planned as they are now, and the teacher is added."""
        timeout_s = self._config.plan_timeout_s
        self._say(
            f"rank {rank} (from {rank.source}) waits for rank 0 to plan, at most "
            f"{format_seconds(timeout_s)}"
        )

        def look() -> tuple[Plan, TeacherRecord] | None:
            plan = find_plan(self._config.plan, self._files)
            record = self._find(self.open(), checkpoint) if plan is not None else None
            return (plan, record) if plan is not None and record is not None else None

        what = "plan and add the teacher"
        with scan_in_thread(self._config.plan, self._files, rank):
            return wait_for_rank_0(look, what=what, rank=rank, timeout_s=timeout_s, say=self._say)

    def _find(self, cache: Cache, checkpoint: Checkpoint) -> TeacherRecord | None:
        name, choices = self._config.teacher_name, self._config.choices
        record = find_teacher(cache, checkpoint, choices, name=name)
        if record is not None:
            refuse_other_targets(cache, record, self._config.targets)
            grid, dim = self._config.patch_targets, self._config.patch_dims
            refuse_other_patches(cache, record, grid, dim)
        return record

    def _refuse_early(self) -> None:
        """Refuse settings that would fail only after planning, which may take long."""
        root = self._files.root
        if self._files.root_kind() == "file":
            raise SettingError(f"{root} is a file; name a folder for the cache")
        if any("\ud800" <= character <= "\udfff" for character in str(root)):
            raise SettingError(
                f"the name of the cache folder, {str(root)!r}, is not UTF-8, and readers of its tables "
                "would refuse it; name another folder"
            )
        is_new = not self._files.exists(layout.CACHE_RECORD)  # otherwise it may need no device
        if is_new and not self._config.finish:
            self._files.check_exclusive()
        if is_new and self._config.device not in ("auto", "cpu"):
            resolve_device(self._config.device)

    def _scan_ahead(self) -> AbstractContextManager[object]:
        """Return a context that scans for the planner: in processes, unless other ranks scan for it."""
        if self._config.rank is not None:
            return nullcontext()
        return scan_in_processes(self._config.plan, self._files)

    def _say_scanning(self) -> None:
        self._say(f"planning {', '.join(self._config.plan.sources)}")

    def _find_or_add_teacher(
        self, cache: Cache, checkpoint: Checkpoint, patches: PatchSettings | None
    ) -> TeacherRecord:
        record = self._find(cache, checkpoint)
        if record is not None:
            return record
        dtype = _settle_dtype(checkpoint, self._config.device, self._config.dtype)
        codec = make_codec(parse_encoding(self._config.targets or "float16"), checkpoint.embed_dim)
        layouts = cache.manifest.layouts(checkpoint.embed_dim, codec.encoding, patches)
        refuse_small_disk(cache, layouts, set())
        with ThreadPoolExecutor(1) as beside:  # loading is the work of one core, and so is hashing
            hashed = beside.submit(files_sha256, weight_files(checkpoint.folder))
            teacher = self._load(checkpoint, dtype)
            hashed.result()  # remembered for the teacher's identity
        images, texts = (
            teacher.auto_batch_size()
            if self._config.batch_size is None
            else (self._config.batch_size, self._config.batch_size)
        )
        add_teacher(
            cache,
            checkpoint,
            teacher,
            name=self._config.teacher_name,
            compute_dtype=dtype,
            decode=self._config.decode or "exact",
            is_compiled=bool(self._config.compile),
            batch_size={"image": images, "text": texts},
            codec=codec,
            distortion=self._measure(cache, codec, teacher, images),
            patches=self._fit_patches(cache, patches, teacher, images),
        )
        found = self._find(self.open(), checkpoint)
        assert found is not None
        return found

    def _measure(
        self, cache: Cache, codec: RowCodec, teacher: Teacher, batch_size: int
    ) -> Distortion | None:
        """Return what int8 targets change, before anything of the teacher is written.

        Raises:
            SettingError: it is above the budget.
        """
        if codec.encoding == FLOAT16:
            return None
        self._say(f"measuring what {codec.encoding.name} changes")
        decode = self._config.decode or "exact"
        found = measure_on_sample(cache, codec, teacher, batch_size=batch_size, decode=decode)
        refuse_distortion(found, self._config.targets_budget, codec.encoding.name)
        self._say(distortion_line(found, codec.encoding.name))
        return found

    def _fit_patches(
        self, cache: Cache, settings: PatchSettings | None, teacher: Teacher, batch_size: int
    ) -> PatchMap | None:
        """Return the map of patch targets, fitted before anything of the teacher is written.

        Raises:
            SettingError: no image of the sample can be read.
        """
        if settings is None:
            return None
        self._say("fitting the map of patch targets")
        found = fit_on_sample(
            cache,
            teacher,
            grid=settings.grid,
            dim=settings.dim,
            batch_size=batch_size,
            decode=self._config.decode or "exact",
        )
        fitted = found.settings
        self._say(
            f"patch targets: {fitted.num_cells:,} cells of {fitted.dim:,} of {fitted.width:,} values keep "
            f"{100 * fitted.kept:.2f} % of the squared norm (measured on {fitted.num_images:,} images)"
        )
        return found


def _settle_dtype(checkpoint: Checkpoint, device: str, dtype: str) -> str:
    if dtype != "auto":  # no need to ask torch for the device
        return resolve_compute_dtype(checkpoint, "cpu", dtype)
    return resolve_compute_dtype(checkpoint, resolve_device(device), dtype)
