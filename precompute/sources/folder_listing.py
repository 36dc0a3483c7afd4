"""One folder of a corpus: which names are images, texts, tables and folders. No file is opened."""

import hashlib
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from ...store.io.requests import NAMELESS
from .fields.caption_endings import CaptionChoice
from .fields.texts_beside import TextsBeside
from .fields.unused_texts import HEAD_BYTES, UnreadTexts
from .image_files import IMAGE_ENDINGS, is_system_folder
from .imagefolder import TABLE_NAMES
from .listing import (
    TWO_SLASHES,
    FolderEntry,
    ObjectEntry,
    SizeAndTime,
    facts_of,
    printable,
    read_path,
    scan_folder,
    size_and_time,
)
from .readers.table_rows import TABLE_ENDINGS
from .readers.tar_names import is_tar
from .samples import Problem, Unused

UNREAD_TAR = "an archive in a folder of images is not read; name it as a source of its own"

_SYSTEM_FOLDERS = "folders of storage systems (thumbnails, recycle bins), skipped"
_NAME_FOLDER = "name such a folder as a source of its own to take its images"
_CONVERT = "if they are images, convert them to JPEG, PNG or WebP"
_GIVE_ENDING = "if they are images, give them an ending such as .jpg"

_NO_IMAGES = {
    *(
        ".md",
        ".rst",
        ".html",
        ".htm",
        ".css",
        ".js",
        ".py",
        ".ipynb",
        ".sh",
        ".yaml",
        ".yml",
        ".toml",
    ),
    *(".cfg", ".ini", ".log", ".db", ".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".arrow"),
}
"""Endings of files beside images that are certainly not images, so that no note is needed."""

_NO_IMAGE_NAMES = {"license", "readme", "makefile", "dockerfile", "icon\r"}


@dataclass(slots=True)
class FolderListing:
    """The names in one folder, sorted by kind and name."""

    path: str
    texts: TextsBeside
    images: list[str] = field(default_factory=list[str])
    folders: list[str] = field(default_factory=list[str])
    tables: list[str] = field(default_factory=list[str])
    """Files with the ending of a table."""

    others: list[str] = field(default_factory=list[str])
    problems: list[Problem] = field(default_factory=list[Problem])
    unused: dict[tuple[str, str], Unused] = field(default_factory=dict[tuple[str, str], Unused])
    """By reason and remedy."""

    facts: dict[str, SizeAndTime] = field(default_factory=dict[str, SizeAndTime])
    """Sizes and times by name, of objects only; those of files are looked up when they are needed."""

    @property
    def table(self) -> str | None:
        """The table that describes the images of this folder and of those below."""
        return next((name for name in TABLE_NAMES if name in self.tables), None)

    def all_problems(self) -> Iterator[Problem]:
        """Yield the problems, and what is in the folder and not used."""
        yield from self.problems
        yield from sorted(self.unused.values(), key=lambda each: each.reason)

    def fingerprint(self) -> str:
        """Return a hash that changes with the name, size or time of any image or text."""
        digest = hashlib.sha256()
        for name in sorted((*self.images, *self.texts.names)):
            num_bytes, mtime_ns = self.facts.get(name) or size_and_time(f"{self.path}/{name}")
            digest.update(os.fsencode(name) + f"\0{num_bytes} {mtime_ns}\n".encode())
        return digest.hexdigest()

    def beside_images(self) -> Iterator[tuple[str, str, str]]:
        """Yield (ending, stem, name) of other files that are named like an image."""
        stems = {os.path.splitext(image)[0] for image in self.images}
        for name in self.others:
            dots = (i for i, c in enumerate(name) if c == "." and name[:i] in stems)
            dot = next(dots, None)
            if dot is not None:
                yield name[dot + 1 :].lower(), name[:dot], name


def list_folder(path: str, choice: CaptionChoice) -> FolderListing:
    """List a folder.

    Raises:
        OSError: it cannot be read.
    """
    listing = FolderListing(path, TextsBeside(choice))
    with scan_folder(path, with_nameless=True) as entries:
        for entry in entries:
            if entry.name == NAMELESS:
                listing.problems.append(Problem(place=printable(f"{path}//"), reason=TWO_SLASHES))
            elif is_system_folder(entry.name) and _kind_of(entry) == "folder":
                _count_unused(listing, entry.path, _SYSTEM_FOLDERS, _NAME_FOLDER)
            elif not entry.name.startswith("."):
                _sort_in(entry, listing)
    for names in (listing.images, listing.folders, listing.tables, listing.others):
        names.sort()
    listing.problems.sort(key=lambda problem: problem.place)
    beside = {name for _, _, name in listing.beside_images()}
    for name in listing.others:
        if name not in beside:
            what, remedy = no_image(name)
            _count_unused(listing, f"{path.rstrip('/')}/{name}", what, remedy)
    return listing


def count_unread(
    listing: FolderListing, without_caption: Collection[str], unread: UnreadTexts
) -> None:
    """Count what lies beside images without a caption, named without ending, and may hold theirs."""
    for ending, stem, name in listing.beside_images():
        if stem in without_caption:
            path = f"{listing.path}/{name}"
            unread.add(ending, printable(path), partial(read_path, path, HEAD_BYTES))


def no_image(name: str) -> tuple[str, str]:
    """Return reason and remedy for a file that is not read as an image."""
    ending = os.path.splitext(name)[1].lower()
    what = f"files ending in {printable(ending)}" if ending else "files without an ending"
    return f"{what}, not read as images", _CONVERT if ending else _GIVE_ENDING


def _sort_in(entry: FolderEntry, listing: FolderListing) -> None:
    """Add one name to the list of its kind."""
    ending = os.path.splitext(entry.name)[1].lower()
    kind = _kind_of(entry)
    is_image, is_text = ending in IMAGE_ENDINGS, listing.texts.takes(entry.name)
    if isinstance(entry, ObjectEntry) and (is_image or is_text or ending in TABLE_ENDINGS):
        listing.facts[entry.name] = facts_of(entry)
    if kind == "folder":
        listing.folders.append(entry.name)
    elif is_image and kind != "device":
        listing.images.append(entry.name)  # a dead link too: a sample without its image
    elif is_text and kind != "device":
        listing.texts.add(entry.name)
    elif kind == "file" and ending in TABLE_ENDINGS:
        listing.tables.append(entry.name)
    elif kind == "file" and is_tar(entry.name):
        listing.problems.append(Problem(place=printable(entry.path), reason=UNREAD_TAR))
    elif kind == "dead link" or is_image:
        # A dead link may point to a folder of images on a disk that is not mounted.
        reason = "a dead link" if kind == "dead link" else "not a regular file"
        listing.problems.append(Problem(place=printable(entry.path), reason=reason))
    elif kind == "file" and ending not in _NO_IMAGES and entry.name.lower() not in _NO_IMAGE_NAMES:
        listing.others.append(entry.name)


def _count_unused(listing: FolderListing, path: str, what: str, remedy: str) -> None:
    """Count one unused file; the first by name represents its kind."""
    place = printable(path)
    found = listing.unused.get((what, remedy))
    count, first = (found.count, min(found.place, place)) if found is not None else (0, place)
    unused = Unused(place=first, reason=what, count=count + 1, remedy=remedy)
    listing.unused[what, remedy] = unused


def _kind_of(entry: FolderEntry) -> Literal["folder", "file", "dead link", "device"]:
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
    except OSError:  # a link to itself, or to a folder that may not be read
        return "dead link"
    return "dead link" if entry.is_symlink() and not os.path.exists(entry.path) else "device"
