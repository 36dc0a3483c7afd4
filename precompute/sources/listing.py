"""Paths of a corpus: relative to its root, listed, opened, shown in messages.

A path here is a str: absolute on this machine, or the URL of an object.
"""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, cast

from upath import UPath

from ...store.io.location import Location, is_url, join, parse_location
from ...store.io.parallel import map_parallel
from ...store.io.range_file import ReadAhead
from ...store.io.requests import (
    NAMELESS,
    ObjectStatus,
    kind_of,
    list_folder,
    read_bytes,
    status_of,
)

SizeAndTime = tuple[int | None, int | None]
"""Size in bytes, and modification time in nanoseconds (whole seconds in an object store); (None, None) if
there is no file."""

TWO_SLASHES = "objects whose keys have two slashes here cannot be listed; copy them to other keys"
"""Reason of the problem for such objects, which no client of a store can list."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_MAX_PART = 255  # of a path, on every file system in use
_FEW_FILES = 16  # of one folder: looked up one by one, without listing the folder


def path_below(root: Location, written: str) -> str:
    """Return the path relative to root, with forward slashes; ``..`` stays where it leads outside.

    ``..`` is not resolved: after a symbolic link ``link/../a.jpg`` is another file than ``a.jpg``. In an
    object store the path may also be a URL of the same bucket.

    Raises:
        ValueError: it names no file; the message is a reason.
    """
    if not written.strip():
        raise ValueError("the image path is empty")
    if "\0" in written:
        raise ValueError(f"the image path holds a NUL byte: {written[:40]!r}")
    if _URL.match(written):
        relative = _relative_url(root, written)
    else:
        relative = _relative(root, written) if os.path.isabs(written) else written
    parts = [part for part in relative.split("/") if part not in ("", ".")]
    longest = max((len(os.fsencode(part)) for part in parts), default=0)
    if isinstance(root, Path) and longest > _MAX_PART:
        raise ValueError(
            f"the image path has a part of {longest:,} bytes, and no file more than {_MAX_PART}: "
            f"{written[:40]!r}..."
        )
    if not parts or parts[-1] == "..":
        raise ValueError(f"the image path names no file: {written[:40]!r}")
    if isinstance(root, UPath) and ".." in parts:
        try:
            join(root, "/".join(parts))
        except FileNotFoundError as error:
            raise ValueError(f"{error.strerror}: {written[:40]!r}") from None
    return "/".join(parts)


def as_location(path: str) -> Location:
    """Return the location of a path. Objects may have names that a location given by a user may not.

    Raises:
        FileNotFoundError: a URL leads outside its bucket.
    """
    if not is_remote(path):
        return Path(path)
    protocol, _, rest = path.partition("://")
    bucket, _, way = rest.partition("/")
    return join(_bucket(protocol, bucket), way)


@lru_cache(maxsize=64)
def _bucket(protocol: str, bucket: str) -> Location:
    return parse_location(f"{protocol}://{bucket}")


def is_remote(path: str) -> bool:
    """Return whether a path is a URL."""
    return "://" in path and is_url(path)


def size_and_time(path: str) -> SizeAndTime:
    """Return size and modification time of a file; (None, None) if there is none.

    Raises:
        StorageError: its store is unreachable.
    """
    if is_remote(path):
        return _of_object(path)
    try:
        status = os.stat(path)
    except (
        OSError
    ):  # missing, a broken or looping link, a name too long: reading the image reports it
        return None, None
    if not stat.S_ISREG(status.st_mode):
        return None, None
    return status.st_size, status.st_mtime_ns


def sizes_and_times(paths: Sequence[str]) -> Iterator[SizeAndTime]:
    """Yield sizes and times in order. Objects are looked up in parallel, many of one folder by a listing."""
    if not any(map(is_remote, paths)):
        yield from map(size_and_time, paths)
        return
    num_in: dict[str, int] = {}
    for path in paths:
        folder = path.rpartition("/")[0]
        num_in[folder] = num_in.get(folder, 0) + 1
    listed: dict[str, SizeAndTime] = {}
    for folder in (folder for folder, count in num_in.items() if count > _FEW_FILES):
        # A folder that is missing, or may not be read, has no files.
        missing = contextlib.suppress(FileNotFoundError, PermissionError)
        with missing, scan_folder(folder) as entries:
            listed.update((entry.path, facts_of(entry)) for entry in entries)
    alone = [path for path in paths if num_in[path.rpartition("/")[0]] <= _FEW_FILES]
    listed.update(map_parallel(size_and_time, alone))
    yield from (listed.get(path, (None, None)) for path in paths)


@dataclass(frozen=True, slots=True)
class ObjectEntry:
    """A name in a folder of an object store, with the interface of os.DirEntry."""

    name: str
    path: str
    status: ObjectStatus | None

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Return whether there are objects below it."""
        return self.status is None

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Return whether it is an object."""
        return self.status is not None

    def is_symlink(self) -> bool:
        """Return False: a store has no links."""
        return False


FolderEntry = os.DirEntry[str] | ObjectEntry


@contextlib.contextmanager
def scan_folder(path: str, *, with_nameless: bool = False) -> Generator[Iterable[FolderEntry]]:
    """Yield the entries of a folder, as os.scandir does; objects come with size and time.

    With ``with_nameless`` an object store also yields NAMELESS if keys hold ``//`` after this folder.

    Raises:
        OSError: there is none, or it may not be read.
    """
    if not is_remote(path):
        with os.scandir(path) as entries:
            yield entries
        return
    found = list_folder(cast(UPath, as_location(path)), with_nameless=with_nameless)
    if not found:
        raise FileNotFoundError(errno.ENOENT, "no such folder", path)
    prefix = path.rstrip("/")
    yield [ObjectEntry(entry.name, f"{prefix}/{entry.name}", entry.status) for entry in found]


def list_names(path: str) -> list[str]:
    """Return the names in a folder, as os.listdir does.

    Raises:
        OSError: there is no such folder, or it may not be read.
    """
    if not is_remote(path):
        return os.listdir(path)
    with scan_folder(path) as entries:
        return [entry.name for entry in entries]


def facts_of(entry: FolderEntry) -> SizeAndTime:
    """Return size and time of an entry; those of an object come from the listing."""
    if not isinstance(entry, ObjectEntry):
        return size_and_time(entry.path)
    status = entry.status
    return (None, None) if status is None else (status.num_bytes, status.mtime_ns)


def walk_folder(path: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield folders, names of sub-folders and names of files, as os.walk does from the top.

    Sub-folders that the caller removes from the list are not entered. In an object store NAMELESS is among
    the files of a folder where keys hold ``//``.
    """
    if not is_remote(path):
        yield from os.walk(path)
        return
    try:
        with scan_folder(path, with_nameless=True) as entries:
            found = list(entries)
    except OSError:
        return
    folders = [entry.name for entry in found if entry.is_dir() and entry.name != NAMELESS]
    yield path, folders, [entry.name for entry in found if entry.name not in folders]
    for name in folders:
        yield from walk_folder(f"{path.rstrip('/')}/{name}")


