"""Local copies of objects: downloaded once, checked, shared by processes, limited in size.

A copy is named by the SHA-256 of its bytes, which the records of the cache hold. So a name never means
other bytes, truncated or changed downloads are detected, and two caches with the same object share the
copy. The least recently used copies are removed to make room; a process that has mapped one can still
read it.
"""

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upath import UPath

from ...errors import DamagedCacheError, DiskFullError, SettingError
from ...formatting import format_bytes, parse_bytes
from .local import FULL_DISK, sync_file
from .locks import lock_file
from .requests import read_bytes

FOLDER_VARIABLE = "SIGLIP2_CACHE_DIR"
LIMIT_VARIABLE = "SIGLIP2_CACHE_LIMIT"
RAISE_LIMIT = (
    f"raise it with ${LIMIT_VARIABLE}, or name another folder with ${FOLDER_VARIABLE} (of train also "
    "--cache-limit and --cache-dir)"
)
"""Remedy where copies are larger than the limit."""

_SHARE_OF_DISK = 0.8
_PIECE_BYTES = 1 << 25
_IN_USE_S = 10.0
"""A copy requested more recently is not removed: its user may not have opened it yet."""

_ABANDONED_S = 3600.0
"""A partial copy that was not written to for this long was left by a process that was killed."""

_NAME = re.compile(r"([0-9a-f]{2})/\1[0-9a-f]{62}(\.([0-9a-f]{12}\.)?partial)?")
"""Names of copies and partial copies; no other file is ever removed."""


def default_folder() -> Path:
    """Return the default folder of copies: $SIGLIP2_CACHE_DIR, or a folder in the user's cache folder."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder:
        return Path(folder).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "siglip2-cache"


@dataclass(frozen=True, slots=True)
class LocalCopies:
    """A folder of local copies, which any number of processes may share."""

    folder: Path | None = None
    """The folder; None: default_folder()."""

    max_bytes: int | None = None
    """Limit for all copies together; None: $SIGLIP2_CACHE_LIMIT, or four fifths of the free disk."""

    def fetch(self, location: UPath, description: Mapping[str, Any]) -> Path:
        """Return the copy of an object, downloading it if needed.

        Args:
            location: the object.
            description: its ``num_bytes`` and ``sha256``, as a record holds them.

        Raises:
            FileNotFoundError, PermissionError: the object does not exist, or may not be read.
            DamagedCacheError: the object does not match its description.
            StorageError: the store does not respond.
            DiskFullError: there is no room for the copy.
        """
        num_bytes, digest = int(description["num_bytes"]), str(description["sha256"])
        folder = self.folder or default_folder()
        path = folder / digest[:2] / digest
        if _is_there(path, num_bytes):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f"{digest}.partial")
        with lock_file(lock):  # a second process waits for the first one's copy
            try:
                if not _is_there(path, num_bytes):
                    self._make_room(folder, num_bytes)
                    self._copy(location, path, num_bytes)
            finally:
                lock.unlink(missing_ok=True)
        return path

    def _copy(self, location: UPath, path: Path, num_bytes: int) -> None:
        # Under a unique name: some file systems have no locks, or none between machines.
        partial = path.with_name(f"{path.name}.{secrets.token_hex(6)}.partial")
        try:
            with partial.open("xb", buffering=0) as file:
                _download(location, file.fileno(), num_bytes, path.name)
            os.replace(partial, path)
        except OSError as error:
            if error.errno not in FULL_DISK:
                raise
            raise DiskFullError(
                f"no space left in {path.parent.parent} for a copy of {location} "
                f"({format_bytes(num_bytes)}); free some space, or name another folder with "
                f"${FOLDER_VARIABLE}, or of train with --cache-dir"
            ) from None
        finally:
            partial.unlink(missing_ok=True)

    def holds(self, num_bytes: int) -> bool:
        """Return whether copies of this size fit within the limit."""
        folder = self.folder or default_folder()
        return num_bytes <= self._limit(folder, _total(_copies(folder)))

    def _limit(self, folder: Path, held: int) -> int:
        if self.max_bytes is not None:
            return self.max_bytes
        if limit := os.environ.get(LIMIT_VARIABLE):
            return _parse_limit(limit, f"${LIMIT_VARIABLE}")
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        return int(_SHARE_OF_DISK * (shutil.disk_usage(existing).free + held))

    def _make_room(self, folder: Path, num_bytes: int) -> None:
        """Remove the least recently used copies until another one fits.

        Raises:
            DiskFullError: the copy is larger than the limit.
        """
        found = _copies(folder)
        total = _total(found)
        limit = self._limit(folder, total)
        if num_bytes > limit:
            raise DiskFullError(
                f"a copy of {format_bytes(num_bytes)} does not fit into {folder}, whose limit is "
                f"{format_bytes(limit)}; {RAISE_LIMIT}"
            )
        now = time.time()
        for used_at, size, path in sorted(found):
            if total + num_bytes <= limit:
                return
            if used_at > now - (_ABANDONED_S if path.endswith(".partial") else _IN_USE_S):
                continue
            # Another process removed it, or it belongs to another user.
            with contextlib.suppress(FileNotFoundError, PermissionError):
                os.unlink(path)
                total -= size


def copies_of(folder: Path | None, limit: str | None) -> LocalCopies:
    """Return the local copies that --cache-dir and --cache-limit describe.

    Raises:
        SettingError: the limit is not a number of bytes.
    """
    return LocalCopies(
        None if folder is None else folder.expanduser().absolute(),
        None if limit is None else _parse_limit(limit, "--cache-limit"),
    )


def _parse_limit(text: str, name: str) -> int:
    found = parse_bytes(text)
    if found is None:
        raise SettingError(f"{name} must be a number of bytes such as 500GB, got {text!r}")
    return found


def _is_there(path: Path, num_bytes: int) -> bool:
    """Return whether a copy is complete, and mark it as used."""
    try:
        status = os.stat(path)
        if status.st_size != num_bytes:
            return False
        with contextlib.suppress(PermissionError):  # another user's
            os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _download(location: UPath, file: int, num_bytes: int, digest: str) -> None:
    """Download an object into an open, empty file, check it and sync it."""
    found, at = hashlib.sha256(), 0
    while at < num_bytes:
        piece = read_bytes(location, at, min(_PIECE_BYTES, num_bytes - at))
        if not piece:
            break
        found.update(piece)
        view = memoryview(piece)
        while view:
            view = view[os.write(file, view) :]
        at += len(piece)
    if found.hexdigest() != digest:
        raise DamagedCacheError(
            f"{location} does not match its record ({at:,} bytes with SHA-256 "
            f"{found.hexdigest()[:12]}..., expected {num_bytes:,} with {digest[:12]}...); run "
            "siglip2-cache verify"
        )
    sync_file(file)


def _copies(folder: Path) -> list[tuple[float, int, str]]:
    """Return (time of last use, bytes, path) of every copy, partial copies included."""
    found: list[tuple[float, int, str]] = []
    for entry in _entries(folder):
        with contextlib.suppress(FileNotFoundError):
            status = entry.stat()
            found.append((status.st_mtime, status.st_size, entry.path))
    return found


def _entries(folder: Path) -> Generator[os.DirEntry[str]]:
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as parents:
        for parent in parents:
            missing = contextlib.suppress(FileNotFoundError, NotADirectoryError)
            with missing, os.scandir(parent.path) as entries:
                yield from (e for e in entries if _NAME.fullmatch(f"{parent.name}/{e.name}"))


def _total(found: list[tuple[float, int, str]]) -> int:
    return sum(size for _, size, _ in found)
