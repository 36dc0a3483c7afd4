"""Whether a training reads the corpus or the kept pixels of its cache."""

import numpy as np

from ...errors import SettingError
from ...siglip import Checkpoint, view_pixels
from ...store.cache import Cache
from ...store.format.kept_pixels import KeptPixels
from ..config import Pixels
from .corpus import Corpus


def choose_pixels(
    cache: Cache, corpus: Corpus, checkpoint: Checkpoint, wanted: Pixels
) -> tuple[KeptPixels | None, str | None]:
    """Return the kept pixels to read, None for the corpus, and why ``auto`` does not read those there are.

    Args:
        cache: the cache.
        corpus: images to read.
        checkpoint: the student.
        wanted: setting ``pixels``.

    Raises:
        SettingError: ``kept``, and some units are not kept, or they are smaller than the student's.
        DamagedCacheError: their record is damaged.
    """
    if wanted == "corpus":
        return None, None
    kept = cache.kept_pixels()
    reason = _why_not(cache, kept, corpus, checkpoint)
    if reason is not None and wanted == "kept":
        raise SettingError(f"pixels kept: {reason}")
    if reason is None and kept is not None and wanted == "auto":
        reason = _which_are_rejected(kept, corpus)
    if reason is None:
        return kept, None
    return None, None if kept is None else f"the corpus is read: {reason}"


def _why_not(
    cache: Cache, kept: KeptPixels | None, corpus: Corpus, checkpoint: Checkpoint
) -> str | None:
    if kept is None:
        return f"{cache.root} keeps none; run siglip2-cache build with --keep-pixels first"
    size, short_side = view_pixels(checkpoint.image), kept.settings.short_side
    if short_side < size:
        return (
            f"{cache.root} keeps {short_side} px on the short side, below the {size} px of the student; "
            f"keep them anew with --keep-pixels {size}, or use --pixels corpus"
        )
    units = set((corpus.rows_N // cache.shard_rows).tolist()) - kept.units.keys()
    if units:
        return (
            f"{cache.root} does not keep the pixels of {len(units):,} units yet (first: {min(units)}); run "
            "the same siglip2-cache build again, or use --pixels corpus"
        )
    return None


def _which_are_rejected(kept: KeptPixels, corpus: Corpus) -> str | None:
    rejected = [row for row, _ in kept.commits.rejected("image")]
    missing = np.intersect1d(corpus.rows_N, np.array(rejected, np.int64))
    if missing.size == 0:
        return None
    return (
        f"the pixels of {missing.size:,} images could not be kept (first: row {missing[0]}); run "
        "siglip2-cache build with --retry-rejected, or use --pixels kept to train without them"
    )
