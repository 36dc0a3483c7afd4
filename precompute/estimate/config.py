"""Settings of an estimate."""

import math
from dataclasses import dataclass

from ...errors import SettingError
from ...store.format.pixel_settings import check_short_side
from ...store.format.row_encoding import parse_encoding
from ...store.format.views import ViewPolicy
from ..planning.config import check_shard_rows
from ..teacher.planned_patches import check_patches

PEAK_TFLOPS = {
    "h100": 989.0,
    "h100-pcie": 756.0,
    "h200": 989.0,
    "b200": 2250.0,
    "a100": 312.0,
    "a10": 125.0,
    "l4": 121.0,
    "l40s": 362.0,
    "mi300x": 1307.0,
    "rtx3090": 71.0,
    "rtx4090": 165.0,
    "t4": 65.0,
}
"""10^12 dense bfloat16 operations a second (t4: float16) with float32 sums, from vendors' data sheets."""

_MOST_IMAGES = 10**15  # catches typos


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateConfig:
    """The corpus, the teacher and the hardware of a build to estimate."""

    teacher: str
    """Folder, hub id, or short name of a published checkpoint."""

    num_images: int
    num_views: int = 1
    captions_per_image: float = 1.0
    """Mean number of captions of an image."""

    num_texts: int | None = None
    """Unique captions; None: all captions differ."""

    shard_rows: int | None = None
    """Rows of a unit; None: as a build would choose."""

    max_num_patches: int | None = None
    """Most patches of a view, for a NaFlex checkpoint; None: as set in its processor."""

    num_gpus: int = 1
    """Workers, each with one GPU."""

    gpu: str = "h100"
    """One of PEAK_TFLOPS."""

    peak_tflops: float | None = None
    """Peak of another GPU: 10^12 dense bfloat16 operations a second."""

    mfu: float = 0.4
    """Assumed model FLOPs utilisation, 0 to 1."""

    images_per_s: float | None = None
    """Measured images per second of one worker, with these views; None: from peak and mfu."""

    texts_per_s: float | None = None
    """Measured texts per second of one worker; None: from peak and mfu."""

    image_bytes: float | None = None
    """Mean size of an image file; None: 100 kB, assumed."""

    images_per_tar: int = 10_000

    targets: str = "float16"
    """How targets are stored: float16 or int8."""

    patch_targets: int | None = None
    """Rows and columns of cells of a square view that patch targets are pooled to; None: there are none."""

    patch_dims: int | None = None
    """Values of a cell; None: the width of the teacher."""

    keep_pixels: int | None = None
    """Short side in pixels at which each image is kept; None: none are."""

    def __post_init__(self) -> None:
        ranges = (
            ("images", self.num_images, 1, _MOST_IMAGES),
            ("captions per image", self.captions_per_image, 0, 1000),
            ("gpus", self.num_gpus, 1, 10**6),
            ("image bytes", self.image_bytes, 1, 10**9),
            ("images per tar", self.images_per_tar, 1, _MOST_IMAGES),
        )
        for what, value, least, most in ranges:
            _refuse_outside(what, value, least, most)
        for name in ("peak_tflops", "images_per_s", "texts_per_s"):
            rate = getattr(self, name)
            if rate is not None and not 0 < rate < math.inf:
                raise SettingError(f"{name.replace('_', ' ')} must be above 0, got {rate}")
        if not 0 < self.mfu <= 1:
            raise SettingError(f"mfu must be above 0 and at most 1, got {self.mfu}")
        if self.peak_tflops is None and self.gpu not in PEAK_TFLOPS:
            raise SettingError(
                f"gpu {self.gpu!r} is not one of {', '.join(PEAK_TFLOPS)}; for another one use "
                "--peak-tflops"
            )
        _refuse_outside("texts", self.num_texts, 0, self.num_captions)
        check_shard_rows(self.shard_rows)
        if self.keep_pixels is not None:
            check_short_side(self.keep_pixels)
        parse_encoding(self.targets)
        check_patches(self.patch_targets, self.patch_dims)
        ViewPolicy(num_views=self.num_views)  # refuses what no cache could have

    @property
    def num_captions(self) -> int:
        """Captions of all images."""
        return round(self.num_images * self.captions_per_image)

    @property
    def num_unique_texts(self) -> int:
        """Unique captions."""
        return self.num_captions if self.num_texts is None else self.num_texts


def _refuse_outside(what: str, value: float | None, least: float, most: float) -> None:
    if value is not None and not least <= value <= most:
        raise SettingError(f"{what} must be {least:,} to {most:,}, got {value:,}")
