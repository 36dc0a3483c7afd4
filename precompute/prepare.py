"""What comes before the first unit: refuse, plan and add the teacher, or wait for who does that."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from ..errors import NotACacheError, SettingError
from ..formatting import format_seconds
from ..siglip import Checkpoint, resolve_compute_dtype, resolve_device
from ..store.cache import Cache
from ..store.format import layout
from ..store.format.teacher_record import TeacherRecord
from ..store.io.storage import Storage
from .config import BuildConfig
from .estimate.disk import refuse_small_disk
from .planning.plan import Plan, find_plan, make_plan, standing_plan
from .planning.shared_scan import helping_to_plan, scanning_in_processes
from .shares import Share, wait_for
from .teacher import identity as enroll
from .teacher.teacher import Teacher


class Beginning:
    """Gives a build its plan and its teacher's record."""

    def __init__(
        self,
        config: BuildConfig,
        files: Storage,
        say: Callable[[str], None],
        load: Callable[[Checkpoint, str], Teacher],
    ) -> None:
        """Remember the build; ``load`` gives the live teacher of a checkpoint at a dtype."""
        self._config, self._files, self._say, self._load = config, files, say, load

    def open(self) -> Cache:
        """Return the cache as it is now."""
        return Cache(self._files.root, corpus_roots=self._config.plan.corpus_roots)

    def run(self, checkpoint: Checkpoint) -> tuple[Plan, TeacherRecord]:
        """Return the plan and the teacher's record, which stand in the cache then.

        Raises:
            CacheError: the corpus, a setting or the checkpoint is refused.
            BuildError: this is one of several shares, and the first of them did not plan in time.
        """
        self._refuse_early()
        if self._config.finish:
            return self._find_finished(checkpoint)
        if self._config.share is not None and self._config.share.index > 0:
            return self._wait_for_first(checkpoint, self._config.share)
        plan = make_plan(
            self._config.plan, self._files, on_scan=self._say_scanning, helping=self._scan_ahead
        )
        enroll.finish_enrolments(self._files)
        return plan, self._find_or_enroll(self.open(), checkpoint)

    def _find_finished(self, checkpoint: Checkpoint) -> tuple[Plan, TeacherRecord]:
        cache = self.open()
        record = self._find(cache, checkpoint)
        if record is None:
            raise NotACacheError(
                f"{checkpoint.given} is no teacher of {cache.root} yet; run the build without --finish"
            )
        return standing_plan(cache), record

    def _wait_for_first(self, checkpoint: Checkpoint, share: Share) -> tuple[Plan, TeacherRecord]:
        """Wait until the sources are planned as they are now, and the teacher is there."""
        self._say(
            f"share {share} (of {share.told_by}) waits for share 0/{share.count} to plan, "
            f"{format_seconds(self._config.share_wait_s)} at most"
        )

        def look() -> tuple[Plan, TeacherRecord] | None:
            plan = find_plan(self._config.plan, self._files)
            record = self._find(self.open(), checkpoint) if plan is not None else None
            return (plan, record) if plan is not None and record is not None else None

        what = "plan and to add the teacher"
        with helping_to_plan(self._config.plan, self._files, share):
            timeout_s = self._config.share_wait_s
            return wait_for(look, what=what, share=share, timeout_s=timeout_s, say=self._say)

    def _find(self, cache: Cache, checkpoint: Checkpoint) -> TeacherRecord | None:
        name, choices = self._config.teacher_name, self._config.choices
        return enroll.find_teacher(cache, checkpoint, choices, name=name)

    def _refuse_early(self) -> None:
        """Refuse what would fail only after the corpus is planned, which may take long."""
        root = self._files.root
        if self._files.root_kind() == "file":
            raise SettingError(f"{root} is a file; name a folder for the cache")
        if any("\ud800" <= character <= "\udfff" for character in str(root)):
            raise SettingError(
                f"the folder of the cache, {str(root)!r}, has a name that is not UTF-8, which the "
                "readers of its tables do not take; name another"
            )
        is_new = not self._files.exists(layout.CACHE_RECORD)  # else it may need no device at all
        if is_new and not self._config.finish:
            self._files.check_exclusive()
        if is_new and self._config.device not in ("auto", "cpu"):
            resolve_device(self._config.device)

    def _scan_ahead(self) -> AbstractContextManager[object]:
        """Return what scans for the planner: processes of its own, unless other shares do that."""
        if self._config.share is not None:
            return nullcontext()
        return scanning_in_processes(self._config.plan, self._files)

    def _say_scanning(self) -> None:
        self._say(f"planning {', '.join(self._config.plan.sources)}")

    def _find_or_enroll(self, cache: Cache, checkpoint: Checkpoint) -> TeacherRecord:
        name, choices = self._config.teacher_name, self._config.choices
        record = enroll.find_teacher(cache, checkpoint, choices, name=name)
        if record is not None:
            return record
        dtype = _settle_dtype(checkpoint, self._config.device, self._config.dtype)
        refuse_small_disk(cache, checkpoint.embed_dim, set())
        teacher = self._load(checkpoint, dtype)
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
        found = enroll.find_teacher(self.open(), checkpoint, choices, name=name)
        assert found is not None
        return found


def _settle_dtype(checkpoint: Checkpoint, device: str, dtype: str) -> str:
    if dtype != "auto":  # no need to ask torch for the device
        return resolve_compute_dtype(checkpoint, "cpu", dtype)
    return resolve_compute_dtype(checkpoint, resolve_device(device), dtype)
