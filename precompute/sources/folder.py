"""A folder of images: captions beside each image, classes as sub-folders."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ...errors import SourceError
from ...store.ahead import map_ahead
from ...store.locations import Location
from .archives import is_tar
from .base import Piece, Problem, Sample
from .caption_files import CaptionFile, read_caption_file
from .captions import is_unicode
from .paths import (
    FolderEntry,
    ObjectEntry,
    SizeAndTime,
    facts_of,
    is_remote,
    printable,
    scan_folder,
    size_and_time,
)

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")

CAPTION_ENDINGS = (".json", ".txt")
"""Of caption files; where an image has both, the first wins."""

_UNREAD_TAR = "an archive in a folder of images is not read; name it as a source of its own"

_FolderId = tuple[int, int]  # device, inode


@dataclass(frozen=True, slots=True)
class _Image:
    """An image that was listed."""

    path: str
    """Relative to the root."""

    caption_file: str | None
    listed: Mapping[str, SizeAndTime] = field(default_factory=dict[str, SizeAndTime])
    """What the listing of an object store said of both files."""


@dataclass(slots=True)
class _Listing:
    """One folder: names sorted, nothing opened."""

    images: list[str] = field(default_factory=list[str])
    folders: list[str] = field(default_factory=list[str])
    captions: dict[str, str] = field(default_factory=dict[str, str])
    """File name by stem with lower-case ending: ``dog.txt`` of ``dog.TXT``."""
    problems: list[Problem] = field(default_factory=list[Problem])
    facts: dict[str, SizeAndTime] = field(default_factory=dict[str, SizeAndTime])
    """Sizes and times by name, of objects: a file is asked when its turn comes."""


@dataclass(frozen=True, slots=True)
class FolderSource:
    """Every image anywhere below a folder. Hidden names (``.x``) are passed by."""

    location: Location
    """The folder, absolute."""

    @property
    def kind(self) -> str:
        return "folder"

    @property
    def root(self) -> Location:
        return self.location

    @property
    def settings(self) -> dict[str, Any]:
        """Nothing can be set."""
        return {}

    def fingerprint(self) -> str:
        """Changes with the name, size or time of any image or caption file; opens none."""
        digest = hashlib.sha256(b"folder\n")
        for entry in self._walk():
            if isinstance(entry, Problem):
                continue
            for name in (entry.path, entry.caption_file):
                if name is not None:
                    num_bytes, mtime_ns = self._facts(entry, name)
                    digest.update(os.fsencode(name) + f"\0{num_bytes} {mtime_ns}\n".encode())
        return digest.hexdigest()

    def pieces(self) -> Iterator[Piece]:
        """Yield the one piece there is."""
        yield Piece("", self.scan)

    def scan(self) -> Iterator[Sample | Problem]:
        """Yield a folder's images by name, then its sub-folders by name.

        Raises:
            SourceError: the folder cannot be read, or there is no image below it.
        """
        num_images = num_tars = 0
        for entry, beside in self._described():
            if isinstance(entry, Problem):
                num_tars += entry.reason == _UNREAD_TAR
                yield entry
            else:
                num_images += 1
                yield from self._sample(entry, beside)
        if not num_images:
            tars = (
                f", or name its {num_tars:,} archives: '{self.root}/**/*.tar'" if num_tars else ""
            )
            raise SourceError(
                f"{self.root} holds no images; expected files ending in {', '.join(IMAGE_ENDINGS)}"
                f"{tars}"
            )

    def _described(self) -> Iterator[tuple[_Image | Problem, CaptionFile]]:
        """Yield what there is with what stands beside it; of objects, read some way ahead."""
        if is_remote(str(self.root)):
            yield from map_ahead(self._beside, self._walk())
        else:
            yield from ((entry, self._beside(entry)) for entry in self._walk())

    def _beside(self, entry: _Image | Problem) -> CaptionFile:
        if isinstance(entry, Problem) or entry.caption_file is None or not is_unicode(entry.path):
            return CaptionFile()
        key = os.path.splitext(entry.path)[0]
        return read_caption_file(f"{self.root}/{entry.caption_file}", key)

    def _facts(self, entry: _Image, name: str) -> SizeAndTime:
        listed = entry.listed.get(name)
        return size_and_time(f"{self.root}/{name}") if listed is None else listed

    def _sample(self, entry: _Image, beside: CaptionFile) -> Iterator[Sample | Problem]:
        image = entry.path
        place = printable(f"{self.root}/{image}")
        if not is_unicode(image):
            yield Problem(place=place, reason="the file name is not UTF-8; rename it")
            return
        key = os.path.splitext(image)[0]
        num_bytes, mtime_ns = self._facts(entry, image)
        yield Sample(
            key=key,
            path=image,
            captions=beside.captions,
            label=beside.label or (image.split("/")[0] if "/" in image else None),
            num_bytes=num_bytes,
            mtime_ns=mtime_ns,
            place=place,
        )
        yield from beside.problems

    def _walk(self) -> Iterator[_Image | Problem]:
        """Every image with its caption file, one folder's listing in memory at a time."""
        pending: list[tuple[str, tuple[_FolderId, ...]]] = [("", ())]  # below root, folders above
        while pending:
            folder, above = pending.pop()
            path = f"{self.root}/{folder}" if folder else str(self.root)
            try:
                folder_id = _folder_id(path)
                if folder_id is not None and folder_id in above:
                    reason = "a link to a folder that holds it; not followed"
                    yield Problem(place=printable(path), reason=reason)
                    continue
                listing = _list_folder(path)
            except OSError as error:
                if not folder:
                    raise SourceError(f"{path} cannot be read ({error.strerror})") from error
                reason = f"the folder cannot be read ({error.strerror})"
                yield Problem(place=printable(path), reason=reason)
                continue
            yield from listing.problems
            prefix = f"{folder}/" if folder else ""
            for image in listing.images:
                beside = _caption_file(prefix, image, listing.captions)
                yield _Image(prefix + image, beside, _facts_of_pair(listing, prefix, image, beside))
            below = above if folder_id is None else (*above, folder_id)
            pending.extend((prefix + name, below) for name in reversed(listing.folders))


