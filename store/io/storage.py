"""The files of a cache: one protocol for this machine (local.py) and for object stores (remote.py).

The commit protocol (format/transaction.py) needs five operations: write a whole file durably, give it
its final name, create a name exclusively, remove it, list a folder.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Protocol

from upath import UPath

from .download_cache import LocalCopies
from .local import LocalStorage
from .location import Location
from .remote import RemoteStorage


class Storage(Protocol):
    """Files below one root. Paths are relative to the root, with forward slashes.

    Methods that read a file raise FileNotFoundError if it does not exist. Methods of an object store
    also raise StorageError if the store does not respond.
    """

    @property
    def root(self) -> Location:
        """The folder or URL."""
        ...

    @property
    def is_remote(self) -> bool:
        """Whether every operation is a request to an object store."""
        ...

    def where(self, path: str) -> str:
        """Return the full path or URL of a file, for messages."""
        ...

    def local_path(self, path: str) -> Path | None:
        """Return the path of a file on this machine, or None in an object store."""
        ...

    def root_kind(self) -> Literal["missing", "folder", "file"]:
        """Return what exists at the root."""
        ...

    def check_exclusive(self) -> None:
        """Check that a name can be created only once.

        Raises:
            SettingError: the store ignores conditional writes, or nothing can be written there.
        """
        ...

    def read(self, path: str) -> bytes:
        """Return the bytes of a file."""
        ...

    def read_head(self, path: str, num_bytes: int) -> bytes:
        """Return the first bytes of a file."""
        ...

    def pieces(self, path: str) -> Iterator[bytes]:
        """Yield the bytes of a file, READ_BYTES at a time."""
        ...

    def describe(self, path: str) -> dict[str, Any]:
        """Return the ``num_bytes`` and ``sha256`` of a file, as records hold them."""
        ...

    def fetch(self, path: str, description: Mapping[str, Any]) -> Path:
        """Return a file of this machine with these bytes: the file itself, or a copy of the object.

        Args:
            path: the file.
            description: its ``num_bytes`` and ``sha256``, which a copy is checked against.

        Raises:
            DamagedCacheError: the object does not match its description.
            DiskFullError: there is no room for the copy.
        """
        ...

    def fetch_all(self, wanted: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Path]:
        """Return the result of fetch for several files, in the order asked."""
        ...

    def fits_locally(self, num_bytes: int) -> bool:
        """Return whether copies of this size fit on this machine; always True for local files."""
        ...

    def num_bytes(self, path: str) -> int | None:
        """Return the size of a file, or None if it does not exist."""
        ...

    def exists(self, path: str) -> bool:
        """Return whether a file exists."""
        ...

    def names(self, folder: str) -> list[str]:
        """Return the sorted names in a folder, none if the folder does not exist."""
        ...

    def walk(self) -> Iterator[str]:
        """Yield the paths of all files below the root."""
        ...

    def write(self, path: str, data: bytes | bytearray | memoryview) -> None:
        """Write a whole file. Its bytes are durable on return, its name after sync_folders.

        Raises:
            DiskFullError: the disk is full; the incomplete file is removed.
        """
        ...

    def write_unsynced(self, path: str, data: bytes) -> None:
        """Write a whole file that can be made again: a power cut may lose it."""
        ...

    def writing(self, path: str) -> AbstractContextManager[Callable[[bytes], None]]:
        """Return a context whose value appends bytes to a new file; it is durable at the end.

        The incomplete file is removed if the body or the disk fails.
        """
        ...

    def replace(self, path: str, data: bytes) -> None:
        """Write a file durably; readers see the old bytes or the new ones, never a mixture."""
        ...

    def sync_folders(self, paths: Iterable[str]) -> None:
        """Make the names of these files durable."""
        ...

    def rename(self, source: str, target: str) -> bool:
        """Rename a file, replacing the target. Return False if the source does not exist."""
        ...

    def rename_all(self, staged: Mapping[str, str]) -> dict[str, bool]:
        """Rename files, given as target to source. Return the result of rename by target."""
        ...

    def named_before(self, descriptions: Mapping[str, Mapping[str, Any]], other: str) -> list[str]:
        """Return those of the files that may have had their names before ``other`` was written."""
        ...

    def create(self, path: str, data: bytes, *, token: str) -> bool:
        """Create a file whole and durably. Return False if the name exists.

        Args:
            path: the file.
            data: its bytes.
            token: part of the name of a temporary file, unique to the caller.
        """
        ...

    def remove(self, path: str) -> None:
        """Remove a file if it exists."""
        ...

    def remove_all(self, paths: Iterable[str]) -> None:
        """Remove several files if they exist."""
        ...

    def locked(self, folder: str) -> AbstractContextManager[bool]:
        """Return a context whose value says whether this process alone has a folder.

        The system releases the lock when the process dies. In an object store the value is always
        True: there are no such locks.
        """
        ...


def open_storage(root: Location, copies: LocalCopies | None = None) -> Storage:
    """Return the files below a folder or URL.

    Args:
        root: the folder or URL.
        copies: where local copies of objects are kept; None: the default folder.
    """
    return RemoteStorage(root, copies) if isinstance(root, UPath) else LocalStorage(root)
