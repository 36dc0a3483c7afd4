"""Verifying a cache: every file of it and, where asked, some rows against the live teacher."""

from dataclasses import dataclass
from typing import Any

from ..errors import CacheError, SettingError
from ..formatting import format_count
from ..progress import Display, TaskProgress
from ..store.cache import Cache
from ..store.format.layout import ArrayName
from ..store.verify.verify import Report, verify_cache
from .teacher.reload import find_checkpoint
from .verify_live import Cosines, verify_live


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyConfig:
    """How far to verify."""

    sample: int | None = None
    """Images, and texts, to embed again; None: none, so that no teacher is loaded."""

    teacher: str | None = None
    """Name in the cache of the teacher of the sample; None: the only one."""

    checkpoint: str | None = None
    """Where the teacher's checkpoint is now; None: where it was when it was added."""

    seed: int = 0
    """Random seed of the sample."""

    device: str = "auto"
    """Device of the teacher, as for a build."""

    def __post_init__(self) -> None:
        if self.sample is None and (self.teacher or self.checkpoint):
            raise SettingError(
                "--teacher and --checkpoint go with --sample N: without it no teacher is loaded, and the "
                "files of all teachers are verified"
            )
        if self.sample is not None and (self.sample < 1 or self.seed < 0):
            raise SettingError(
                f"--sample must be at least 1 and --seed at least 0, got {self.sample} and {self.seed}"
            )


@dataclass(frozen=True, slots=True)
class Verification:
    """What verifying found."""

    files: Report
    """Of the files; its faults are those of the live teacher, too."""

    teacher: str = ""
    """Name of the teacher that embedded the sample."""

    cosines: dict[ArrayName, Cosines] | None = None
    """Stored to live embeddings; None: no sample was embedded."""

    @property
    def is_sound(self) -> bool:
        """Return whether there is no fault."""
        return self.files.is_sound

    def as_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        found: dict[str, Any] = {
            "ok": self.is_sound,
            "files": self.files.num_files,
            "bytes": self.files.num_bytes,
            "image_rows": self.files.num_rows["image"],
            "text_rows": self.files.num_rows["text"],
            "rejected": self.files.num_rejected,
            "notes": self.files.notes,
            "faults": self.files.faults,
        }
        if self.cosines is not None:
            found["sample"] = {
                modality: {"count": c.count, "min_cosine": c.min, "mean_cosine": c.mean}
                for modality, c in self.cosines.items()
            }
        return found

    def lines(self) -> list[str]:
        """Return the lines that a person reads."""
        files = self.files
        return [
            f"files      {files.num_files:,} ({files.num_bytes:,} bytes), checksums compared",
            f"rows       {files.num_rows['image']:,} image, {files.num_rows['text']:,} text, "
            f"{files.num_rejected:,} rejected",
            *(
                f"{modality:<10} {c.count:,} embedded again by {self.teacher}: cosine to the stored "
                f"embedding min {c.min:.6f}, mean {c.mean:.6f}"
                for modality, c in (self.cosines or {}).items()
            ),
            *(f"note       {note}" for note in files.notes),
            *(f"FAULT      {fault}" for fault in files.faults),
            "verified: no fault" if self.is_sound else format_count(len(files.faults), "fault"),
        ]


def verify(
    cache: Cache, config: VerifyConfig, *, progress: TaskProgress | None = None
) -> Verification:
    """Return every fault of a cache: of its files, and of the rows that its teacher embeds again.

    A teacher that cannot be run is one more fault, so that the others are still reported.

    Raises:
        SettingError, CheckpointError: the teacher's checkpoint is missing, or is another one.
    """
    progress = progress or TaskProgress(Display())
    if config.sample is None:
        return Verification(verify_cache(cache, progress=progress))
    # Before every file is read, which may take long.
    find_checkpoint(cache, teacher=config.teacher, checkpoint=config.checkpoint)
    report = verify_cache(cache, progress=progress)
    progress.start(f"embedding {config.sample:,} images and texts again", 0)
    try:
        live = verify_live(
            cache,
            config.sample,
            teacher=config.teacher,
            checkpoint=config.checkpoint,
            device=config.device,
            seed=config.seed,
        )
    except CacheError as error:
        report.faults.append(f"the live teacher cannot be run: {error}")
        return Verification(report)
    report.faults += live.faults
    return Verification(report, live.teacher, live.cosines)
