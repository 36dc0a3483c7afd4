"""Images and captions of a cache on which targets are compared before and after they are encoded."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from .cache import Cache
from .format.catalog import read_part

_MOST = 4096
"""Four batches of 1,024."""


def choose_pairs(cache: Cache, teacher: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return images that have a target, and a caption of each that has one.

    Without such pairs images alone, or texts alone. Captions are read from one part of the catalog.
    """
    images, texts = cache.image_targets(teacher), cache.text_targets(teacher)
    empty = np.empty(0, np.int64)
    for part in cache.manifest.parts("captions"):
        frame = read_part("captions", cache.part_file(part)).unique("row", keep="first").sort("row")
        has_both = images.available(frame["row"].to_numpy())
        has_both &= texts.available(frame["text_row"].to_numpy())
        frame = frame.filter(pl.Series(has_both))
        if frame.height >= 2:
            chosen = _spread(frame.height)
            return frame["row"].to_numpy()[chosen], frame["text_row"].to_numpy()[chosen]
    rows = images.available_rows()
    if len(rows):
        return rows[_spread(len(rows))], empty
    text_rows = texts.available_rows()
    return empty, text_rows[_spread(len(text_rows))]


def _spread(count: int) -> NDArray[np.int64]:
    """Return at most _MOST positions, evenly spaced."""
    return np.unique(np.linspace(0, max(0, count - 1), min(count, _MOST)).astype(np.int64))
