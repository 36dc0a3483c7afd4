"""Durable file operations: every byte that reaches a cache on this machine goes through this file.

The commit protocol (commits.py) needs five things of a storage: write a whole object durably, give it
its final name, create a name exclusively, remove it, list a folder. An object store offers the same
five: object_files.py.
"""

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from ...errors import DamagedCacheError, DiskFullError
from .locks import lock_file

_NEW_FILE = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)  # what Windows has not
_WRITE_BYTES = 1 << 20  # that pieces are put together to

READ_BYTES = 1 << 23
"""Of a large file, in memory at a time where it is read through."""

_FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Filesystems without hard links (exFAT, some FUSE mounts) answer one of these.
_NO_HARD_LINKS = {
    *(errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.ENOSYS)
}
# Network file systems that cannot sync folders.
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF}


class LocalFiles:
    """Files below one folder of this machine. Paths are relative, with forward slashes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def local(self, path: str) -> Path:
        """Return the path on this machine."""
        return self.root / path

    def _own(self, path: str) -> Path:
        """Return the path on this machine of a file to be made, renamed or removed.

        Raises:
            DamagedCacheError: its folder is a link that leads out of the root, or behind one.
        """
        local = self.root / path
        folder = os.path.realpath(local.parent)
        if not Path(folder).is_relative_to(os.path.realpath(self.root)):
            raise DamagedCacheError(
                f"{local} lies behind a link to {folder}, outside of {self.root}, where nothing is "
                "written; put a folder in the place of the link"
            )
        return local

    def where(self, path: str) -> str:
        """Return the path on this machine, for messages."""
        return str(self.root / path)

    def root_kind(self) -> Literal["missing", "folder", "file"]:
        """Say what stands where the root should."""
        if self.root.is_dir():
            return "folder"
        return "file" if self.root.exists() else "missing"

    def fetch(self, path: str, described: Mapping[str, Any]) -> Path:
        """Return the path on this machine; of an object store it would be a copy, checked."""
        return self.root / path

    def fetch_all(self, wanted: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Path]:
        """Return several as fetch."""
        return [self.fetch(path, described) for path, described in wanted]

    def check_exclusive(self) -> None:
        """Make sure that a name is created once only: file systems all do."""

    def write(self, path: str, data: bytes | bytearray | memoryview) -> None:
        """Write a whole file and fsync it. Its *name* is durable only after sync_folders.

        Raises:
            DiskFullError: the disk has no room; the half-written file is removed.
        """
        self._make_folder(PurePosixPath(path).parent)
        try:
            self._write_synced(path, data, os.O_TRUNC)
        except OSError as error:
            self._refuse_full_disk(path, len(data), error)
            raise

    def write_unsynced(self, path: str, data: bytes) -> None:
        """As write, for what can be made again and shows when it is torn: a power cut may take it."""
        self._make_folder(PurePosixPath(path).parent)
        try:
            self.local(path).write_bytes(data)
        except OSError as error:
            self._refuse_full_disk(path, len(data), error)
            raise

    @contextlib.contextmanager
    def writing(self, path: str) -> Generator[Callable[[bytes], None]]:
        """As write, for a file too large for memory: give what appends a piece; fsync at the end.

        What was written is removed if the body, or the disk, fails.
        """
        self._make_folder(PurePosixPath(path).parent)
        descriptor = os.open(self._own(path), _NEW_FILE | os.O_TRUNC, 0o644)
        num_bytes, num_waiting, waiting = 0, 0, list[bytes]()

        def append(piece: bytes) -> None:
            nonlocal num_bytes, num_waiting
            waiting.append(piece)
            num_waiting += len(piece)
            if num_waiting >= _WRITE_BYTES:
                num_bytes += num_waiting
                _write_all(descriptor, b"".join(waiting))
                waiting.clear()
                num_waiting = 0

        try:
            try:
                yield append
                _write_all(descriptor, b"".join(waiting))
                sync_file(descriptor)
            finally:
                os.close(descriptor)
        except BaseException as error:
            self.remove(path)
            if isinstance(error, OSError):
                self._refuse_full_disk(path, num_bytes, error)
            raise

    def replace(self, path: str, data: bytes) -> None:
        """Write a file under another name and rename it: the old one or the new one stands, whole."""
        partial = f"{path}.new.partial"
        self.write(partial, data)
        self.rename(partial, path)
        self.sync_folders([path])

    def sync_folders(self, paths: Iterable[str]) -> None:
        """Make the names of these files durable: fsync each folder that holds one, once."""
        for folder in sorted({str(PurePosixPath(path).parent) for path in paths}):
            self._sync_folder(folder)

    def rename(self, source: str, target: str) -> bool:
        """Give a file its final name, replacing what stands there; False where source is gone."""
        try:
            os.rename(self._own(source), self._own(target))
        except FileNotFoundError:
            return False
        return True

    def rename_all(self, staged: Mapping[str, str]) -> dict[str, bool]:
        """Give files, by final name, these names in turn; say of each whether it was there, as rename."""
        return {target: self.rename(source, target) for target, source in staged.items()}

    def named_before(self, described: Mapping[str, Mapping[str, Any]], other: str) -> list[str]:
        """Return the files that may have had their names when another was written.

        That is all of them: a file that is renamed keeps its time.
        """
        return list(described)

    def create(self, path: str, data: bytes, *, token: str) -> bool:
        """Create a file whole and durable, or not at all; False where the name is taken."""
        partial = f"{path}.{token}.partial"
        self.write(partial, data)
        try:
            os.link(self._own(partial), self._own(path))
            is_ours = True
        except FileExistsError:  # ours, if NFS lost the answer and asked again
            is_ours = self._is_one_file(partial, path)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            is_ours = self._create_without_links(path, data)
        self.remove(partial)
        self._sync_folder(str(PurePosixPath(path).parent))
        return is_ours

    def remove(self, path: str) -> None:
        """Remove a file; nothing happens where there is none."""
        try:
            os.unlink(self._own(path))
        except FileNotFoundError:
            return

    def remove_all(self, paths: Iterable[str]) -> None:
        """Remove several files as remove."""
        for path in paths:
            self.remove(path)

    def read(self, path: str) -> bytes:
        """Return a file's bytes.

        Raises:
            FileNotFoundError: there is no such file.
        """
        with open(f"{self.root}/{path}", "rb") as file:  # pathlib would take as long as the reading
            return file.read()

    def read_head(self, path: str, num_bytes: int) -> bytes:
        """Return a file's first bytes; raises as read."""
        with self.local(path).open("rb") as file:
            return file.read(num_bytes)

    def pieces(self, path: str) -> Iterator[bytes]:
        """Yield a file's bytes, READ_BYTES at a time; raises as read."""
        with self.local(path).open("rb", buffering=0) as file:
            while piece := file.read(READ_BYTES):
                yield piece

    def describe(self, path: str) -> dict[str, Any]:
        """Return a file's size and SHA-256 as records hold them, read in pieces.

        Raises:
            FileNotFoundError: there is no such file.
        """
        with self.local(path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
            return {"num_bytes": file.tell(), "sha256": digest.hexdigest()}

    def num_bytes(self, path: str) -> int | None:
        """Return a file's size; None where there is none."""
        local = self.local(path)
        return local.stat().st_size if local.is_file() else None

    def exists(self, path: str) -> bool:
        """Say whether a file of this name is there."""
        return self.local(path).is_file()

    def names(self, folder: str) -> list[str]:
        """Return the sorted names in a folder; empty where there is no such folder."""
        try:
            return sorted(os.listdir(self.local(folder)))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def walk(self) -> Iterator[str]:
        """Yield every file below the root, sorted within each folder."""
        root = str(self.root)
        for folder, folders, names in os.walk(root):
            folders.sort()
            prefix = folder[len(root) :].replace(os.sep, "/").lstrip("/")
            for name in sorted(names):
                yield f"{prefix}/{name}" if prefix else name

    @contextlib.contextmanager
    def locked(self, folder: str) -> Generator[bool]:
        """Say whether this process has a folder to itself; the system frees it when a process dies."""
        self._make_folder(PurePosixPath(folder))
        # A file that is open for writing: NFS has no locks of others, and none of folders.
        path = self._own(f"{folder}/lock.partial")
        with lock_file(path, waits=False) as is_alone:
            try:
                yield is_alone
            finally:
                if is_alone:
                    path.unlink(missing_ok=True)

    def _refuse_full_disk(self, path: str, num_bytes: int, error: OSError) -> None:
        """Raise DiskFullError, and remove what was written, if that is what the error says."""
        if error.errno in _FULL_DISK:
            self.remove(path)
            raise DiskFullError(
                f"no space left on the disk of {self.root} while writing {path} "
                f"({num_bytes:,} bytes); free some and run the same command again, "
                "finished units are kept"
            ) from error

    def _write_synced(self, path: str, data: bytes | bytearray | memoryview, flags: int) -> None:
        descriptor = os.open(self._own(path), _NEW_FILE | flags, 0o644)
        try:
            _write_all(descriptor, data)
            sync_file(descriptor)
        finally:
            os.close(descriptor)

    def _create_without_links(self, path: str, data: bytes) -> bool:
        # A crash in the middle leaves a torn file here; its checksum shows that (records.py).
        try:
            self._write_synced(path, data, os.O_EXCL)
        except FileExistsError:
            return False
        return True

    def _is_one_file(self, path: str, other: str) -> bool:
        try:
            return os.path.samestat(os.stat(self.local(path)), os.stat(self.local(other)))
        except FileNotFoundError:
            return False

    def _make_folder(self, folder: PurePosixPath) -> None:
        wanted = self._own(f"{folder}/file").parent
        missing = [path for path in (wanted, *wanted.parents) if not path.is_dir()]
        for path in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(path)
            _fsync_folder(path.parent)

    def _sync_folder(self, folder: str) -> None:
        _fsync_folder(self.local(folder))


def _write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(descriptor, view) :]


def sync_file(descriptor: int) -> None:
    """Return when an open file's bytes will outlive a power cut.

    On macOS fsync leaves them in the disk's own memory; F_FULLFSYNC does not, where the disk knows it.
    """
    with contextlib.suppress(
        ImportError, AttributeError, OSError
    ):  # not macOS, or no disk that does
        import fcntl

        full_sync: int = getattr(fcntl, "F_FULLFSYNC")  # noqa: B009  (unknown elsewhere)
        fcntl.fcntl(descriptor, full_sync)
        return
    os.fsync(descriptor)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        sync_file(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)
