"""Views: the part of an image that a target belongs to, and what is done to its pixels.

View 0 is the whole image. Views 1..K-1 are random-resized crops with flips, drawn in the unit square
from (seed, key, view), so that planning reads no pixels and every machine draws the same. Only addition,
multiplication, division and square root are used: IEEE 754 defines their rounding, unlike that of exp
and log.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import SettingError
from .augmentation import COLUMNS, UNCHANGED, Augmentation, AugmentationPolicy, draw_augmentations

VIEW_CODE_VERSION = 1
"""Increased when the same fractions would give other pixels; part of the identity of a teacher."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewPolicy:
    """How the views of a cache were drawn; recorded in cache.json."""

    num_views: int = 1
    """Number of views of each image, including the whole image."""

    seed: int = 0
    """Random seed."""

    min_area: float = 0.25
    """Smallest area of a crop as a fraction of the image; the largest is 1."""

    max_aspect: float = 4 / 3
    """Largest aspect ratio of a crop relative to that of the image; the smallest is its inverse."""

    flip_probability: float = 0.5
    """Probability that a view other than 0 is mirrored left to right."""

    augmentation: AugmentationPolicy = field(default_factory=AugmentationPolicy)
    """Photometric operations of views other than 0."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_views <= 256:
            raise SettingError(f"views must be 1 to 256, got {self.num_views}")
        if not 0 < self.min_area <= 1:
            raise SettingError(f"view min area must be above 0 and at most 1, got {self.min_area}")
        if self.max_aspect < 1:
            raise SettingError(f"view max aspect must be at least 1, got {self.max_aspect}")
        if not 0 <= self.flip_probability <= 1:
            raise SettingError(f"flip probability must be 0 to 1, got {self.flip_probability}")
        if self.num_views == 1 and not self.augmentation.is_none:
            raise SettingError(
                "augment needs at least 2 views: the whole image is never changed; give --views N"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the table ``views`` that describe a view, in the order of view_box."""
        return _BOX_COLUMNS if self.augmentation.is_none else (*_BOX_COLUMNS, *COLUMNS)

    def to_record(self) -> dict[str, Any]:
        """Return the policy as plain values for cache.json; without augmentation if there is none."""
        record = asdict(self)
        if self.augmentation.is_none:
            del record["augmentation"]
        return record


@dataclass(frozen=True, slots=True)
class ViewBox:
    """One view: a box in fractions of the upright image (float32 values), and what is done to its pixels."""

    top: float
    left: float
    height: float
    width: float
    flip: bool = False
    """Whether it is mirrored left to right."""

    augmentation: Augmentation = UNCHANGED


WHOLE_IMAGE = ViewBox(0.0, 0.0, 1.0, 1.0)
_BOX_COLUMNS = ("top", "left", "height", "width", "flip")


def draw_view(policy: ViewPolicy, key: str, view: int) -> ViewBox:
    """Return the box of one view of one sample: a pure function of (policy, key, view)."""
    if view == 0:
        return WHOLE_IMAGE
    drawn = [column.item() for column in _draw(policy, [_message(policy, key, view)])]
    return view_box(drawn)


def view_box(values: Sequence[Any]) -> ViewBox:
    """Return a view from the values of the columns of its policy."""
    num_of_box = len(_BOX_COLUMNS)
    operations = values[num_of_box:]
    augmentation = Augmentation(*operations) if operations else UNCHANGED
    return ViewBox(*values[:num_of_box], augmentation=augmentation)


def draw_views(policy: ViewPolicy, keys: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return all views of some samples as the columns of the policy.

    Each column is (len(keys), num_views). The values are those of draw_view, seven times as fast.
    """
    messages = [_message(policy, key, view) for key in keys for view in range(1, policy.num_views)]
    whole = (*(getattr(WHOLE_IMAGE, name) for name in _BOX_COLUMNS), *astuple(UNCHANGED))
    columns: dict[str, NDArray[Any]] = {}
    for name, value, drawn in zip(policy.columns, whole, _draw(policy, messages), strict=False):
        columns[name] = np.full((len(keys), policy.num_views), value, drawn.dtype)
        columns[name][:, 1:] = drawn.reshape(len(keys), policy.num_views - 1)
    return columns


def pixel_box(box: ViewBox, width: int, height: int) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) in whole pixels of an upright image, at least 1 x 1.

    Teacher and student both convert fractions to pixels with this function.
    """
    left, right = _pixel_span(box.left, box.width, width)
    top, bottom = _pixel_span(box.top, box.height, height)
    return left, top, right, bottom


def _message(policy: ViewPolicy, key: str, view: int) -> bytes:
    return f"{policy.seed}\0{view}\0{key}".encode()


def _draw(policy: ViewPolicy, messages: Sequence[bytes]) -> tuple[NDArray[Any], ...]:
    """Return the columns of the policy, a crop for each message."""
    hashes = (
        hashlib.blake2b(each, digest_size=40, person=b"siglip2-view-1").digest()
        for each in messages
    )
    u_N5 = np.frombuffer(b"".join(hashes), "<u8").reshape(-1, 5) / 2.0**64
    area_u, aspect_u, top_u, left_u, flip_u = u_N5.T
    area = policy.min_area + (1 - policy.min_area) * area_u
    aspect = _draw_aspect(aspect_u, np.minimum(policy.max_aspect, 1 / area))
    height = np.minimum(1.0, np.sqrt(area / aspect))
    width = np.minimum(1.0, np.sqrt(area * aspect))
    boxes = (top_u * (1 - height), left_u * (1 - width), height, width)
    crops = *(each.astype(np.float32) for each in boxes), flip_u < policy.flip_probability
    if policy.augmentation.is_none:
        return crops
    return *crops, *draw_augmentations(policy.augmentation, messages)


def _draw_aspect(u: NDArray[np.float64], limit: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return aspect ratios in [1/limit, limit], with equal probability below and above 1."""
    spread = (limit - 1) * np.abs(2 * u - 1)
    return np.where(u >= 0.5, 1 + spread, 1 / (1 + spread))


def _pixel_span(start: float, extent: float, num_pixels: int) -> tuple[int, int]:
    first = min(num_pixels - 1, math.floor(start * num_pixels + 0.5))
    last = min(num_pixels, math.floor((start + extent) * num_pixels + 0.5))
    return first, max(first + 1, last)
