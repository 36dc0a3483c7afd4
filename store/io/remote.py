"""Storage in an object store.

write is a PUT of the whole object, rename a server-side copy and a deletion, create a PUT with
If-None-Match. An object is durable when its request is answered, so nothing is synced. A request whose
response was lost is repeated, so each request may arrive twice; create recognizes its own object.
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
from .parallel import map_parallel
from .requests import filesystem, is_folder, list_folder, read_bytes, status_of, with_retries

_PARALLEL_FETCHES = 8

_ASYNCHRONOUS_COPY = ("az", "abfs", "abfss")
"""Azure may answer before it has copied. Until then the target is empty, and removing the source would
lose the bytes."""


class RemoteStorage:
    """Storage below one URL; the methods are those of Storage (storage.py)."""

    is_remote = True

    def __init__(self, root: UPath, copies: LocalCopies | None = None) -> None:
        """Open nothing yet.

        Args:
            root: the URL.
            copies: where local copies of objects are kept; None: the default folder.
        """
        self.root = root
        self.copies = copies or LocalCopies()

    def where(self, path: str) -> str:
        """Return the URL of an object, for messages."""
        return str(self.root / path)

    def local_path(self, path: str) -> None:
        """Return None: there is no such path."""

    def root_kind(self) -> Literal["missing", "folder", "file"]:
        """Return what exists at the root."""
        if is_folder(self.root):
            return "folder"
        return "missing" if status_of(self.root) is None else "file"

    def fetch(self, path: str, description: Mapping[str, Any]) -> Path:
        """Return a checked local copy of an object."""
        return self.copies.fetch(self._at(path), description)

    def fetch_all(self, wanted: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Path]:
        """Return checked local copies of several objects, fetched in parallel."""
        results = map_parallel(
            lambda each: self.fetch(*each), wanted, num_threads=_PARALLEL_FETCHES
        )
        return [path for _, path in results]  # stops at the first error

    def fits_locally(self, num_bytes: int) -> bool:
        """Return whether copies of this size fit into the folder of local copies."""
        return self.copies.holds(num_bytes)

    def write(self, path: str, data: bytes | bytearray | memoryview) -> None:
        """Write a whole object."""
        fs, at = self._fs, self._at(path)
        whole = data if isinstance(data, bytes) else bytes(data)
        try:
            with_retries(lambda: fs.pipe_file(at.path, whole), at)
        except FileNotFoundError:
            # A multipart upload whose last response was lost has no parts left when it is repeated.
            if self.num_bytes(path) != len(whole):
                raise

    def write_unsynced(self, path: str, data: bytes) -> None:
        """Write a whole object, which is durable."""
        self.write(path, data)

    @contextlib.contextmanager
    def writing(self, path: str) -> Generator[Callable[[bytes], None]]:
        """Yield a function that appends bytes to a temporary file, uploaded at the end."""
        fs, at = self._fs, self._at(path)
        with tempfile.NamedTemporaryFile(prefix="siglip2-cache-") as file:

            def append(piece: bytes) -> None:
                file.write(piece)

            yield append
            file.flush()
            try:
                with_retries(lambda: fs.put_file(file.name, at.path), at)
            except FileNotFoundError:  # the last response was lost (see write)
                if self.num_bytes(path) != os.path.getsize(file.name):
                    raise

    def replace(self, path: str, data: bytes) -> None:
        """Write a whole object."""
        self.write(path, data)

    def sync_folders(self, paths: Iterable[str]) -> None:
        """Do nothing: an object is durable, and so is its name."""

    def rename(self, source: str, target: str) -> bool:
        """Rename an object, replacing the target. Return False if the source does not exist."""
        fs, old, new = self._fs, self._at(source), self._at(target)
        wanted = self.num_bytes(source) if self.root.protocol in _ASYNCHRONOUS_COPY else None
        try:
            with_retries(lambda: fs.cp_file(old.path, new.path), old)
        except FileNotFoundError:
            return False
        if wanted is not None:
            with_retries(lambda: self._expect(target, wanted), new)
        self.remove(source)
        return True

    def rename_all(self, staged: Mapping[str, str]) -> dict[str, bool]:
        """Rename objects in parallel, given as target to source. Return the result of rename by target."""
        results = map_parallel(lambda each: self.rename(each[1], each[0]), staged.items())
        return {target: is_renamed for (target, _), is_renamed in results}

    def named_before(self, descriptions: Mapping[str, Mapping[str, Any]], other: str) -> list[str]:
        """Return the objects that are older than ``other`` or have another size than described.

        An object is as old as its name, so the rest were renamed after ``other`` was written and need
        not be fetched. The times are those of the store's clock.
        """
        reference = status_of(self._at(other)) if descriptions else None
        results = map_parallel(lambda path: status_of(self._at(path)), descriptions)
        return [
            path
            for path, status in results
            if reference is None
            or reference.mtime_ns is None
            or status is None
            or status.mtime_ns is None
            or status.mtime_ns < reference.mtime_ns
            or status.num_bytes != descriptions[path]["num_bytes"]
        ]

    def _expect(self, path: str, num_bytes: int) -> None:
        if self.num_bytes(path) != num_bytes:
            raise OSError("the copy is not finished")

    def create(self, path: str, data: bytes, *, token: str) -> bool:
        """Create an object. Return False if the name exists with other bytes."""
        fs, at = self._fs, self._at(path)
        try:
            with_retries(lambda: fs.pipe_file(at.path, data, mode="create"), at)
        except FileExistsError:
            # Our own object if the response to an earlier attempt was lost: other bytes differ.
            return self.read(path) == data
        return True

    def check_exclusive(self) -> None:
        """Check that the store honours If-None-Match, which commits depend on."""
        try:
            # Twice: another process that removes garbage may remove the object in between.
            is_exclusive = self._creates_once() or self._creates_once()
        except (NotImplementedError, FileNotFoundError, PermissionError, TypeError) as error:
            raise SettingError(
                f"{self.root} is not writable ({error}); name a location that is"
            ) from None
        if not is_exclusive:
            raise SettingError(
                f"the store of {self.root} ignores If-None-Match, so two processes could commit the same "
                "unit; use a store that honours it, or build into a local folder"
            )

    def _creates_once(self) -> bool:
        path = f"cache.json.{secrets.token_hex(6)}.partial"
        self.create(path, b"1", token="")
        try:
            return not self.create(path, b"2", token="")
        except FileNotFoundError:  # refused, and removed before it was read
            return True
        finally:
            self.remove(path)

    def remove(self, path: str) -> None:
        """Remove an object if it exists."""
        fs, at = self._fs, self._at(path)
        with contextlib.suppress(FileNotFoundError):
            with_retries(lambda: fs.rm_file(at.path), at)

    def remove_all(self, paths: Iterable[str]) -> None:
        """Remove several objects in parallel if they exist."""
        for _ in map_parallel(self.remove, paths):
            pass

    def read(self, path: str) -> bytes:
        """Return the bytes of an object."""
        return read_bytes(self._at(path))

    def read_head(self, path: str, num_bytes: int) -> bytes:
        """Return the first bytes of an object."""
        return read_bytes(self._at(path), 0, num_bytes)

    def pieces(self, path: str) -> Iterator[bytes]:
        """Yield the bytes of an object, READ_BYTES a request."""
        at, num_bytes = self._at(path), 0
        while piece := read_bytes(at, num_bytes, READ_BYTES):
            yield piece
            num_bytes += len(piece)
            if len(piece) < READ_BYTES:
                break

    def describe(self, path: str) -> dict[str, Any]:
        """Return the ``num_bytes`` and ``sha256`` of an object, reading it in pieces."""
        digest, num_bytes = hashlib.sha256(), 0
        for piece in self.pieces(path):
            digest.update(piece)
            num_bytes += len(piece)
        return {"num_bytes": num_bytes, "sha256": digest.hexdigest()}

    def num_bytes(self, path: str) -> int | None:
        """Return the size of an object, or None if it does not exist."""
        status = status_of(self._at(path))
        return None if status is None else status.num_bytes

    def exists(self, path: str) -> bool:
        """Return whether an object exists."""
        return status_of(self._at(path)) is not None

    def names(self, folder: str) -> list[str]:
        """Return the sorted names in a folder, none if the folder does not exist."""
        return [entry.name for entry in list_folder(self._at(folder))]

    def walk(self) -> Iterator[str]:
        """Yield the paths of all objects below the root, sorted."""
        fs, root = self._fs, self.root
        try:
            found: list[str] = with_retries(lambda: fs.find(root.path), root)
        except FileNotFoundError:
            return
        prefix = f"{root.path.strip('/')}/"
        yield from sorted(name.lstrip("/").removeprefix(prefix) for name in found)

    @contextlib.contextmanager
    def locked(self, folder: str) -> Generator[bool]:
        """Yield True: a store has no locks that are released when a process dies."""
        yield True

    @property
    def _fs(self) -> Any:
        return filesystem(self.root)

    def _at(self, path: str) -> UPath:
        return self.root / path if path else self.root
