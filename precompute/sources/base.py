"""What every kind of corpus is: parts that are scanned one after the other."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

from ...store.io.location import Location
from .fields.caption_endings import CaptionChoice
from .key_rules import apply_rules
from .samples import Problem, Sample


@dataclass(frozen=True, slots=True)
class CorpusPart:
    """A part of a corpus that is scanned in one go: one file of many, or all of it."""

    name: str
    """Its file, relative to the source's root, for people; empty for a whole corpus."""

    scan: Callable[[], Iterator[Sample | Problem]]
    """Yields the samples in a fixed order, and problems where they occur: a pure function of what
    is on disk. Raises SourceError if the part cannot be read and the plan must stop."""

    fingerprint: str | None = None
    """Changes when a scan could give other samples; while it stays, the samples of an earlier scan are
    used again. None: the part is scanned each time."""


@dataclass(frozen=True, slots=True)
class Source(ABC):
    """A corpus that can be scanned. Each kind is a subclass with a file of its own."""

    kind: ClassVar[str]
    """Short name, as caches record it: folder, table, webdataset, img2dataset, parquet or datasets."""

    location: Location
    """What the user named, absolute: a folder, a file, or a pattern of files."""

    choice: CaptionChoice = field(default_factory=CaptionChoice)
    """Columns and caption endings that the user chose."""

    key_rules: tuple[str, ...] = field(default=(), kw_only=True)
    """Names of rules that change the keys, in the order in which they are applied (key_rules.py)."""

    @property
    def root(self) -> Location:
        """Folder that Sample.path is relative to, absolute."""
        return self.location

    @property
    def settings(self) -> dict[str, Any]:
        """What the user chose and the next scan needs again, as JSON values; empty for nothing."""
        rules = dict.fromkeys(self.key_rules, True)
        return {**self.choice.to_settings(), **rules, **self._own_settings()}

    def _own_settings(self) -> dict[str, Any]:
        """Return the settings that only this kind of corpus has."""
        return {}

    def fingerprint(self) -> str:
        """Return a text that changes when a scan could give other samples. Reads no image."""
        return hash_parts(f"{self.kind}\n", self._own_parts())

    def parts(self) -> Iterator[CorpusPart]:
        """Yield the parts of the corpus in a fixed order.

        Raises:
            SourceError: the corpus as a whole cannot be read.
        """
        for part in self._own_parts():
            scan = partial(apply_rules, self.key_rules, part.scan) if self.key_rules else part.scan
            yield replace(part, scan=scan)

    def scan(self) -> Iterator[Sample | Problem]:
        """Yield all samples and problems: those of the parts, in order."""
        for part in self.parts():
            yield from part.scan()

    @abstractmethod
    def _own_parts(self) -> Iterator[CorpusPart]:
        """Yield the parts, with keys as the corpus has them."""


def hash_parts(header: str, parts: Iterable[CorpusPart]) -> str:
    """Return a hash of the names and fingerprints of some parts, in hexadecimal digits."""
    digest = hashlib.sha256(header.encode())
    for part in parts:
        digest.update(os.fsencode(part.name) + f"\0{part.fingerprint}\n".encode())
    return digest.hexdigest()
