"""What img2dataset wrote in its format "files": a sub-folder for each shard, images and texts in it.

Source: img2dataset 1.47, writer.py.
"""

import hashlib
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ...errors import SourceError
from ...store.format.layout import CACHE_RECORD, CATALOG
from ...store.io.location import Location
from .base import Piece, Problem, Sample
from .fields.caption_endings import CaptionChoice
from .fields.caption_files import read_bytes
from .fields.sidecars import LABEL_ENDING, SECOND_IMAGE, describe_image
from .image_files import IMAGE_ENDINGS
from .img2dataset_records import RecordedFolder, ShardRecords
from .listing import (
    SizeAndTime,
    facts_of,
    is_folder,
    is_remote,
    is_there,
    printable,
    scan_folder,
    size_and_time,
)
from .problem_tally import Tally
from .text import is_unicode

_TEXTS = ("json", "txt", LABEL_ENDING)
"""What img2dataset writes beside an image, and what others add."""

_SHARD_FOLDER = re.compile(r"\d+")  # as many digits as img2dataset is told, 5 if not


@dataclass(frozen=True, slots=True)
class Img2datasetFiles:
    """A folder that img2dataset wrote in its format "files": a sub-folder for each shard."""

    location: Location
    """The folder, absolute."""

    @property
    def kind(self) -> str:
        return "img2dataset"

    @property
    def root(self) -> Location:
        return self.location

    @property
    def settings(self) -> dict[str, Any]:
        """Nothing can be set."""
        return {}

    def fingerprint(self) -> str:
        """Changes with the name, size or time of any file of a shard; opens none."""
        facts = "".join(f"{piece.name} {piece.fingerprint}\n" for piece in self.pieces())
        return hashlib.sha256(os.fsencode(f"img2dataset\n{facts}")).hexdigest()

    def pieces(self) -> Iterator[Piece]:
        """Yield one piece a shard, by name.

        Raises:
            SourceError: the folder cannot be read.
        """
        recorded = RecordedFolder(str(self.root))
        shards, others = _folders(str(self.root))
        if others:
            yield Piece("", partial(unread_folders, self.root, others))
        for name in shards:
            records = recorded.of_shard(name)
            told = records.fingerprint() if records else "none"
            state = f"{told} {_digest(f'{self.root}/{name}')}"
            yield Piece(name, partial(self._scan, name, records), state)

    def _scan(self, name: str, records: ShardRecords | None) -> Iterator[Sample | Problem]:
        folder = f"{self.root}/{name}"
        if records is not None and records.unfinished is not None:
            yield records.skipped(folder)
            return
        try:
            file_names = _list_shard(folder)
        except PermissionError as error:
            reason = f"the folder cannot be read ({error.strerror})"
            yield Problem(place=printable(folder), reason=reason)
            return
        tally = Tally(printable(folder))
        by_key: dict[str, list[str]] = {}
        for file_name in file_names:
            key, _ = os.path.splitext(file_name)
            by_key.setdefault(key, []).append(file_name)
        for key, names in by_key.items():
            yield from self._sample(name, key, {name: file_names[name] for name in names}, tally)
        yield from tally.rest()
        if records is not None:
            yield from records.problems()

    def _sample(
        self, shard: str, key: str, names: Mapping[str, SizeAndTime | None], tally: Tally
    ) -> Iterator[Sample | Problem]:
        folder = f"{self.root}/{shard}"
        files = {os.path.splitext(name)[1].lower(): f"{folder}/{name}" for name in names}
        image = next((files[ending] for ending in IMAGE_ENDINGS if ending in files), None)
        texts = {ending: files[f".{ending}"] for ending in _TEXTS if f".{ending}" in files}
        if image is None and not texts:
            return
        place = printable(image or next(iter(texts.values())))
        if not is_unicode(key):
            reason = "the file name is not UTF-8; rename it"
            yield from tally.add(reason, Problem(place=place, reason=reason))
            return
        if image is None:
            reason = "there is no image to it"
            yield from tally.add(reason, Problem(place=place, reason=reason, key=key))
            return
        reads = {ending: partial(read_bytes, path) for ending, path in texts.items()}
        told = describe_image(reads, CaptionChoice())
        num_bytes, mtime_ns = names[os.path.basename(image)] or size_and_time(image)
        yield Sample(
            key=key,
            path=f"{shard}/{os.path.basename(image)}",
            captions=told.captions,
            label=told.label,
            source_sha256=told.source_sha256,
            num_bytes=num_bytes,
            mtime_ns=mtime_ns,
            place=place,
        )
        for other, reason in _second_files(list(names), {image, *texts.values()}, folder):
            problem = Problem(place=printable(other), reason=reason, key=key)
            yield from tally.add(reason, problem)
        for fault in told.faults:
            problem = Problem(place=printable(texts[fault.ending]), reason=fault.reason, key=key)
            yield from tally.add(f"its .{fault.ending} is no use, or part of it", problem)


