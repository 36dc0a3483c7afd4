"""What a scan of any corpus yields: samples, and problems where something cannot be used."""

from dataclasses import dataclass


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

    image_id: str | None = None
    """What the rows of one image share, where an image is no whole file: rows of a source with one id become
    one sample. None: the row is a sample of its own. Whole files are told by their path."""

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
    """Things of one kind in a part of a corpus that were not used, though they may be images, captions or
    labels. Counts with equal reason and remedy are added up over all parts (precompute/planning/unused.py).

    ``place`` is where the first of them is, ``reason`` what they are: a lower-case plural without
    numbers, such as ``files ending in .heic, not read as images``.
    """

    count: int

    remedy: str
    """What would use them: ``convert them to JPEG, PNG or WebP``."""