def exists(path: str) -> bool:
    """Return whether a file or folder exists."""
    return kind_of(as_location(path)) is not None if is_remote(path) else os.path.exists(path)


def is_readable(path: str) -> bool:
    """Return whether a file may be read; always True in a store, which reports it when it is read."""
    return is_remote(path) or os.access(path, os.R_OK)


def open_path(path: str) -> BinaryIO:
    """Open a file for reading: unbuffered on this machine, read ahead in a store.

    Raises:
        OSError: there is none, or it may not be read.
    """
    if is_remote(path):
        return cast(BinaryIO, ReadAhead(cast(UPath, as_location(path))))
    return cast(BinaryIO, open(path, "rb", buffering=0))


def read_path(path: str, num_bytes: int) -> bytes:
    """Return at most this many first bytes of a file; of an object, in one request.

    Raises:
        OSError: there is none, or it may not be read.
    """
    if is_remote(path):
        return read_bytes(as_location(path), 0, num_bytes)
    with open(path, "rb") as file:
        return file.read(num_bytes)


def is_folder(entry: FolderEntry) -> bool:
    """Return whether an entry is a folder or a link to one; False for a link to itself."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def printable(path: str) -> str:
    r"""Return a path for a message; bytes that are not UTF-8 appear as ``\xff``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _of_object(path: str) -> SizeAndTime:
    try:
        status = status_of(as_location(path))
    except (FileNotFoundError, PermissionError):
        return None, None
    return (None, None) if status is None else (status.num_bytes, status.mtime_ns)


def _relative_url(root: Location, url: str) -> str:
    if not isinstance(root, UPath):
        raise ValueError(
            f"the image is a URL, expected a file (img2dataset downloads such): {url[:80]!r}"
        )
    protocol, _, rest = str(root).partition("://")
    bucket = f"{protocol}://{rest.partition('/')[0]}/"
    if not url.startswith(bucket):
        raise ValueError(f"the image lies elsewhere, expected one below {bucket}: {url[:80]!r}")
    if "?" in url or "#" in url:
        raise ValueError("the image's URL has a ? or # in it, which no location may have")
    return os.path.relpath("/" + url.removeprefix(bucket), "/" + rest.partition("/")[2])


def _relative(root: Location, absolute: str) -> str:
    if isinstance(root, UPath):
        raise ValueError(
            f"the image path is absolute, expected one below {root}: {absolute[:80]!r}"
        )
    prefix = f"{root}/"
    if absolute.startswith(prefix):
        return absolute.removeprefix(prefix)
    # From the real root: the system resolves ".." from the target of a linked root.
    return os.path.relpath(absolute, os.path.realpath(root))
