"""Storage in a folder of this machine: every byte written to a local cache goes through this file."""

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from ...errors import DamagedCacheError, DiskFullError
from .locks import lock_file

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW
_WRITE_BYTES = 1 << 20  # pieces are joined to this size before they are written

READ_BYTES = 1 << 23
"""Bytes of a large file in memory at a time while it is read."""

FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors of a disk, a quota or a file system without room."""

# Errors of file systems without hard links (exFAT, some FUSE mounts).
_NO_HARD_LINKS = {
    *(errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.ENOSYS)
}
# Errors of network file systems that cannot sync folders.
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF}


class LocalStorage:
    """Storage below one folder of this machine; the methods are those of Storage (storage.py)."""

    is_remote = False

    def __init__(self, root: Path) -> None:
        self.root = root

    def local_path(self, path: str) -> Path:
        """Return the path of a file on this machine."""
        return self.root / path

    def _own(self, path: str) -> Path:
        """Return the path of a file that will be written, renamed or removed.

        Raises:
            DamagedCacheError: its folder is outside the root, behind a symbolic link.
        """
        local = self.root / path
        folder = os.path.realpath(local.parent)
        if not Path(folder).is_relative_to(os.path.realpath(self.root)):
            raise DamagedCacheError(
                f"{local} is behind a symbolic link to {folder}, outside {self.root}, where nothing is "
                "written; replace the link with a folder"
            )
        return local

    def where(self, path: str) -> str:
        """Return the full path of a file, for messages."""
        return str(self.root / path)

    def root_kind(self) -> Literal["missing", "folder", "file"]:
        """Return what exists at the root."""
        if self.root.is_dir():
            return "folder"
        return "file" if self.root.exists() else "missing"

    def check_exclusive(self) -> None:
        """Do nothing: every file system creates a name only once."""

    def fetch(self, path: str, description: Mapping[str, Any]) -> Path:
        """Return the file itself."""
        return self.root / path

    def fetch_all(self, wanted: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Path]:
        """Return the files themselves."""
        return [self.root / path for path, _ in wanted]

    def fits_locally(self, num_bytes: int) -> bool:
        """Return True: no copies are made."""
        return True

    def write(self, path: str, data: bytes | bytearray | memoryview) -> None:
        """Write a whole file and fsync it."""
        self._make_folder(PurePosixPath(path).parent)
        try:
            self._write_synced(path, data)
        except OSError as error:
            self._refuse_full_disk(path, len(data), error)
            raise

    def write_unsynced(self, path: str, data: bytes) -> None:
        """Write a whole file without fsync."""
        self._make_folder(PurePosixPath(path).parent)
        try:
            self.local_path(path).write_bytes(data)
        except OSError as error:
            self._refuse_full_disk(path, len(data), error)
            raise

    @contextlib.contextmanager
    def writing(self, path: str) -> Generator[Callable[[bytes], None]]:
        """Yield a function that appends bytes to a new file; fsync at the end."""
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
        """Write a temporary file and rename it."""
        partial = f"{path}.new.partial"
        self.write(partial, data)
        self.rename(partial, path)
        self.sync_folders([path])

    def sync_folders(self, paths: Iterable[str]) -> None:
        """Fsync each folder that holds one of these files, once."""
        for folder in sorted({str(PurePosixPath(path).parent) for path in paths}):
            sync_folder(self.root / folder)

    def rename(self, source: str, target: str) -> bool:
        """Rename a file, replacing the target. Return False if the source does not exist."""
        try:
            os.rename(self._own(source), self._own(target))
        except FileNotFoundError:
            return False
        return True

    def rename_all(self, staged: Mapping[str, str]) -> dict[str, bool]:
        """Rename files, given as target to source. Return the result of rename by target."""
        return {target: self.rename(source, target) for target, source in staged.items()}

    def named_before(self, descriptions: Mapping[str, Mapping[str, Any]], other: str) -> list[str]:
        """Return all of the files: renaming a file keeps its time, so nothing can be excluded."""
        return list(descriptions)

    def create(self, path: str, data: bytes, *, token: str) -> bool:
        """Create a file by a hard link. Return False if the name exists."""
        partial = f"{path}.{token}.partial"
        self.write(partial, data)
        try:
            os.link(self._own(partial), self._own(path))
            is_ours = True
        except FileExistsError:  # our own link, if NFS lost the response and repeated the request
            is_ours = self._is_one_file(partial, path)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            is_ours = self._create_without_links(path, data)
        self.remove(partial)
        sync_folder(self.local_path(path).parent)
        return is_ours

    def remove(self, path: str) -> None:
        """Remove a file if it exists."""
        try:
            os.unlink(self._own(path))
        except FileNotFoundError:
            return

    def remove_all(self, paths: Iterable[str]) -> None:
        """Remove several files if they exist."""
        for path in paths:
            self.remove(path)

    def read(self, path: str) -> bytes:
        """Return the bytes of a file."""
        with open(f"{self.root}/{path}", "rb") as file:  # pathlib would double the time
            return file.read()

    def read_head(self, path: str, num_bytes: int) -> bytes:
        """Return the first bytes of a file."""
        with self.local_path(path).open("rb") as file:
            return file.read(num_bytes)

    def pieces(self, path: str) -> Iterator[bytes]:
        """Yield the bytes of a file, READ_BYTES at a time."""
        with self.local_path(path).open("rb", buffering=0) as file:
            while piece := file.read(READ_BYTES):
                yield piece

    def describe(self, path: str) -> dict[str, Any]:
        """Return the ``num_bytes`` and ``sha256`` of a file, reading it in pieces."""
        with self.local_path(path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
            return {"num_bytes": file.tell(), "sha256": digest.hexdigest()}

    def num_bytes(self, path: str) -> int | None:
        """Return the size of a file, or None if it does not exist."""
        local = self.local_path(path)
        return local.stat().st_size if local.is_file() else None

    def exists(self, path: str) -> bool:
        """Return whether a file exists."""
        return self.local_path(path).is_file()

    def names(self, folder: str) -> list[str]:
        """Return the sorted names in a folder, none if the folder does not exist."""
        try:
            return sorted(os.listdir(self.local_path(folder)))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def walk(self) -> Iterator[str]:
        """Yield the paths of all files below the root, sorted within each folder."""
        root = str(self.root)
        for folder, folders, names in os.walk(root):
            folders.sort()
            prefix = folder[len(root) :].replace(os.sep, "/").lstrip("/")
            for name in sorted(names):
                yield f"{prefix}/{name}" if prefix else name

    @contextlib.contextmanager
    def locked(self, folder: str) -> Generator[bool]:
        """Yield whether this process alone has a folder, by a lock on a file in it."""
        self._make_folder(PurePosixPath(folder))
        # A file open for writing: NFS locks neither read-only files nor folders.
        path = self._own(f"{folder}/lock.partial")
        with lock_file(path, waits=False) as is_alone:
            try:
                yield is_alone
            finally:
                if is_alone:
                    path.unlink(missing_ok=True)

    def _refuse_full_disk(self, path: str, num_bytes: int, error: OSError) -> None:
        """Remove the file and raise DiskFullError if the error means a full disk."""
        if error.errno in FULL_DISK:
            self.remove(path)
            raise DiskFullError(
                f"no space left on the disk of {self.root} while writing {path} "
                f"({num_bytes:,} bytes); free some space and run the same command again, "
                "finished units are kept"
            ) from error

    def _write_synced(self, path: str, data: bytes | bytearray | memoryview) -> None:
        descriptor = os.open(self._own(path), _NEW_FILE | os.O_TRUNC, 0o644)
        try:
            _write_all(descriptor, data)
            sync_file(descriptor)
        finally:
            os.close(descriptor)

    def _create_without_links(self, path: str, data: bytes) -> bool:
        # A crash in the middle leaves a truncated file, which its checksum shows (format/records.py). It is
        # written again from the intent beside it (format/transaction.py).
        try:
            descriptor = os.open(self._own(path), _NEW_FILE | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        try:
            _write_all(descriptor, data)
            sync_file(descriptor)
        except OSError:
            # Another process may have written the record again by now.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(self._own(path))):
                    self.remove(path)
            raise
        finally:
            os.close(descriptor)
        return True

    def _is_one_file(self, path: str, other: str) -> bool:
        try:
            return os.path.samestat(os.stat(self.local_path(path)), os.stat(self.local_path(other)))
        except FileNotFoundError:
            return False

    def _make_folder(self, folder: PurePosixPath) -> None:
        wanted = self._own(f"{folder}/file").parent
        missing = [path for path in (wanted, *wanted.parents) if not path.is_dir()]
        for path in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(path)
            sync_folder(path.parent)


def _write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(descriptor, view) :]


def sync_file(descriptor: int) -> None:
    """Write the bytes of an open file to the disk so that they survive a power cut.

    On macOS fsync may leave them in the memory of the disk; F_FULLFSYNC does not, on disks that
    support it.
    """
    full_sync: int | None = getattr(fcntl, "F_FULLFSYNC", None)  # macOS only
    if full_sync is not None:
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, full_sync)
            return
    os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, on file systems that can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        sync_file(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)
