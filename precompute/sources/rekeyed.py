"""A corpus whose keys are changed by a rule: the file's name before each, no ``./`` at their beginning.

The rules of a source are among its recorded settings, for later plans of it must give the same keys.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from ...store.io.location import Location
from .base import Piece, Problem, Sample, Source

PLAIN = "plain_keys"
PREFIXED = "prefix_keys"


@dataclass(frozen=True, slots=True)
class RekeyedSource:
    """Another source, with the keys that some rules give."""

    source: Source
    rules: tuple[str, ...]
    """Names of RULES, in the order in which they hold."""

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
        """Those of the source, and the rules."""
        return {**self.source.settings, **dict.fromkeys(self.rules, True)}

    def fingerprint(self) -> str:
        """As the source's."""
        return self.source.fingerprint()

    def pieces(self) -> Iterator[Piece]:
        """Yield the source's pieces, whose scans give other keys."""
        for piece in self.source.pieces():
            yield replace(piece, scan=partial(self._scan, piece))

    def _scan(self, piece: Piece) -> Iterator[Sample | Problem]:
        last: tuple[str, str] | None = None
        for item in piece.scan():
            if isinstance(item, Sample):
                last = item.key, self._key(item)
                yield replace(item, key=last[1]) if last[0] != last[1] else item
            elif last is not None and item.key == last[0]:
                yield replace(item, key=last[1])
            else:
                yield item

    def _key(self, sample: Sample) -> str:
        for name in self.rules:
            sample = replace(sample, key=RULES[name](sample))
        return sample.key


def plain_key(sample: Sample) -> str:
    """Return the key without the ``./`` that ``tar`` writes before names when it packs a folder."""
    is_there = sample.member is not None and sample.member.startswith("./")
    return sample.key.removeprefix("./") if is_there else sample.key


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


RULES = {PLAIN: plain_key, PREFIXED: prefixed_key}
