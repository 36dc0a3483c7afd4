"""What img2dataset wrote in its format "files": a sub-folder for each shard, images and texts in it.

Source: img2dataset 1.47, writer.py.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from ...errors import SourceError
from ...store.format.layout import CACHE_RECORD, CATALOG
from ...store.io.location import Location
from ...store.io.requests import NAMELESS
from .base import CorpusPart, Source
from .fields.caption_endings import CaptionChoice
from .fields.caption_files import read_bytes
from .fields.sidecars import SECOND_IMAGE, describe_image
from .fields.unused_texts import LetterlessTexts, UnreadTexts
from .folder_listing import FolderListing, count_unread, list_folder
from .image_files import IMAGE_ENDINGS
from .img2dataset_records import RecordedFolder, ShardRecords
from .listing import TWO_SLASHES, exists, is_folder, printable, scan_folder, size_and_time
from .problem_tally import ProblemTally
from .samples import Problem, Sample
from .text import is_unicode

_SHARD_FOLDER = re.compile(r"\d+")  # img2dataset writes 5 digits by default


@dataclass(frozen=True, slots=True)
class Img2datasetFiles(Source):
    """A folder that img2dataset wrote in its format "files": a sub-folder for each shard."""

    kind: ClassVar[str] = "img2dataset"

    def _own_parts(self) -> Iterator[CorpusPart]:
        """Yield one part per shard, by name.

        Raises:
            SourceError: the folder cannot be read.
        """
        recorded = RecordedFolder(str(self.root))
        shards, others = _folders(str(self.root))
        if others:
            yield CorpusPart("", partial(unread_folders, self.root, others))
        for name in shards:
            records = recorded.find_records(name)
            state = records.fingerprint() if records else "none"
            try:
                state += f" {self._list_shard(name).fingerprint()}"
            except PermissionError:
                state += " may not be read"
            yield CorpusPart(name, partial(self._scan_shard, name, records), state)

    def _list_shard(self, name: str) -> FolderListing:
        folder = f"{self.root}/{name}"
        try:
            return list_folder(folder, replace(self.choice, has_class_files=True))
        except PermissionError:
            raise
        except OSError as error:
            raise SourceError(f"{folder} cannot be read ({error.strerror})") from error

    def _scan_shard(self, name: str, records: ShardRecords | None) -> Iterator[Sample | Problem]:
        folder = f"{self.root}/{name}"
        if records is not None and records.unfinished is not None:
            yield records.skipped(folder)
            return
        try:
            listing = self._list_shard(name)
        except PermissionError as error:
            reason = f"the folder cannot be read ({error.strerror})"
            yield Problem(place=printable(folder), reason=reason)
            return
        yield from listing.all_problems()
        tally = ProblemTally(printable(folder))
        of_key: dict[str, list[str]] = {}
        for image in listing.images:
            of_key.setdefault(os.path.splitext(image)[0], []).append(image)
        without_caption = set[str]()
        letterless = LetterlessTexts("files")
        for key, images in of_key.items():
            for item in self._sample(name, key, images, listing, tally, letterless):
                if isinstance(item, Sample) and not item.captions:
                    without_caption.add(key)
                yield item
        for text, key in listing.texts.unused():
            ending = os.path.splitext(text)[1].lower()
            reason = (
                f"a second {ending} of its sample, not used"
                if key in of_key
                else "there is no image to it"
            )
            problem = Problem(place=printable(f"{folder}/{text}"), reason=reason, key=key)
            yield from tally.add(reason, problem)
        yield from tally.remaining()
        yield from letterless.notes()
        unread = UnreadTexts("files")
        count_unread(listing, without_caption, unread)
        yield from unread.notes()
        if records is not None:
            yield from records.problems()

    def _sample(
        self,
        shard: str,
        key: str,
        images: list[str],
        listing: FolderListing,
        tally: ProblemTally,
        letterless: LetterlessTexts,
    ) -> Iterator[Sample | Problem]:
        folder = f"{self.root}/{shard}"
        image = min(reversed(images), key=_preference)
        place = printable(f"{folder}/{image}")
        if not is_unicode(key):
            reason = "the file name is not UTF-8; rename it"
            yield from tally.add(reason, Problem(place=place, reason=reason))
            return
        texts = {ending: f"{folder}/{name}" for ending, name in listing.texts.texts_of(image)}
        reads = {ending: partial(read_bytes, path) for ending, path in texts.items()}
        found = describe_image(reads, self.choice)
        letterless.add(found.num_letterless, lambda ending: printable(texts[ending]))
        num_bytes, mtime_ns = listing.facts.get(image) or size_and_time(f"{folder}/{image}")
        yield Sample(
            key=key,
            path=f"{shard}/{image}",
            captions=found.captions,
            label=found.label,
            source_sha256=found.source_sha256,
            num_bytes=num_bytes,
            mtime_ns=mtime_ns,
            place=place,
        )
        for second in images:
            if second != image:
                problem = Problem(
                    place=printable(f"{folder}/{second}"), reason=SECOND_IMAGE, key=key
                )
                yield from tally.add(SECOND_IMAGE, problem)
        for fault in found.faults:
            problem = Problem(place=printable(texts[fault.ending]), reason=fault.reason, key=key)
            yield from tally.add(f"its .{fault.ending} is unusable, or a part of it", problem)


def _preference(image: str) -> int:
    """Return the place of an image's ending among those that are images, the preferred ones first."""
    return IMAGE_ENDINGS.index(os.path.splitext(image)[1].lower())


