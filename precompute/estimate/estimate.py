"""What a build of so many images would take, before any corpus is at hand: siglip2-cache estimate.

Every number comes with its formula. Rates are assumed, from the architecture and a GPU's data sheet, unless
they were measured and given; ``build --dry-run`` counts a corpus that is at hand, and times it.
"""

import math
from dataclasses import dataclass
from typing import Literal

from ...errors import SettingError
from ...siglip import Architecture
from ...store.format.views import ViewPolicy
from ..planning.config import check_shard_rows
from . import costs
from .costs import Workload

MOST_IMAGES = 10**15
"""A typo's limit."""

ASSUMED_IMAGE_BYTES = 100_000

_LARGEST_IMAGE_BYTES = 10**9

Unit = Literal["", "B", "B/s", "FLOP", "FLOP/s", "s", "h", "/s"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityConfig:
    """What a build would be asked to do, and with what."""

    teacher: str
    """Folder, hub id, or short name of a published checkpoint."""

    num_images: int
    num_views: int = 1
    captions_per_image: float = 1.0
    """Captions of an image in the mean."""

    num_texts: int | None = None
    """Unique captions; None: all captions differ."""

    shard_rows: int | None = None
    """Rows of a unit; None: as a build would choose."""

    max_num_patches: int | None = None
    """Patches of a view at most, for a NaFlex checkpoint; None: as its processor is set."""

    num_gpus: int = 1
    """Workers, of a GPU each."""

    gpu: str = "h100"
    """One of costs.PEAK_TFLOPS."""

    peak_tflops: float | None = None
    """Of another GPU: 10^12 bfloat16 operations a second, dense."""

    mfu: float = 0.4
    """Share of the peak that the matrix products reach."""

    images_per_s: float | None = None
    """Measured with these views, of one worker; replaces peak and share for images."""

    texts_per_s: float | None = None
    """Likewise for texts."""

    image_bytes: float | None = None
    """Of an image's file in the mean; None: ASSUMED_IMAGE_BYTES."""

    images_per_tar: int = 10_000

    def __post_init__(self) -> None:
        _refuse_outside("images", self.num_images, 1, MOST_IMAGES)
        _refuse_outside("captions per image", self.captions_per_image, 0, 1000)
        _refuse_outside("gpus", self.num_gpus, 1, 10**6)
        if self.image_bytes is not None:
            _refuse_outside("image bytes", self.image_bytes, 1, _LARGEST_IMAGE_BYTES)
        _refuse_outside("images per tar", self.images_per_tar, 1, MOST_IMAGES)
        for name in ("peak_tflops", "images_per_s", "texts_per_s"):
            rate = getattr(self, name)
            if rate is not None and not 0 < rate < math.inf:
                raise SettingError(f"{name.replace('_', ' ')} must be above 0, got {rate}")
        if not 0 < self.mfu <= 1:
            raise SettingError(f"mfu must be above 0 and at most 1, got {self.mfu}")
        if self.peak_tflops is None and self.gpu not in costs.PEAK_TFLOPS:
            raise SettingError(
                f"gpu {self.gpu!r} is not one of {', '.join(costs.PEAK_TFLOPS)}; of another one say "
                "--peak-tflops"
            )
        if self.num_texts is not None:
            _refuse_outside("texts", self.num_texts, 0, self.num_captions)
        check_shard_rows(self.shard_rows)
        ViewPolicy(num_views=self.num_views)  # refuses what no cache could have

    @property
    def num_captions(self) -> int:
        """Captions of all images."""
        return round(self.num_images * self.captions_per_image)

    @property
    def workload(self) -> Workload:
        """What there is to embed."""
        return Workload(
            num_images=self.num_images,
            num_captions=self.num_captions,
            num_texts=self.num_captions if self.num_texts is None else self.num_texts,
            num_views=self.num_views,
            num_files=-(-self.num_images // self.images_per_tar),
        )


@dataclass(frozen=True, slots=True)
class Quantity:
    """One number and where it comes from."""

    group: str
    name: str
    value: float
    unit: Unit
    formula: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a build would take."""

    config: CapacityConfig
    architecture: Architecture
    quantities: tuple[Quantity, ...]
    notes: tuple[str, ...]

    def __getitem__(self, name: str) -> float:
        """Return a number by its name."""
        return next(each.value for each in self.quantities if each.name == name)


def _refuse_outside(what: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise SettingError(f"{what} must be {least:,} to {most:,}, got {value:,}")
