"""What workers send to the driver, and what every worker knows about the build."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import BuildError
from ...images.pixels import Decode
from ...siglip import Checkpoint
from ...store.format.layout import Modality
from ...store.format.pixel_settings import PixelSettings
from ...store.io.location import Location
from .unit import StageTimes


class BuildInterrupted(BuildError):  # noqa: N818 - an interruption is not an error
    """The user stopped the build; committed units stay."""

    def __init__(
        self,
        message: str = "stopped; finished units are kept, run the same command again to resume",
    ) -> None:
        super().__init__(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkOrder:
    """Settings of one worker, in whatever process it runs. Picklable."""

    cache: Location
    """Absolute path of the cache's folder."""

    corpus_roots: Mapping[str, str]
    teacher: str
    """Name of the teacher in the cache."""

    checkpoint: Checkpoint | None
    """As recorded; None: targets are imported."""

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
    """CPU threads of the teacher; None: torch's default."""

    targets_budget: float
    """Largest change of the soft targets by int8, as a share of their entropy."""

    pixels: PixelSettings | None = None
    """How the images of a new unit are kept beside its targets; None: they are not."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The teacher is loaded."""

    provenance: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """The worker requests a unit; see ``worker.Take``."""

    modality: Modality | None


@dataclass(frozen=True, slots=True)
class Advanced:
    """Rows were embedded or rejected."""

    modality: Modality
    num_rows: int
    num_rejected: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedUnit:
    """A unit needs no more work."""

    modality: Modality
    number: int
    is_ours: bool
    """False where another worker had committed it, where a retry changed nothing, or would have lost rows."""

    num_wanted: int
    num_rejected: int
    warning: str | None = None
    """Why the last attempt stays, if rows would have been lost."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The worker has ended normally."""

    times: StageTimes
    num_decoders: int
    image_batch: int
    text_batch: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker met an error that ends the build: a full disk, a checkpoint that cannot be loaded."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Died:
    """The worker is gone. The pool detects this; no worker sends it."""

    reason: str


Message = Ready | Request | Advanced | FinishedUnit | Ended | Failed | Died
