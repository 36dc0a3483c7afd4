"""Keeping pixels: the images of committed units, small, in one tar a unit. No teacher is needed."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ...formatting import format_bytes
from ...images.decoder import Decoder
from ...images.image import ImageRef
from ...images.kept import KeptFormat
from ...progress import Task
from ...store.cache import Cache
from ...store.format import layout
from ...store.format.kept_pixels import KeptPixels
from ...store.format.manifest import Unit
from ...store.format.pixel_settings import PixelSettings
from ...store.format.transaction import roll_forward
from ...store.io.storage import Storage
from .driver import stop_on_signals
from .messages import BuildInterrupted
from .pixel_tar import PixelTar, open_tar
from .progress import BuildProgress
from .unit import unit_images

_BATCH_IMAGES = 64
_OTHER_BYTES = "its bytes are not those the teacher saw"


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelJob:
    """A unit whose pixels are to be kept."""

    unit: Unit
    attempt: int
    rejected: dict[int, str]
    """Rows that the teacher rejected, with the reasons."""


def find_pixel_jobs(
    cache: Cache,
    kept: KeptPixels,
    teacher: str,
    *,
    retry_rejected: bool,
    say: Callable[[str], None],
    owns: Callable[[int], bool],
) -> list[PixelJob]:
    """Return the units whose images a teacher has embedded and whose pixels are not kept yet.

    Args:
        cache: the cache as it is now.
        kept: its kept pixels as they are now.
        teacher: the teacher, whose rejected rows are not kept.
        retry_rejected: also return units that lack an image which the teacher has embedded.
        say: called with a warning about each damaged record, whose unit is made again.
        owns: whether this process makes a unit, by its number.
    """
    for message in kept.commits.damaged:
        say(f"warning: {message}; the pixels of the unit are kept again")
    jobs: list[PixelJob] = []
    embedded = cache.commits(teacher).units_of("image")
    for unit in cache.manifest.units("image"):
        commit, done = embedded.get(unit.number), kept.units.get(unit.number)
        if commit is None or not owns(unit.number):
            continue
        lacks_some = done is not None and not done.rejected.keys() <= commit.rejected.keys()
        if done is None or (retry_rejected and lacks_some):
            attempt = kept.commits.next_attempt.get(("image", unit.number), 0)
            jobs.append(PixelJob(unit=unit, attempt=attempt, rejected=dict(commit.rejected)))
    return jobs


def roll_forward_pixels(files: Storage) -> None:
    """Finish commits of kept pixels whose process died between the intent and the record."""
    for name in files.names(layout.PIXELS_COMMITS):
        if name.endswith(".intent"):
            roll_forward(files, f"{layout.PIXELS_COMMITS}/{name.removesuffix('.intent')}")


class PixelKeeper:
    """Decodes images, encodes them small, and commits them unit by unit."""

    def __init__(
        self,
        cache: Cache,
        teacher: str,
        settings: PixelSettings,
        *,
        num_decoders: int,
        timeout_s: float,
        progress: BuildProgress,
    ) -> None:
        """Start nothing yet.

        Args:
            cache: the cache as it is now.
            teacher: the teacher whose images are kept.
            settings: how.
            num_decoders: decoding processes; 0: decode in this process.
            timeout_s: seconds that one image may take.
            progress: where it is shown.
        """
        self._cache, self._teacher, self._progress = cache, teacher, progress
        self._decoder = Decoder(
            KeptFormat(settings),
            batch_images=_BATCH_IMAGES,
            num_workers=num_decoders,
            timeout_s=timeout_s,
        )

    def run(self, jobs: Sequence[PixelJob]) -> None:
        """Make units; finished ones are committed however this ends.

        Raises:
            BuildInterrupted: Ctrl-C or SIGTERM, after the current batch.
            CacheError: the disk is full, the decoders cannot start, a store does not respond.
        """
        task = Task("pixels", sum(job.unit.rows.count - len(job.rejected) for job in jobs))
        stop, num_bytes = threading.Event(), 0
        batches = self._decoder.decode(self._batches(jobs))
        with stop_on_signals(stop), contextlib.closing(batches), contextlib.ExitStack() as opened:
            tar: PixelTar | None = None
            expected, rejected = dict[int, bytes](), dict[int, str]()
            for batch in batches:
                job, is_last = batch.tag
                if tar is None:
                    tar = opened.enter_context(open_tar(self._cache, job.unit, job.attempt))
                    seen = self._cache.seen(self._teacher, job.unit.number)
                    expected = dict(seen.select("row", "sha256").iter_rows())
                    rejected = dict(job.rejected)
                for ref, image in zip(batch.refs, batch.images, strict=True):
                    reason = image.reason
                    if reason is None and image.sha256 != expected[ref.row]:
                        reason = _OTHER_BYTES
                    if reason is None:
                        num_bytes += tar.add(ref.row, image)
                    else:
                        rejected[ref.row] = reason
                task.done += len(batch.refs)
                self._progress.show(task, task.line(format_bytes(num_bytes)))
                if is_last:
                    opened.close()
                    tar.commit(rejected)
                    tar = None
                if stop.is_set():
                    raise BuildInterrupted

    def _batches(
        self, jobs: Sequence[PixelJob]
    ) -> Iterator[tuple[tuple[PixelJob, bool], list[ImageRef]]]:
        """Yield ((unit, whether these are its last images), images); a unit may have no image."""
        for job in jobs:
            refs = [r for r in unit_images(self._cache, job.unit) if r.row not in job.rejected]
            for first in range(0, max(1, len(refs)), _BATCH_IMAGES):
                end = first + _BATCH_IMAGES
                yield (job, end >= len(refs)), refs[first:end]
