"""What the making of an index leaves on disk: a run that was killed is gone on with, never mistaken.

An index in the making has names that end in ``.partial``: the index so far, and the *state*, a record
that names it, the first row that it lacks, and what it is being made from. The state is replaced by a
rename, so it always names a whole file. At the end the file gets its final name, and then its record
(index_record.py), which alone makes it an index.
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
    """The saves of one index in the making. One process at a time may have it (Storage.locked)."""

    def __init__(self, files: Storage, index_id: IndexId, making: Mapping[str, Any]) -> None:
        """Look at an index; ``making`` must be equal for a run to go on with what another one left."""
        self._files, self._place, self._making = files, index_id, dict(making)
        self._saved: str | None = None
        """Path of the last save, which the state on disk names."""
        self.described: Mapping[str, Any] = {}
        """Size and checksum of the last save."""

    def resume(self, say: Callable[[str], None]) -> tuple[Any, int] | None:
        """Return the index that an earlier run saved and the first row that it lacks, if any fits."""
        try:
            data = self._files.read(self._place.state)
        except FileNotFoundError:
            return None
        try:
            return self._load(read_fields(data, where=self._files.where(self._place.state)))
        except (StorageError, DiskFullError):  # what was saved is there, and would be begun anew
            raise
        except CacheError as error:
            say(f"an unfinished index is left aside: {error}")
            return None

    def save(self, index: Any, next_row: int) -> None:
        """Keep the index so far, durably; the save before it is then removed.

        Raises:
            DiskFullError: the disk has no room; the save before it stays.
        """
        path = f"{self._place.file}.{next_row}.partial"
        if self._saved in (path, self._place.file):  # resumed where there is nothing left to add
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
        described = {"num_bytes": num_bytes, "sha256": digest.hexdigest()}
        state = {"making": self._making, "next_row": next_row, "files": {path: described}}
        self._files.replace(self._place.state, encode_record(state))
        if self._saved is not None:
            self._files.remove(self._saved)
        self._saved, self.described = path, described

    def publish(self, record: IndexRecord) -> None:
        """Make the last save the index, in place of an older one."""
        assert self._saved is not None
        if self._saved != self._place.file:
            # The old index first ceases to be one: its record must not stand beside another file.
            self._files.remove(self._place.record)
            self._files.sync_folders([self._place.record])
            self._files.rename(self._saved, self._place.file)
            self._files.sync_folders([self._place.file])
        write_index_record(self._files, self._place, record)
        self._saved = None
        self.clear()

    def clear(self) -> None:
        """Remove what the last save does not need: half a file, saves of runs that are left aside."""
        kept = set[str]() if self._saved is None else {self._saved, self._place.state}
        for name in self._files.names(self._place.folder):
            path = f"{self._place.folder}/{name}"
            is_ours = path.startswith(f"{self._place.stem}.") and path.endswith(".partial")
            if is_ours and path not in kept:
                self._files.remove(path)

    def _load(self, state: Fields) -> tuple[Any, int]:
        if state.mapping("making") != self._making:
            raise DamagedCacheError("it was begun from other targets, or as one of another kind")
        next_row, files = state.count("next_row"), state.files()
        path = f"{self._place.file}.{next_row}.partial"
        if files.keys() != {path}:
            state.refuse("files", f"{path} alone")
        described = files[path]
        # Its run may have been killed after the file had its final name, before it had its record.
        for found in (path, self._place.file):
            if self._files.exists(found) and self._files.describe(found) == described:
                self._saved, self.described = found, described
                return self._read(found, described), next_row
        raise DamagedCacheError("its file is not what was saved")

    def _read(self, path: str, described: Mapping[str, Any]) -> Any:
        try:
            return _faiss.read_index(str(self._files.fetch(path, described)))
        except RuntimeError as error:  # of faiss, which has no other
            raise DamagedCacheError(f"{path} is no index: {first_line(error)}") from None
