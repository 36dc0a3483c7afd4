"""A corpus whose keys are unique only within a file: the file's name is put before each."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from ...store.locations import Location
from .base import Piece, Problem, Sample, Source

SETTING = "prefix_keys"
"""Name of this among a source's settings."""


@dataclass(frozen=True, slots=True)
class PrefixedSource:
    """Another source, with the keys that ``prefixed_key`` gives."""

    source: Source

    @property
    def kind(self) -> str:
        return self.source.kind

    @property
    def location(self) -> Location:
        return self.source.location

    @property
    def root(self) -> Location:
        return self.source.root

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the source, and that its keys are prefixed."""
        return {**self.source.settings, SETTING: True}

    def fingerprint(self) -> str:
        """As the source's."""
        return self.source.fingerprint()

    def pieces(self) -> Iterator[Piece]:
        """Yield the source's pieces, whose scans give other keys."""
        for piece in self.source.pieces():
            yield replace(piece, scan=partial(_scan, piece))


def prefixed_key(sample: Sample) -> str:
    """Return a key that no picture of another file has.

    In an archive or a Parquet file the file's path without ending comes before the key: ``shards/000/k7``.
    A picture that is a file is called by its whole path, ``dogs/a.jpg``; behind that comes the key that a
    table gives it, ``dogs/a.jpg/k7``.
    """
    stem = str(PurePosixPath(sample.path).with_suffix(""))
    if sample.offset is None and sample.row_group is None:
        return sample.path if sample.key == stem else f"{sample.path}/{sample.key}"
    is_there = sample.key.startswith(f"{stem}/")  # a row of Parquet without a key is called so
    return sample.key if is_there else f"{stem}/{sample.key}"


def _scan(piece: Piece) -> Iterator[Sample | Problem]:
    last: tuple[str, str] | None = None
    for item in piece.scan():
        if isinstance(item, Sample):
            last = item.key, prefixed_key(item)
            yield replace(item, key=last[1])
        elif last is not None and item.key == last[0]:
            yield replace(item, key=last[1])
        else:
            yield item
