"""Files of a source: on this machine, and their digests. Objects of a store are copied for the import."""

import errno
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from upath import UPath

from ...errors import DiskFullError, SourceError
from ...store.io.local import FULL_DISK
from ...store.io.location import Location
from ...store.io.range_file import ReadAhead
from ..planning.spill import Scratch

_PIECE = 8 << 20


class SourceFiles:
    """Reads the files of a source. Copies are in the scratch folder."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._paths: dict[Location, Path] = {}
        self._digests: dict[Location, str] = {}

    def path(self, location: Location) -> Path:
        """Return a path of this machine with the bytes of a file.

        Raises:
            SourceError: it cannot be read.
            DiskFullError: the copy does not fit in the temporary folder.
        """
        if not isinstance(location, UPath):
            return Path(location)
        if location not in self._paths:
            copy = self._scratch.new_file()
            try:
                with copy.open("wb") as out:
                    self._digests[location] = _copy(location, out)
            except OSError as error:
                raise _explain(error, location, copy) from error
            self._paths[location] = copy
        return self._paths[location]

    def sha256(self, location: Location) -> str:
        """Return the SHA-256 of a file."""
        path = self.path(location)
        if location not in self._digests:
            try:
                with path.open("rb") as file:
                    self._digests[location] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise SourceError(f"{location} cannot be read ({error.strerror})") from error
        return self._digests[location]

    def new_array(self, shape: tuple[int, int], dtype: DTypeLike) -> NDArray[Any]:
        """Return an array in a scratch file, whose space is there.

        Raises:
            DiskFullError: the temporary folder is too small.
        """
        path = self._scratch.new_file()
        num_bytes = max(1, shape[0] * shape[1] * np.dtype(dtype).itemsize)
        try:
            with path.open("wb") as file:
                if hasattr(
                    os, "posix_fallocate"
                ):  # a full disk kills a process that writes to a map
                    os.posix_fallocate(file.fileno(), 0, num_bytes)
                file.truncate(num_bytes)
        except OSError as error:
            raise _explain(error, path, path) from error
        return np.memmap(path, dtype, "r+", shape=shape)


def _copy(location: UPath, out: io.BufferedWriter) -> str:
    digest = hashlib.sha256()
    with ReadAhead(location) as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            out.write(piece)
    return digest.hexdigest()


def _explain(error: OSError, location: Location, copy: Path) -> Exception:
    if error.errno in FULL_DISK:
        return DiskFullError(
            f"no space left in {copy.parent} for the embeddings; set TMPDIR to a larger disk"
        )
    if error.errno == errno.ENOENT:
        return SourceError(f"there is no {location}")
    return SourceError(f"{location} cannot be read ({error.strerror})")