def _second_files(
    names: Sequence[str], taken: Collection[str], folder: str
) -> Iterator[tuple[str, str]]:
    """Yield the images and texts of a sample that are not taken for another is, each with a reason."""
    endings = {os.path.splitext(path)[1].lower() for path in taken}
    for path in (f"{folder}/{name}" for name in names):
        ending = os.path.splitext(path)[1].lower()
        if path in taken:
            continue
        if ending in IMAGE_ENDINGS:
            yield path, SECOND_IMAGE
        elif ending in endings:
            yield path, f"a second {ending} of its sample, not used"


def find_img2dataset_files(folder: Location) -> Img2datasetFiles | None:
    """Return the source that a folder is, where img2dataset wrote it in its format "files".

    That is: sub-folders of digits with img2dataset's records beside them.
    """
    shards, _ = _folders(str(folder))
    return Img2datasetFiles(folder) if RecordedFolder(str(folder)).belongs_to(shards) else None


def unread_folders(root: Location, names: Sequence[str]) -> Iterator[Problem]:
    """Yield the problem that sub-folders of a folder of shards are: nothing in them is read."""
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    yield Problem(
        place=printable(str(root)),
        reason=f"its sub-folders {', '.join(map(printable, names[:3]))}{more} are not read, for shards "
        "lie beside them; name what is in them as a source of its own",
    )


def holds_cache_or_nothing(folder: str) -> bool:
    """Say whether a folder beside shards is a cache, even one that is being planned, or is empty.

    Nothing in it waits to be read; and to name it would change the corpus by building its cache in it.
    """
    if is_there(f"{folder}/{CACHE_RECORD}"):
        return True
    try:
        with scan_folder(folder) as entries:
            return all(e.name == CATALOG or e.name.startswith(f"{CACHE_RECORD}.") for e in entries)
    except OSError:
        return False


def _folders(root: str) -> tuple[list[str], list[str]]:
    """Return the sub-folders that are named like shards, and others that may hold something unread."""
    try:
        with scan_folder(root) as entries:
            names = sorted(e.name for e in entries if e.name[0] not in "._" and is_folder(e))
    except OSError as error:
        raise SourceError(f"{root} cannot be read ({error.strerror})") from error
    shards = [name for name in names if _SHARD_FOLDER.fullmatch(name)]
    others = [name for name in names if not _SHARD_FOLDER.fullmatch(name)]
    return shards, [name for name in others if not holds_cache_or_nothing(f"{root}/{name}")]


def _list_shard(folder: str) -> dict[str, SizeAndTime | None]:
    """Return the names of the files in a shard's folder, in order, of objects with size and time.

    Raises:
        PermissionError: it may not be read.
        SourceError: reading it fails.
    """
    try:
        with scan_folder(folder) as entries:
            found = {
                entry.name: facts_of(entry) if is_remote(folder) else None
                for entry in entries
                if not entry.name.startswith(".")
            }
        return dict(sorted(found.items()))
    except PermissionError:
        raise
    except OSError as error:
        raise SourceError(f"{folder} cannot be read ({error.strerror})") from error


def _digest(folder: str) -> str:
    """Return what changes with the name, size or time of any file in a shard's folder."""
    digest = hashlib.sha256()
    try:
        names = _list_shard(folder)
    except PermissionError:
        return "may not be read"
    for name, facts in names.items():
        num_bytes, mtime_ns = facts or size_and_time(f"{folder}/{name}")
        digest.update(os.fsencode(name) + f"\0{num_bytes} {mtime_ns}\n".encode())
    return digest.hexdigest()
