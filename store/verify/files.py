"""Comparing files with what records say of them, each read once and held a piece at a time."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..format import layout
from ..io.storage import Storage


@dataclass(slots=True)
class Checked:
    """What reading some files said."""

    faults: list[str] = field(default_factory=list[str])
    named: list[str] = field(default_factory=list[str])
    """Paths, in the order in which they were looked at."""

    damaged: set[str] = field(default_factory=set[str])
    num_files: int = 0
    num_bytes: int = 0

    def add(self, other: "Checked") -> None:
        """Take over what other files said."""
        self.faults += other.faults
        self.named += other.named
        self.damaged |= other.damaged
        self.num_files += other.num_files
        self.num_bytes += other.num_bytes


@dataclass(frozen=True, slots=True)
class FileChecker:
    """Reads files of a cache. Each call reads its file once; may be called in several threads."""

    files: Storage
    ahead: Mapping[str, Mapping[str, Any]]
    """What standing intents say of the files that they put in place (unfinished.py)."""

    def check(
        self,
        path: str,
        described: Mapping[str, Any],
        owner: str,
        found: Checked,
        take: Callable[[bytes], object] = lambda piece: None,
    ) -> bool:
        """Say whether a file holds the bytes that its record names.

        Args:
            path: of the file.
            described: its ``num_bytes`` and ``sha256``.
            owner: path of the record.
            found: is told what is wrong.
            take: called with the file's bytes, piece by piece.
        """
        found.named.append(path)
        digest, num_bytes = hashlib.sha256(), 0
        try:
            for piece in self.files.pieces(path):
                digest.update(piece)
                num_bytes += len(piece)
                take(piece)
        except OSError as error:
            found.faults.append(f"{path} cannot be read ({error.strerror}), {owner} names it")
            found.damaged.add(path)
            return False
        found.num_files += 1
        found.num_bytes += num_bytes
        holds = {"num_bytes": num_bytes, "sha256": digest.hexdigest()}
        if _is_same(holds, described):
            return True
        if path in self.ahead and _is_same(holds, self.ahead[path]):
            return False  # an unfinished commit has put it there, ahead of its record
        found.damaged.add(path)
        size = f"{num_bytes:,} bytes where {described['num_bytes']:,} were written"
        same = "its bytes have changed since they were written"
        found.faults.append(
            f"{path} is damaged: {same if num_bytes == described['num_bytes'] else size}; "
            f"{_remedy(path, owner)}"
        )
        return False

    def read(
        self, path: str, described: Mapping[str, Any], owner: str, found: Checked
    ) -> bytes | None:
        """Return the bytes of a file that is small, or None where it is damaged."""
        pieces: list[bytes] = []
        self.check(path, described, owner, found, pieces.append)
        return None if path in found.damaged else b"".join(pieces)


def _is_same(holds: Mapping[str, Any], described: Mapping[str, Any]) -> bool:
    return all(described[name] == value for name, value in holds.items())


def _remedy(path: str, owner: str) -> str:
    if path.startswith(layout.TEACHERS) and "/commits/" in owner and "/arrays-" not in owner:
        stem = owner.rsplit("/", 1)[1].split(".")[0]
        folder = owner.rsplit("/", 1)[0]
        return f"remove {folder}/{stem}*.json and run the same build again to make the unit anew"
    if path.endswith("zarr.json"):
        return "restore it from a backup, or write it anew from docs/format.md"
    return "restore it from a backup, or build the cache anew"