def _folder_id(path: str) -> _FolderId | None:
    """Return what tells a folder by whatever way it is reached; None in a store, which has no links."""
    if is_remote(path):
        return None
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _facts_of_pair(
    listing: _Listing, prefix: str, image: str, caption_file: str | None
) -> dict[str, SizeAndTime]:
    names = [prefix + image, *([caption_file] if caption_file is not None else [])]
    facts = ((name, listing.facts.get(name.removeprefix(prefix))) for name in names)
    return {name: found for name, found in facts if found is not None}


def _list_folder(path: str) -> _Listing:
    listing = _Listing()
    with scan_folder(path) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                _sort_in(entry, listing)
    listing.images.sort()
    listing.folders.sort()
    listing.problems.sort(key=lambda problem: problem.place)
    return listing


def _sort_in(entry: FolderEntry, listing: _Listing) -> None:
    """Put one name where it belongs; names that are neither image nor caption are passed by."""
    stem, ending = os.path.splitext(entry.name)
    ending = ending.lower()
    if isinstance(entry, ObjectEntry) and ending in (*IMAGE_ENDINGS, *CAPTION_ENDINGS):
        listing.facts[entry.name] = facts_of(entry)
    kind = _kind_of(entry)
    if kind == "folder":
        listing.folders.append(entry.name)
    elif ending in IMAGE_ENDINGS and kind != "device":
        listing.images.append(entry.name)  # a dead link too: a sample without its image
    elif ending in CAPTION_ENDINGS and kind != "device":
        # Of dog.TXT and dog.txt the second, whichever the system names first.
        other = listing.captions.get(stem + ending, "")
        listing.captions[stem + ending] = max(entry.name, other)
    elif kind == "file" and is_tar(entry.name):
        listing.problems.append(Problem(place=printable(entry.path), reason=_UNREAD_TAR))
    elif kind == "dead link" or ending in IMAGE_ENDINGS:
        # A dead link may be a whole folder of images on a disk that is not there.
        reason = "a link that leads nowhere" if kind == "dead link" else "not a regular file"
        listing.problems.append(Problem(place=printable(entry.path), reason=reason))


def _kind_of(entry: FolderEntry) -> Literal["folder", "file", "dead link", "device"]:
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
    except OSError:  # a link to itself, or to where we may not look
        return "dead link"
    return "dead link" if entry.is_symlink() and not os.path.exists(entry.path) else "device"


def _caption_file(prefix: str, image: str, captions: Mapping[str, str]) -> str | None:
    stem = os.path.splitext(image)[0]
    for ending in CAPTION_ENDINGS:
        if stem + ending in captions:
            return prefix + captions[stem + ending]
    return None
