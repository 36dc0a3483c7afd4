"""Verification of files against their records. Each file is read once, in pieces."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..format import layout
from ..io.storage import Storage


@dataclass(slots=True)
class Checked:
    """The result of checking some files."""

    faults: list[str] = field(default_factory=list[str])
    named: list[str] = field(default_factory=list[str])
    """Paths of the checked files, in order."""

    damaged: set[str] = field(default_factory=set[str])
    num_files: int = 0
    num_bytes: int = 0

    def add(self, other: "Checked") -> None:
        """Add the result of checking other files."""
        self.faults += other.faults
        self.named += other.named
        self.damaged |= other.damaged
        self.num_files += other.num_files
        self.num_bytes += other.num_bytes


@dataclass(frozen=True, slots=True)
class FileChecker:
    """Checks files of a cache against their descriptions. May be called in several threads."""

    files: Storage
    unfinished: Mapping[str, Mapping[str, Any]]
    """Descriptions of the files of unfinished commits, whose records do not exist yet."""

    def check(
        self,
        path: str,
        description: Mapping[str, Any],
        owner: str,
        found: Checked,
        take: Callable[[bytes], object] = lambda piece: None,
    ) -> bool:
        """Return whether a file matches its description.

        Args:
            path: the file.
            description: its ``num_bytes`` and ``sha256``.
            owner: path of the record with the description.
            found: the result, to which faults are added.
            take: called with each piece of the bytes.
        """
        found.named.append(path)
        digest, num_bytes = hashlib.sha256(), 0
        try:
            for piece in self.files.pieces(path):
                digest.update(piece)
                num_bytes += len(piece)
                take(piece)
        except OSError as error:
            found.faults.append(f"{path} cannot be read ({error.strerror}); {owner} names it")
            found.damaged.add(path)
            return False
        found.num_files += 1
        found.num_bytes += num_bytes
        holds = {"num_bytes": num_bytes, "sha256": digest.hexdigest()}
        if _is_same(holds, description):
            return True
        if path in self.unfinished and _is_same(holds, self.unfinished[path]):
            return False  # an unfinished commit renamed it before creating its record
        found.damaged.add(path)
        reason = "its bytes have changed"
        if num_bytes != description["num_bytes"]:
            reason = f"{num_bytes:,} bytes, {description['num_bytes']:,} were written"
        found.faults.append(f"{path} is damaged: {reason}; {_remedy(path, owner)}")
        return False

    def read(
        self, path: str, description: Mapping[str, Any], owner: str, found: Checked
    ) -> bytes | None:
        """Return the bytes of a small file, or None if it is damaged."""
        pieces: list[bytes] = []
        self.check(path, description, owner, found, pieces.append)
        return None if path in found.damaged else b"".join(pieces)


def _is_same(holds: Mapping[str, Any], description: Mapping[str, Any]) -> bool:
    return all(description[name] == value for name, value in holds.items())


def _remedy(path: str, owner: str) -> str:
    if path.startswith(layout.TEACHERS) and "/commits/" in owner and "/arrays-" not in owner:
        stem = owner.rsplit("/", 1)[1].split(".")[0]
        folder = owner.rsplit("/", 1)[0]
        return f"remove {folder}/{stem}.*json and run the same build again to embed the unit again"
    if path.startswith(f"{layout.PIXELS}/"):
        stem = owner.removesuffix(".json").split(".r")[0]
        return (
            f"remove {stem}.*json and run the same build again to keep the pixels of the unit again"
        )
    if path.endswith("zarr.json"):
        return "restore it from a backup, or write it again by docs/reference/format.md"
    return "restore it from a backup, or build the cache again"
