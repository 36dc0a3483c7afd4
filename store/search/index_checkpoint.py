"""Saves of an unfinished index, from which an interrupted run is resumed.

Their names end in ``.partial``: the index so far, and the *state*, a record of the file, the first row
that it lacks, and its settings and targets. The state is replaced by a rename, so it always names a
complete file. At the end the file gets its final name, and then its record (index_record.py).
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import faiss

from ...errors import CacheError, DamagedCacheError, DiskFullError, StorageError
from ...formatting import first_line
from ..format.layout import IndexId
from ..format.record_fields import Fields, read_fields
from ..format.records import encode_record
from ..io.storage import Storage
from .index_record import IndexRecord, write_index_record

_faiss: Any = faiss  # its types lack what the C++ classes and functions have


class IndexState:
    """The saves of one unfinished index, used by one process at a time (Storage.locked)."""

    def __init__(self, files: Storage, index_id: IndexId, making: Mapping[str, Any]) -> None:
        """Read nothing yet; a save is resumed only if its ``making`` is equal."""
        self._files, self._index_id, self._making = files, index_id, dict(making)
        self._saved: str | None = None
        """Path of the last save, as in the state on disk."""
        self.description: Mapping[str, Any] = {}
        """Size and checksum of the last save."""

    def resume(self, say: Callable[[str], None]) -> tuple[Any, int] | None:
        """Return the index saved by an earlier run and the first row that it lacks, or None."""
        try:
            data = self._files.read(self._index_id.state)
        except FileNotFoundError:
            return None
        try:
            return self._load(read_fields(data, where=self._files.where(self._index_id.state)))
        except (StorageError, DiskFullError):  # the save exists; starting again would lose it
            raise
        except CacheError as error:
            say(f"an unfinished index is ignored: {error}")
            return None

    def save(self, index: Any, next_row: int) -> None:
        """Save the index so far durably, and remove the previous save.

        Raises:
            DiskFullError: the disk is full; the previous save is kept.
        """
        path = f"{self._index_id.file}.{next_row}.partial"
        if self._saved in (path, self._index_id.file):  # resumed with nothing left to add
            return
        digest, num_bytes = hashlib.sha256(), 0
        with self._files.writing(path) as append:

            def write(piece: bytes) -> int:
                nonlocal num_bytes
                digest.update(piece)
                num_bytes += len(piece)
                append(piece)
                return len(piece)

            _faiss.write_index(index, _faiss.PyCallbackIOWriter(write))
        self._files.sync_folders([path])
        description = {"num_bytes": num_bytes, "sha256": digest.hexdigest()}
        state = {"making": self._making, "next_row": next_row, "files": {path: description}}
        self._files.replace(self._index_id.state, encode_record(state))
        if self._saved is not None:
            self._files.remove(self._saved)
        self._saved, self.description = path, description

    def publish(self, record: IndexRecord) -> None:
        """Publish the last save as the index, replacing an older one."""
        assert self._saved is not None
        if self._saved != self._index_id.file:
            # Remove the old record first: it must not exist beside another file.
            self._files.remove(self._index_id.record)
            self._files.sync_folders([self._index_id.record])
            self._files.rename(self._saved, self._index_id.file)
            self._files.sync_folders([self._index_id.file])
        write_index_record(self._files, self._index_id, record)
        self._saved = None
        self.clear()

    def clear(self) -> None:
        """Remove all partial files except those of the last save."""
        kept = set[str]() if self._saved is None else {self._saved, self._index_id.state}
        for name in self._files.names(self._index_id.folder):
            path = f"{self._index_id.folder}/{name}"
            is_ours = path.startswith(f"{self._index_id.stem}.") and path.endswith(".partial")
            if is_ours and path not in kept:
                self._files.remove(path)

    def _load(self, state: Fields) -> tuple[Any, int]:
        if state.mapping("making") != self._making:
            raise DamagedCacheError("it was started with other targets or another kind")
        next_row, files = state.count("next_row"), state.files()
        path = f"{self._index_id.file}.{next_row}.partial"
        if files.keys() != {path}:
            state.refuse("files", f"{path} alone")
        description = files[path]
        # The run may have been killed after the rename, before the record was written.
        for found in (path, self._index_id.file):
            if self._files.exists(found) and self._files.describe(found) == description:
                self._saved, self.description = found, description
                return self._read(found, description), next_row
        raise DamagedCacheError("its file does not match its state")

    def _read(self, path: str, description: Mapping[str, Any]) -> Any:
        try:
            return _faiss.read_index(str(self._files.fetch(path, description)))
        except RuntimeError as error:  # the only kind of error of faiss
            raise DamagedCacheError(f"{path} is not an index: {first_line(error)}") from None
