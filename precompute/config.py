"""Settings of a build, and its summary."""

from dataclasses import dataclass, field
from typing import Literal

from ..cores import cores_each, decoders_for
from ..errors import SettingError
from ..images.pixels import DECODES, Decode
from ..siglip import COMPUTE_DTYPES, check_max_num_patches
from ..store.format.layout import MODALITIES, Modality
from ..store.format.pixel_settings import check_quality, check_short_side
from ..store.format.row_encoding import parse_encoding
from ..store.io.location import Location
from ..store.targets.distortion import BUDGET, check_budget
from .executor.unit import StageTimes
from .planning.config import PlanConfig
from .planning.plan import Plan
from .ranks import ProcessRank
from .teacher.identity import TeacherChoices
from .teacher.planned_patches import check_patches

_LARGEST_BATCH = 65_536
"""Catches typos: four batches of pixels are in memory at a time, sixteen of a small NaFlex batch."""

ENGINES = ("local", "ray")

_MOST_WORKERS = 1024
"""Catches typos: each is a process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildConfig:
    """Settings of one run of a build."""

    plan: PlanConfig
    """Settings of the corpus."""

    cache: Location
    """Folder of the cache."""

    teacher: str
    """Hub id or folder of the checkpoint."""

    revision: str | None = None
    """Revision of a hub id; None is its main branch."""

    teacher_name: str | None = None
    """Name of the teacher in the cache; None: the checkpoint's own."""

    device: str = "auto"
    """auto (the first there is of cuda, mps, cpu) or a device name."""

    dtype: str = "auto"
    """auto, float32, bfloat16 or float16; auto is bfloat16 on CUDA, else as the weights are stored."""

    max_num_patches: int | None = None
    """Most patches of a view, for a NaFlex checkpoint; None: as recorded in the cache, else as set in the
    checkpoint's processor."""

    batch_size: int | None = None
    """Images, and texts, in one forward pass; None: as recorded in the cache, else measured once."""

    compile: bool | None = None
    """Whether torch.compile runs the encoder layers of the teacher; None: as recorded in the cache, else
    not."""

    decode: Decode | None = None
    """How images are decoded; None: as recorded in the cache, else exact."""

    targets: str | None = None
    """How targets are stored: float16 or int8; None: as recorded in the cache, else float16."""

    targets_budget: float = BUDGET
    """Largest change of the soft targets by int8, as a share of their entropy."""

    patch_targets: int | None = None
    """Rows and columns of cells of a square view that patch targets are pooled to; None: as recorded in the
    cache, else there are none."""

    patch_dims: int | None = None
    """Values of a cell; None: as recorded in the cache, else the width of the teacher's hidden states."""

    keep_pixels: int | None = None
    """Short side in pixels at which each image is kept beside the targets; None: as recorded in the cache,
    else none are kept."""

    keep_quality: int | None = None
    """Quality of the kept JPEGs, 50 to 100; None: as recorded in the cache, else 90."""

    decode_workers: int | None = None
    """Decoding processes of each worker; 0 decodes in the worker itself; None: one a core, at most 16."""

    sample_timeout_s: float = 60.0
    """Seconds that one image may take to read and decode before it is rejected."""

    retry_rejected: bool = False
    """Retry the rejected rows of committed units."""

    engine: Literal["local", "ray"] = "local"
    """Where the teacher runs: in processes of this machine, or in actors of a Ray cluster."""

    address: str | None = None
    """Address of the Ray cluster; None: RAY_ADDRESS, a cluster on this machine, else a new one here."""

    workers: int | None = None
    """Processes that run the teacher. None: 1, this process; with Ray one for each GPU of the cluster, or
    for each node if it has no GPUs."""

    gpus_per_worker: float | None = None
    """GPUs that Ray gives to a worker; None: 1 if the cluster has GPUs."""

    threads: int | None = None
    """CPU threads of each worker's teacher; None: its part of the cores, or for one worker torch's default.
    Equal numbers give equal bytes."""

    rank: ProcessRank | None = None
    """This process among several that build this cache; None: it is alone."""

    plan_timeout_s: float = 3600.0
    """Seconds that other ranks wait for rank 0 to plan."""

    finish: bool = False
    """Make nothing: report what is missing, or clean up after all ranks and summarise."""

    def __post_init__(self) -> None:
        if self.batch_size is not None and not 1 <= self.batch_size <= _LARGEST_BATCH:
            raise SettingError(f"batch size must be 1 to {_LARGEST_BATCH:,}, got {self.batch_size}")
        if self.decode_workers is not None and not 0 <= self.decode_workers <= _MOST_WORKERS:
            raise SettingError(
                f"decode workers must be 0 to {_MOST_WORKERS:,}, got {self.decode_workers}"
            )
        for name, number in (("workers", self.workers), ("threads", self.threads)):
            if number is not None and not 1 <= number <= _MOST_WORKERS:
                raise SettingError(f"{name} must be 1 to {_MOST_WORKERS:,}, got {number}")
        if self.keep_pixels is not None:
            check_short_side(self.keep_pixels)
        if self.keep_quality is not None:
            check_quality(self.keep_quality)
            if self.keep_pixels is None:
                raise SettingError(f"--keep-quality {self.keep_quality} goes with --keep-pixels")
        if self.engine not in ENGINES:
            raise SettingError(f"engine {self.engine!r} is not one of {', '.join(ENGINES)}")
        if self.engine == "local" and (self.address, self.gpus_per_worker) != (None, None):
            raise SettingError("--address and --gpus-per-worker go with --engine ray")
        if self.gpus_per_worker is not None and not 0 <= self.gpus_per_worker <= 64:
            raise SettingError(f"gpus per worker must be 0 to 64, got {self.gpus_per_worker}")
        if self.finish and self.retry_rejected:
            raise SettingError(
                "--finish makes nothing, so it cannot retry rejected rows; leave out one of the two"
            )
        if not self.plan_timeout_s >= 0:
            raise SettingError(f"share wait must be at least 0 s, got {self.plan_timeout_s}")
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
        if self.targets is not None:
            parse_encoding(self.targets)
        check_budget(self.targets_budget)
        check_patches(self.patch_targets, self.patch_dims)
        if self.device.partition(":")[0] not in ("auto", "cpu", "cuda", "mps"):
            raise SettingError(
                f"device {self.device!r} is not one of auto, cpu, cuda, cuda:NUMBER, mps"
            )

    @property
    def choices(self) -> TeacherChoices:
        """The settings that are part of the teacher's identity."""
        return TeacherChoices(
            compute_dtype=self.dtype,
            decode=self.decode,
            max_num_patches=self.max_num_patches,
            is_compiled=self.compile,
        )

    @property
    def num_threads(self) -> int | None:
        """CPU threads of each worker of this machine.

        Does not depend on the units left: a build resumed for its last unit must not compute it in more
        threads than the others.
        """
        if self.threads is None and self.engine == "local" and (self.workers or 1) > 1:
            return cores_each(self.workers or 1)
        return self.threads

    @property
    def num_decoders(self) -> int:
        """Decoding processes of each worker."""
        if self.decode_workers is not None:
            return self.decode_workers
        return decoders_for(cores_each(self.workers or 1))


@dataclass(slots=True, kw_only=True)
class BuildSummary:
    """What a build did, and what the cache holds after it."""

    plan: Plan
    teacher: str
    num_units: int = 0
    """Units this run committed."""

    num_images: int = 0
    """Images that this run embedded or rejected."""

    num_texts: int = 0
    num_rejected: int = 0
    """Rejected rows in the whole cache, images and texts."""

    num_rejected_now: dict[Modality, int] = field(
        default_factory=lambda: dict.fromkeys(MODALITIES, 0)
    )
    """Rows rejected by this run."""

    first_rejected: list[str] = field(default_factory=list[str])
    """The first few, as ``key: reason``."""

    num_copies: int = 0
    """Images with the bytes of another image, in caches of Parquet files or saved datasets."""

    image_batch: int = 0
    text_batch: int = 0
    elapsed_s: float = 0.0
    num_decoders: int = 0
    """Decoding processes of each worker."""

    num_workers: int = 1
    """Workers whose times are summed: those that were not killed."""

    times: StageTimes = field(default_factory=StageTimes)

    num_kept: int | None = None
    """Images whose pixels are kept; None: the cache keeps none."""

    num_kept_bytes: int = 0
    num_kept_now: int = 0
    """Those that this run kept."""
