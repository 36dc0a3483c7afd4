"""Views: which part of an image a target belongs to.

View 0 is the whole image. Views 1..K-1 are random-resized crops with flips, drawn in the unit square
from (seed, key, view), so that planning reads no pixel and every machine draws the same. Only
addition, multiplication, division and square root are used: IEEE 754 rounds these alike everywhere,
which it does not promise of exp and log.
"""

import hashlib
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..errors import SettingError

VIEW_CODE_VERSION = 1
"""Raised when the same fractions would give other pixels; part of every teacher's identity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewPolicy:
    """How the views of a cache were drawn; recorded whole in cache.json."""

    num_views: int = 1
    """Views of each image, the whole image included."""

    seed: int = 0
    """Seed of the draws."""

    min_area: float = 0.25
    """Smallest share of the image's area in a crop; the largest is 1."""

    max_aspect: float = 4 / 3
    """Largest aspect ratio of a crop relative to the image's own; the smallest is its inverse."""

    flip_probability: float = 0.5
    """Share of views 1..K-1 that are mirrored left to right."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_views <= 256:
            raise SettingError(f"views must be 1 to 256, got {self.num_views}")
        if not 0 < self.min_area <= 1:
            raise SettingError(f"view min area must be above 0 and at most 1, got {self.min_area}")
        if self.max_aspect < 1:
            raise SettingError(f"view max aspect must be at least 1, got {self.max_aspect}")
        if not 0 <= self.flip_probability <= 1:
            raise SettingError(f"flip probability must be 0 to 1, got {self.flip_probability}")

    def to_record(self) -> dict[str, Any]:
        """Return the policy as plain values for cache.json."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ViewBox:
    """One view: fractions of the upright image (float32 values), and whether it is mirrored."""

    top: float
    left: float
    height: float
    width: float
    flip: bool = False


WHOLE_IMAGE = ViewBox(0.0, 0.0, 1.0, 1.0)


def draw_view(policy: ViewPolicy, key: str, view: int) -> ViewBox:
    """Return the box of one view of one sample: a pure function of (policy, key, view)."""
    if view == 0:
        return WHOLE_IMAGE
    message = f"{policy.seed}\0{view}\0{key}".encode()
    words = hashlib.blake2b(message, digest_size=40, person=b"siglip2-view-1").digest()
    area_u, aspect_u, top_u, left_u, flip_u = (
        int.from_bytes(words[8 * i : 8 * i + 8], "little") / 2**64 for i in range(5)
    )
    area = policy.min_area + (1 - policy.min_area) * area_u
    aspect = _draw_aspect(aspect_u, min(policy.max_aspect, 1 / area))
    height = min(1.0, math.sqrt(area / aspect))
    width = min(1.0, math.sqrt(area * aspect))
    return ViewBox(
        _float32(top_u * (1 - height)),
        _float32(left_u * (1 - width)),
        _float32(height),
        _float32(width),
        flip_u < policy.flip_probability,
    )


def pixel_box(box: ViewBox, width: int, height: int) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) in whole pixels of an upright image, at least 1 x 1.

    The one place where fractions become pixels, for teacher and student alike.
    """
    left, right = _pixel_span(box.left, box.width, width)
    top, bottom = _pixel_span(box.top, box.height, height)
    return left, top, right, bottom


def _draw_aspect(u: float, limit: float) -> float:
    """Return a ratio in [1/limit, limit], as often below 1 as above."""
    spread = (limit - 1) * abs(2 * u - 1)
    return 1 + spread if u >= 0.5 else 1 / (1 + spread)


def _pixel_span(start: float, extent: float, num_pixels: int) -> tuple[int, int]:
    first = min(num_pixels - 1, math.floor(start * num_pixels + 0.5))
    last = min(num_pixels, math.floor((start + extent) * num_pixels + 0.5))
    return first, max(first + 1, last)


def _float32(value: float) -> float:
    return float(np.float32(value))
