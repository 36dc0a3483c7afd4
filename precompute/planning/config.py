"""Settings of a plan."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...errors import SettingError
from ...store.format.augmentation import AugmentationPolicy
from ..sources import TableColumns

MOST_SHARD_ROWS = 2**24
_DEFAULT_UNIT_VIEWS = 16_384


def check_shard_rows(shard_rows: int | None) -> None:
    """Refuse a number of rows of a unit that is out of range; None is allowed.

    Raises:
        SettingError: not 1 to MOST_SHARD_ROWS.
    """
    if shard_rows is not None and not 1 <= shard_rows <= MOST_SHARD_ROWS:
        raise SettingError(f"shard rows must be 1 to {MOST_SHARD_ROWS:,}, got {shard_rows}")


def default_shard_rows(num_views: int) -> int:
    """Return the default rows of a unit: 16,384 views or less, and a power of two."""
    return 2 ** ((_DEFAULT_UNIT_VIEWS // num_views).bit_length() - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanConfig:
    """Settings of a plan. None means: as recorded in the cache, or the default for a new cache."""

    sources: tuple[str, ...]
    """Paths or URLs, or NAME=PATH; the name is a prefix of the keys."""

    columns: TableColumns | None = None
    """Column names of tables, and of .json files beside images, if not the usual names."""

    caption_endings: tuple[str, ...] | None = None
    """Endings of the caption files, or tar members, beside images, if not the usual endings: exactly
    these."""

    shard_rows: int | None = None
    """Rows of a unit. Default: 16,384 divided by the views, rounded down to a power of two."""

    num_views: int | None = None
    """Views of each image. Default 1."""

    view_seed: int | None = None
    """Random seed of the crops. Default 0."""

    view_min_area: float | None = None
    """Smallest fraction of the image in a crop. Default 0.25."""

    augmentation: AugmentationPolicy | None = None
    """Photometric operations of the crops. Default none."""

    labels: Path | None = None
    """File of class names for zero-shot prompts; None: the corpus's own labels."""

    templates: Path | None = None
    """File of prompt templates; None: no prompts are planned."""

    has_stored_views: bool = False
    """Take the views of new tars from the paug.json beside their images, instead of drawing them."""

    corpus_roots: Mapping[str, str] = field(default_factory=dict[str, str])
    """Old folder to new folder, for a corpus that moved."""

    prefix_keys: bool = False
    """Prefix each key with the name of its file, for sources that are new to the cache."""

    changed: Literal["refuse", "skip"] = "refuse"
    """What to do if captions, labels or locations of recorded samples have changed in the corpus: refuse
    the plan, or keep those samples as recorded and plan what is new."""

    def __post_init__(self) -> None:
        if self.changed not in ("refuse", "skip"):
            raise SettingError(f"changed {self.changed!r} is not one of refuse, skip")
        if not self.sources:
            raise SettingError("no source was given; name a folder or a table of images")
        check_shard_rows(self.shard_rows)
        if self.labels is not None and self.templates is None:
            raise SettingError(
                "labels were given without templates; give --templates FILE, one template with {} "
                "a line, for instance: This is a photo of {}."
            )
