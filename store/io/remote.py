"""The files of a cache in an object store: the operations of LocalFiles (files.py), made of requests.

write is a whole-object PUT, rename a server-side copy and a deletion, create a PUT with If-None-Match;
objects are durable when a request is answered, so that nothing is synced. A request whose answer was
lost is made again: each may be made twice, and create tells its own object from another's.
"""

import contextlib
import hashlib
import os
import secrets
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from upath import UPath

from ...errors import SettingError
from .download_cache import LocalCopies
from .local import READ_BYTES
from .location import filesystem, is_folder, list_folder, patiently, read_bytes, status_of
from .parallel import map_ahead

_FETCHED_AT_ONCE = 8

_COPY_LATER = ("az", "abfs", "abfss")
"""Azure may answer before it has copied: an object without bytes stands there until then, and a source
that were removed meanwhile would be lost."""


class ObjectFiles:
    """Objects below one URL. Paths are relative, with forward slashes."""

    def __init__(self, root: UPath, copies: LocalCopies | None = None) -> None:
        """Remember the place.

        Args:
            root: URL of the cache.
            copies: where objects that are mapped or opened as files are copied to; None: the
                default folder.
        """
        self.root = root
        self.copies = copies or LocalCopies()

    def where(self, path: str) -> str:
        """Return the URL of an object, for messages."""
        return str(self.root / path)

    def root_kind(self) -> Literal["missing", "folder", "file"]:
        """Say what stands where the root should."""
        if is_folder(self.root):
            return "folder"
        return "missing" if status_of(self.root) is None else "file"

    def fetch(self, path: str, described: Mapping[str, Any]) -> Path:
        """Return a file of this machine with an object's bytes, which ``described`` has the checksum of.

        Raises:
            FileNotFoundError: there is no such object.
            DamagedCacheError: it is not what its record describes.
            StorageError: the store does not answer.
            DiskFullError: the copy has no room.
        """
        return self.copies.fetch(self._at(path), described)

    def fetch_all(self, wanted: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Path]:
        """Return several as fetch, some at a time."""
        begun = map_ahead(lambda each: self.fetch(*each), wanted, num_threads=_FETCHED_AT_ONCE)
        return [path for _, path in begun]  # the first that fails ends it

    def write(self, path: str, data: bytes | bytearray | memoryview) -> None:
        """Write a whole object."""
        fs, at = self._fs, self._at(path)
        whole = data if isinstance(data, bytes) else bytes(data)
        try:
            patiently(lambda: fs.pipe_file(at.path, whole), at)
        except FileNotFoundError:
            # An upload in parts whose last answer was lost has nothing left to be completed again.
            if self.num_bytes(path) != len(whole):
                raise

    def write_unsynced(self, path: str, data: bytes) -> None:
        """Write a whole object, which is durable like any other."""
        self.write(path, data)

    @contextlib.contextmanager
    def writing(self, path: str) -> Generator[Callable[[bytes], None]]:
        """As write, for an object too large for memory: it is put together on this machine first."""
        fs, at = self._fs, self._at(path)
        with tempfile.NamedTemporaryFile(prefix="siglip2-cache-") as file:

            def append(piece: bytes) -> None:
                file.write(piece)

            yield append
            file.flush()
            try:
                patiently(lambda: fs.put_file(file.name, at.path), at)
            except FileNotFoundError:  # as in write
                if self.num_bytes(path) != os.path.getsize(file.name):
                    raise

    def replace(self, path: str, data: bytes) -> None:
        """Write an object; readers see the old one or the new one, whole."""
        self.write(path, data)

    def sync_folders(self, paths: Iterable[str]) -> None:
        """Do nothing: an object is durable with its name."""

    def rename(self, source: str, target: str) -> bool:
        """Give an object its final name, replacing what stands there; False where source is gone."""
        fs, old, new = self._fs, self._at(source), self._at(target)
        wanted = self.num_bytes(source) if self.root.protocol in _COPY_LATER else None
        try:
            patiently(lambda: fs.cp_file(old.path, new.path), old)
        except FileNotFoundError:
            return False
        if wanted is not None:
            patiently(lambda: self._expect(target, wanted), new)
        self.remove(source)
        return True

    def rename_all(self, staged: Mapping[str, str]) -> dict[str, bool]:
        """Give objects, by final name, these names, many at a time; say of each whether it was there."""
        begun = map_ahead(lambda each: self.rename(each[1], each[0]), staged.items())
        return {target: was_there for (target, _), was_there in begun}

    def named_before(self, described: Mapping[str, Mapping[str, Any]], other: str) -> list[str]:
        """Return the objects that may have had their names when another object was written.

        An object is as old as its name: one of the right size that is not older than the other was put in
        place after that, and need not be fetched to know it. The times are those of the store's own clock.
        """
        than = status_of(self._at(other)) if described else None
        begun = map_ahead(lambda path: status_of(self._at(path)), described)
        return [
            path
            for path, found in begun
            if than is None
            or than.mtime_ns is None
            or found is None
            or found.mtime_ns is None
            or found.mtime_ns < than.mtime_ns
            or found.num_bytes != described[path]["num_bytes"]
        ]

    def _expect(self, path: str, num_bytes: int) -> None:
        if self.num_bytes(path) != num_bytes:
            raise OSError("it is still being copied")

    def create(self, path: str, data: bytes, *, token: str) -> bool:
        """Create an object whole, or not at all; False where the name is taken by other bytes."""
        fs, at = self._fs, self._at(path)
        try:
            patiently(lambda: fs.pipe_file(at.path, data, mode="create"), at)
        except FileExistsError:
            # Ours, if the answer to an earlier try was lost: nobody else's bytes are the same.
            return self.read(path) == data
        return True

    def check_exclusive(self) -> None:
        """Make sure that the store creates a name once only, which the commit protocol rests on.

        Raises:
            SettingError: it does not, or nothing can be written there.
        """
        try:
            # Twice: another process that clears garbage may remove the first one's object half-way.
            is_exclusive = self._creates_once() or self._creates_once()
        except (NotImplementedError, FileNotFoundError, PermissionError, TypeError) as error:
            raise SettingError(
                f"{self.root} cannot be built into ({error}); name a place that can be written"
            ) from None
        if not is_exclusive:
            raise SettingError(
                f"the store of {self.root} ignores If-None-Match, so that two processes could take one "
                "unit for theirs; use a store that honours it, or build into a local folder"
            )

    def _creates_once(self) -> bool:
        path = f"cache.json.{secrets.token_hex(6)}.partial"
        self.create(path, b"1", token="")
        try:
            return not self.create(path, b"2", token="")
        except FileNotFoundError:  # refused, and removed before it was looked at
            return True
        finally:
            self.remove(path)

    def remove(self, path: str) -> None:
        """Remove an object; nothing happens where there is none."""
        fs, at = self._fs, self._at(path)
        with contextlib.suppress(FileNotFoundError):
            patiently(lambda: fs.rm_file(at.path), at)

    def remove_all(self, paths: Iterable[str]) -> None:
        """Remove several objects as remove, many at a time."""
        for _ in map_ahead(self.remove, paths):
            pass

    def read(self, path: str) -> bytes:
        """Return an object's bytes.

        Raises:
            FileNotFoundError: there is no such object.
        """
        return read_bytes(self._at(path))

    def read_head(self, path: str, num_bytes: int) -> bytes:
        """Return an object's first bytes; raises as read."""
        return read_bytes(self._at(path), 0, num_bytes)

    def pieces(self, path: str) -> Iterator[bytes]:
        """Yield an object's bytes, READ_BYTES at a time, a request each; raises as read."""
        at, num_bytes = self._at(path), 0
        while piece := read_bytes(at, num_bytes, READ_BYTES):
            yield piece
            num_bytes += len(piece)
            if len(piece) < READ_BYTES:
                break

    def describe(self, path: str) -> dict[str, Any]:
        """Return an object's size and SHA-256 as records hold them, read in pieces.

        Raises:
            FileNotFoundError: there is no such object.
        """
        digest, num_bytes = hashlib.sha256(), 0
        for piece in self.pieces(path):
            digest.update(piece)
            num_bytes += len(piece)
        return {"num_bytes": num_bytes, "sha256": digest.hexdigest()}

    def num_bytes(self, path: str) -> int | None:
        """Return an object's size; None where there is none."""
        status = status_of(self._at(path))
        return None if status is None else status.num_bytes

    def exists(self, path: str) -> bool:
        """Say whether an object of this name is there."""
        return status_of(self._at(path)) is not None

    def names(self, folder: str) -> list[str]:
        """Return the sorted names in a folder; empty where there is none."""
        return [entry.name for entry in list_folder(self._at(folder))]

    def walk(self) -> Iterator[str]:
        """Yield every object below the root, sorted."""
        fs, root = self._fs, self.root
        try:
            found: list[str] = patiently(lambda: fs.find(root.path), root)
        except FileNotFoundError:
            return
        prefix = f"{root.path.strip('/')}/"
        yield from sorted(name.lstrip("/").removeprefix(prefix) for name in found)

    @contextlib.contextmanager
    def locked(self, folder: str) -> Generator[bool]:
        """Say yes: a store has no locks that are freed when a process dies."""
        yield True

    @property
    def _fs(self) -> Any:
        return filesystem(self.root)

    def _at(self, path: str) -> UPath:
        return self.root / path if path else self.root