def find_img2dataset_files(folder: Location, choice: CaptionChoice) -> Img2datasetFiles | None:
    """Return the source of a folder that img2dataset wrote in its format "files", or None.

    Such a folder has sub-folders named by digits, with records beside them.
    """
    shards, _ = _folders(str(folder))
    is_recorded = RecordedFolder(str(folder)).belongs_to(shards)
    return Img2datasetFiles(folder, choice) if is_recorded else None


def unread_folders(root: Location, names: Sequence[str]) -> Iterator[Problem]:
    """Yield a problem for the sub-folders beside shards: nothing in them is read."""
    if NAMELESS in names:
        yield Problem(place=printable(f"{root}//"), reason=TWO_SLASHES)
    names = [name for name in names if name != NAMELESS]
    if not names:
        return
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    yield Problem(
        place=printable(str(root)),
        reason=f"its sub-folders {', '.join(map(printable, names[:3]))}{more} are not read, because "
        "there are shards beside them; give each as a separate source",
    )


def holds_cache_or_nothing(folder: str) -> bool:
    """Return whether a folder beside shards is a cache, even one that is being planned, or is empty.

    Such a folder holds nothing to read, and reporting it would change the corpus whenever a cache is built.
    """
    if folder.endswith(f"/{NAMELESS}"):
        return False
    if exists(f"{folder}/{CACHE_RECORD}"):
        return True
    try:
        with scan_folder(folder) as entries:
            return all(e.name == CATALOG or e.name.startswith(f"{CACHE_RECORD}.") for e in entries)
    except OSError:
        return False


def _folders(root: str) -> tuple[list[str], list[str]]:
    """Return the sub-folders named like shards, and others whose contents are not read."""
    try:
        with scan_folder(root, with_nameless=True) as entries:
            names = sorted(e.name for e in entries if e.name[0] not in "._" and is_folder(e))
    except OSError as error:
        raise SourceError(f"{root} cannot be read ({error.strerror})") from error
    shards = [name for name in names if _SHARD_FOLDER.fullmatch(name)]
    others = [name for name in names if not _SHARD_FOLDER.fullmatch(name)]
    return shards, [name for name in others if not holds_cache_or_nothing(f"{root}/{name}")]
