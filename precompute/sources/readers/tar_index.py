"""The members of a tar archive that belong to samples, by WebDataset's keys, in little memory."""

import hashlib
import itertools
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from .tar import TarFault, TarKind, TarMember

_DIGEST_BYTES = 16  # of a key; collisions within an archive are practically impossible

_META = re.compile(rb"__[^/]*__(?:/|$)|(?:.*/)?(?:\._|__MACOSX/|@eaDir/)")
"""Names that WebDataset reserves for facts about the archive, and files that macOS and NAS systems add."""


@dataclass(slots=True)
class TarIndex:
    """Members of an archive that belong to samples, in order, without an object for each."""

    names: bytearray = field(default_factory=bytearray)
    """All names, one after the other."""

    name_ends: "array[int]" = field(default_factory=lambda: array("q"))
    offsets: "array[int]" = field(default_factory=lambda: array("q"))
    sizes: "array[int]" = field(default_factory=lambda: array("q"))
    roles: bytearray = field(default_factory=bytearray)
    key_digests: bytearray = field(default_factory=bytearray)

    has_variants: bool = False
    """Some key is in decomposed form, as macOS writes accents."""

    num_others: int = 0
    """Members that belong to no sample."""

    skipped: "Counter[TarKind]" = field(default_factory=Counter)
    """Members named like those of samples that are not files."""

    fault: str | None = None
    """Why the archive does not end properly."""

    last_key: bytes | None = None
    """Key of the last member with one, of any kind."""

    is_cut: bool = False
    """Members of the last key may be missing."""

    def __len__(self) -> int:
        return len(self.roles)

    def name(self, i: int) -> bytes:
        """Return the name of a member."""
        start = self.name_ends[i - 1] if i else 0
        return bytes(self.names[start : self.name_ends[i]])

    def add(self, member: TarMember, key: bytes, role: int) -> None:
        """Add a member."""
        self.names += member.name
        self.name_ends.append(len(self.names))
        self.offsets.append(member.offset)
        self.sizes.append(member.size)
        self.roles.append(role)
        composed = compose(key)
        self.has_variants = self.has_variants or composed != key
        self.key_digests += hashlib.blake2b(composed, digest_size=_DIGEST_BYTES).digest()

    def take_fault(self, fault: TarFault) -> None:
        """Record why the archive ends, and which sample may be incomplete."""
        self.fault, self.is_cut = fault.reason, not fault.lacks_mark_only
        cut = split_key(fault.cut_name) if fault.cut_name else None
        self.last_key = cut[0] if cut else self.last_key

    def is_last_key(self, key: bytes) -> bool:
        """Return whether a key is that of the last member with one, in any Unicode form."""
        return self.last_key is not None and compose(key) == compose(self.last_key)

    def groups(self) -> Iterator[list[int]]:
        """Yield the members of each key in order, keys in the order of their first members."""
        if not len(self):
            return
        halves = np.frombuffer(self.key_digests, "<u8").reshape(-1, 2)
        by_key = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: in order within a key
        is_first = np.ones(len(by_key), bool)
        is_first[1:] = (halves[by_key[1:]] != halves[by_key[:-1]]).any(axis=1)
        first = np.empty(len(by_key), np.int64)  # of each member, the first of its key
        first[by_key] = by_key[is_first][np.cumsum(is_first) - 1]
        order = np.argsort(first, kind="stable")
        starts = np.flatnonzero(np.diff(first[order], prepend=-1))
        for start, end in itertools.pairwise([*starts.tolist(), len(order)]):
            yield order[start:end].tolist()


_ODD = "utf-8", "surrogateescape"


def compose(name: bytes) -> bytes:
    """Return a name in composed form (NFC), so that names that look the same are equal."""
    return (
        name if name.isascii() else unicodedata.normalize("NFC", name.decode(*_ODD)).encode(*_ODD)
    )


def split_key(name: bytes) -> tuple[bytes, bytes] | None:
    """Return key and ending (lower-case) of a member, split at the first dot after the last slash.

    None if there is no dot or nothing before it, or the member is about the archive itself.
    Source: webdataset 1.0, tariterators.py, base_plus_ext and tar_file_iterator.
    """
    folder, slash, base = name.rpartition(b"/")
    stem, dot, ending = base.partition(b".")
    if not stem or not dot or _META.match(name):
        return None
    return folder + slash + stem, ending.lower()
