"""What a scan of any corpus yields: samples, and problems where something cannot be used."""

from dataclasses import dataclass

from ...images.image_bytes import ImageLocation
from ...store.io.location import Location, join


@dataclass(frozen=True, slots=True)
class Caption:
    """One caption: stripped, not empty, encodable as UTF-8."""

    text: str
    lang: str | None = None
    """Language tag as the corpus wrote it, for instance ``de``; None if unknown."""

    kind: str | None = None
    """Kind as the corpus wrote it, for instance ``alt`` or ``synthetic``; None if unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One image of a corpus with its captions. Nothing of the pixels has been read."""

    key: str
    """Name within its source (the plan puts the namespace before it)."""

    path: str
    """File that holds the image, relative to the source's root, with forward slashes."""

    captions: tuple[Caption, ...] = ()
    label: str | None = None
    """Class, if the corpus has classes."""

    member: str | None = None
    """Name inside a tar archive, never used as a path; for a row of a Parquet file, its column (with dots
    between nested names: ``image.bytes``); otherwise None."""

    offset: int | None = None
    """First byte of the image in the file; None: the whole file is the image, or a row is."""

    length: int | None = None
    """Bytes of the image from offset; None with offset None."""

    row_group: int | None = None
    """Row group of a Parquet file; otherwise None."""

    index: int | None = None
    """Row within the row group; None with row_group None."""

    image_id: str | None = None
    """Id that rows of one image share, if the image is not a whole file: rows of a source with the same id
    become one sample. None: the row is a separate sample. The id of a whole file is its path."""

    source_sha256: bytes | None = None
    """SHA-256, 32 bytes, of the original of the image, if the corpus records it (img2dataset: the download).
    It identifies duplicates; the hash of the image itself differs."""

    num_bytes: int | None = None
    """Size of the file when planned; None if it did not exist."""

    mtime_ns: int | None = None
    """Modification time of the file when planned, nanoseconds; None if it did not exist."""

    place: str
    """Where to find this sample, for messages: ``/data/captions.jsonl line 17``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something in a corpus that could not be read. It is counted, recorded and shown."""

    place: str
    """Where to find it, as in Sample.place."""

    reason: str
    """What is wrong, one lower-case line."""

    key: str | None = None
    """Key of the sample concerned, if there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unused(Problem):
    """Things of one kind in a part of a corpus that were not used: possible images, captions or labels.

    Counts with equal reason and remedy are added up over all parts (precompute/planning/unused.py).
    ``place`` is where the first of them is, ``reason`` what they are: a lower-case plural without
    numbers, such as ``files ending in .heic, not read as images``.
    """

    count: int

    remedy: str
    """What would use them: ``convert them to JPEG, PNG or WebP``."""


def place_of(sample: Sample, root: Location) -> ImageLocation:
    """Return where the image of a sample is, given the root of its source."""
    return ImageLocation(
        path=join(root, sample.path),
        member=sample.member,
        offset=sample.offset,
        length=sample.length,
        row_group=sample.row_group,
        index=sample.index,
        file_bytes=sample.num_bytes,
    )
