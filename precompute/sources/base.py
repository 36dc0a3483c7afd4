"""What every kind of corpus yields."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


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
    """Name inside an archive, never used as a path; None for a plain file."""

    offset: int | None = None
    """First byte of the image in the file; None: the whole file is the image."""

    length: int | None = None
    """Bytes of the image from offset; None with offset None."""

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


class Source(Protocol):
    """A corpus that can be scanned."""

    @property
    def kind(self) -> str:
        """Short name of the kind: folder, table."""
        ...

    @property
    def location(self) -> Path:
        """What the user named: a folder or a file, absolute."""
        ...

    @property
    def root(self) -> Path:
        """Folder that Sample.path is relative to, absolute."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """What the user set and the next scan needs again, as JSON values; empty for nothing."""
        ...

    def fingerprint(self) -> str:
        """A string that changes when a scan could give other samples; cheap, reads no image."""
        ...

    def scan(self) -> Iterator[Sample | Problem]:
        """Yield the samples in a fixed order, and problems where they occur.

        Raises:
            SourceError: the corpus as a whole cannot be read.
        """
        ...
