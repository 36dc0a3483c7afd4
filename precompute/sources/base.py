"""What every kind of corpus yields."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from ...store.io.location import Location


@dataclass(frozen=True, slots=True)
class Caption:
    """One caption: stripped, not empty, encodable as UTF-8."""

    text: str
    lang: str | None = None
    """Language tag as the corpus wrote it, for instance ``de``; None where it says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One image of a corpus with its captions. Nothing of the pixels has been read."""

    key: str
    """Name within its source (the plan puts the namespace before it)."""

    path: str
    """File that holds the image, relative to the source's root, with forward slashes."""

    captions: tuple[Caption, ...] = ()
    label: str | None = None
    """Class, where the corpus has classes."""

    member: str | None = None
    """Name inside a tar archive, never used as a path; of a row of a Parquet file, its column (dots
    between nested names: ``image.bytes``); None for all else."""

    offset: int | None = None
    """First byte of the image in the file; None: the whole file is the image, or a row is."""

    length: int | None = None
    """Bytes of the image from offset; None with offset None."""

    row_group: int | None = None
    """Row group of a Parquet file; None for all else."""

    index: int | None = None
    """Row within the row group; None with row_group None."""

    source_sha256: bytes | None = None
    """SHA-256, 32 bytes, of what the image was made of, where the corpus says so (img2dataset: the
    original download). It tells duplicates; the bytes of the image itself have another."""

    num_bytes: int | None = None
    """Size of the file when planned; None where it was not there."""

    mtime_ns: int | None = None
    """Modification time of the file when planned, nanoseconds; None where it was not there."""

    place: str
    """Where a person finds this sample, for messages: ``/data/captions.jsonl line 17``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something of a corpus that could not be read; counted, kept and shown, never dropped."""

    place: str
    """Where a person finds it, as in Sample.place."""

    reason: str
    """What is wrong, one lower-case line."""

    key: str | None = None
    """Key of the sample it concerns, where there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unused(Problem):
    """Things of one kind that a piece holds and that were not used, though they may be images, captions
    or labels. Those of all pieces with equal reason and remedy are added up (precompute/planning/unused.py).

    ``place`` is where the first of them is, ``reason`` what they are: a lower-case plural without
    numbers, such as ``files ending in .heic, not read as images``.
    """

    count: int

    remedy: str
    """What takes them: ``convert them to JPEG, PNG or WebP``."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a corpus that is scanned in one go: a file of many, or all of it."""

    name: str
    """For people: its file, relative to the source's root; empty for a whole corpus."""

    scan: Callable[[], Iterator[Sample | Problem]]
    """Yields the samples in a fixed order, and problems where they occur: a pure function of what
    lies on disk. Raises SourceError where the piece cannot be read and the plan must not go on."""

    fingerprint: str | None = None
    """Changes when a scan could give other samples; equal, the samples of an earlier scan are taken.
    None: the piece is scanned each time."""


class Source(Protocol):
    """A corpus that can be scanned."""

    @property
    def kind(self) -> str:
        """Short name: folder, table, webdataset, img2dataset, parquet or datasets."""
        ...

    @property
    def location(self) -> Location:
        """What the user named, absolute: a folder, a file, or a pattern of files."""
        ...

    @property
    def root(self) -> Location:
        """Folder that Sample.path is relative to, absolute."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """What the user set and the next scan needs again, as JSON values; empty for nothing."""
        ...

    def fingerprint(self) -> str:
        """A string that changes when a scan could give other samples; cheap, reads no image."""
        ...

    def pieces(self) -> Iterator[Piece]:
        """Yield the parts of the corpus in a fixed order.

        Raises:
            SourceError: the corpus as a whole cannot be read.
        """
        ...


def scan(source: Source) -> Iterator[Sample | Problem]:
    """Yield all of a source: the samples of its pieces, in order."""
    for piece in source.pieces():
        yield from piece.scan()
