"""Keeping the images of a cache small beside its targets: which settings, and which units."""

from collections.abc import Callable

from ..cores import decoders_for, num_cores
from ..errors import BuildError, SettingError
from ..formatting import format_count
from ..siglip import Checkpoint, view_pixels
from ..store.cache import Cache
from ..store.format.kept_pixels import KeptPixels, create_pixel_settings, read_pixel_settings
from ..store.format.pixel_settings import PixelSettings
from .config import BuildConfig, BuildSummary
from .executor.keep_pixels import PixelKeeper, find_pixel_jobs, roll_forward_pixels
from .executor.progress import BuildProgress

_QUALITY = 90


def settle_pixel_settings(
    config: BuildConfig, cache: Cache, checkpoint: Checkpoint, say: Callable[[str], None]
) -> PixelSettings | None:
    """Return how this build keeps pixels, which is recorded; None: it does not.

    Raises:
        SettingError: the cache keeps them in another way.
    """
    recorded = read_pixel_settings(cache.files)
    if recorded is None:
        if config.keep_pixels is None:
            return None
        wanted = PixelSettings(
            short_side=config.keep_pixels,
            quality=config.keep_quality or _QUALITY,
            on_white=checkpoint.image.on_white,
        )
        create_pixel_settings(cache.files, wanted)
        size = view_pixels(checkpoint.image)
        if wanted.short_side < size:
            say(
                f"warning: --keep-pixels {wanted.short_side} is below the {size} px that the teacher sees; "
                f"train students of at most {wanted.short_side} px from these pixels"
            )
        recorded = read_pixel_settings(cache.files)
        assert recorded is not None
    wanted = _wanted(config, recorded)
    if wanted != recorded:
        raise SettingError(
            f"{cache.root} keeps pixels with --keep-pixels {recorded.short_side} --keep-quality "
            f"{recorded.quality}, now they are {wanted.short_side} and {wanted.quality}; leave the options "
            "out, or remove its folder pixels to keep them anew"
        )
    return recorded


def _wanted(config: BuildConfig, default: PixelSettings) -> PixelSettings:
    return PixelSettings(
        short_side=config.keep_pixels or default.short_side,
        quality=config.keep_quality or default.quality,
        on_white=default.on_white,
    )


def keep_pixels(
    config: BuildConfig,
    cache: Cache,
    settings: PixelSettings,
    progress: BuildProgress,
    summary: BuildSummary,
    num_before: int,
) -> None:
    """Keep the pixels of the units that a teacher embedded in an earlier run; count all in the summary.

    Those of units that this run embeds are kept as it goes. One of several ranks makes its own units.

    Args:
        config: the build.
        cache: the cache as it is now.
        settings: how they are kept.
        progress: where it is shown.
        summary: names the teacher.
        num_before: images kept before this run.

    Raises:
        BuildInterrupted: Ctrl-C or SIGTERM, after the current batch.
        BuildError: ``config.finish``, and some are missing.
    """
    roll_forward_pixels(cache.files)
    rank = config.rank
    before = _kept(cache)
    jobs = find_pixel_jobs(
        cache,
        before,
        summary.teacher,
        retry_rejected=config.retry_rejected,
        say=progress.say,
        owns=rank.owns if rank else lambda unit: True,
    )
    if config.finish and jobs:
        raise BuildError(
            f"{cache.root} is not finished: the pixels of {format_count(len(jobs), 'unit')} are not kept "
            f"(first: {jobs[0].unit.number}); run the build without --finish"
        )
    if jobs:
        num_decoders = config.decode_workers
        keeper = PixelKeeper(
            cache,
            summary.teacher,
            settings,
            num_decoders=decoders_for(num_cores()) if num_decoders is None else num_decoders,
            timeout_s=config.sample_timeout_s,
            progress=progress,
        )
        try:
            keeper.run(jobs)
        finally:
            progress.stop()
    kept = _kept(cache)
    summary.num_kept, summary.num_kept_bytes = kept.num_images, kept.num_bytes
    summary.num_kept_now = kept.num_images - num_before


def _kept(cache: Cache) -> KeptPixels:
    kept = cache.kept_pixels()
    assert kept is not None
    return kept
