"""Keeping pixels: the images of committed units, small, in one tar a unit. No teacher is needed."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ...formatting import format_bytes, format_count
from ...images.decoder import Decoder
from ...images.image import DecodedImage, ImageRef
from ...images.kept import KeptFormat
from ...progress import Task
from ...store.cache import Cache
from ...store.format import layout
from ...store.format.kept_pixels import KeptPixels
from ...store.format.manifest import Unit
from ...store.format.pixel_settings import PixelSettings
from ...store.format.transaction import roll_forward
from ...store.format.unit_records import UnitRecord
from ...store.io.storage import Storage
from .driver import stop_on_signals
from .messages import BuildInterrupted
from .pixel_tar import PixelTar, open_tar
from .previous_pixels import PreviousPixels, read_previous_pixels
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

    previous: UnitRecord | None
    """The last attempt, whose images are taken over; None: there is none, or its record is damaged."""


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
            rejected = dict(commit.rejected)
            jobs.append(PixelJob(unit=unit, attempt=attempt, rejected=rejected, previous=done))
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
            for batch in batches:
                rows, is_last = batch.tag
                if tar is None:
                    job: PixelJob = rows.job
                    tar = opened.enter_context(open_tar(self._cache, job.unit, job.attempt))
                    task.total -= job.unit.rows.count - len(job.rejected) - rows.num_decoded
                for ref, image in zip(batch.refs, batch.images, strict=True):
                    rows.copy(tar, before=ref.row)
                    rows.add(tar, ref.row, image)
                task.done += len(batch.refs)
                if is_last:
                    rows.copy(tar, before=rows.job.unit.rows.end)
                    opened.close()
                    self._publish(tar, rows)
                    num_bytes += tar.num_bytes
                    tar = None
                shown = num_bytes + (0 if tar is None else tar.num_bytes)
                self._progress.show(task, task.line(format_bytes(shown)))
                if stop.is_set():
                    raise BuildInterrupted

    def _publish(self, tar: PixelTar, rows: "_UnitPixels") -> None:
        """Publish a unit, unless images of its last attempt would be lost."""
        lost = sorted(rows.previous.at_stake & rows.rejected.keys())
        if not lost:
            tar.commit(rows.rejected)
            return
        tar.abandon()
        damaged = rows.previous.damaged
        self._progress.say(
            f"warning: {damaged} is damaged; the pixels of image unit {tar.unit.number} stay as they are: "
            f"made again they would lose {format_count(len(lost), 'image')} (first: row {lost[0]}: "
            f"{rows.rejected[lost[0]]}); make these files readable, or restore {damaged} from a copy, and "
            "run again with --retry-rejected"
        )

    def _batches(
        self, jobs: Sequence[PixelJob]
    ) -> Iterator[tuple[tuple["_UnitPixels", bool], list[ImageRef]]]:
        """Yield ((unit, whether these are its last images), images); a unit may have no image to decode."""
        for job in jobs:
            rows = self._open(job)
            refs = [ref for ref in unit_images(self._cache, job.unit) if rows.is_decoded(ref.row)]
            rows.num_decoded = len(refs)
            for first in range(0, max(1, len(refs)), _BATCH_IMAGES):
                end = first + _BATCH_IMAGES
                yield (rows, end >= len(refs)), refs[first:end]

    def _open(self, job: PixelJob) -> "_UnitPixels":
        """Return a unit before its images are decoded, with those that are taken over."""
        files, number = self._cache.files, job.unit.number
        expected = dict(self._cache.seen(self._teacher, number).select("row", "sha256").iter_rows())
        previous = read_previous_pixels(files, job.unit, job.previous)
        rejected = {row: job.rejected[row] for row in job.rejected if row not in previous.places}
        return _UnitPixels(job, previous, expected, rejected)


@dataclass(slots=True)
class _UnitPixels:
    """A unit whose images are decoded, or copied from its last attempt."""

    job: PixelJob
    previous: PreviousPixels
    expected: dict[int, bytes | None]
    """Hash by row of the image that the teacher saw."""

    rejected: dict[int, str]
    """Reason by row of each image that is not kept, so far."""

    num_decoded: int = 0
    copied: deque[int] = field(default_factory=deque[int])
    """Rows that are not decoded, ascending, as far as they are not in the tar yet."""

    def __post_init__(self) -> None:
        self.copied.extend(row for row in self.previous.places if not self.is_decoded(row))

    def is_decoded(self, row: int) -> bool:
        """Return whether the image of a row is read from the corpus."""
        if row in self.job.rejected:
            return False
        return self.previous.source(row) != self.expected[row]

    def copy(self, tar: PixelTar, *, before: int) -> None:
        """Append the images before a row that are not decoded."""
        while self.copied and self.copied[0] < before:
            row = self.copied.popleft()
            tar.add(row, self.previous.image(row))

    def add(self, tar: PixelTar, row: int, image: DecodedImage) -> None:
        """Append a decoded image. Without one, that of the last attempt stays, even if of other bytes."""
        reason = image.reason
        if reason is None and image.sha256 != self.expected[row]:
            reason = _OTHER_BYTES
        if reason is None:
            tar.add(row, image)
        elif row in self.previous.places:
            tar.add(row, self.previous.image(row))
        else:
            self.rejected[row] = reason
