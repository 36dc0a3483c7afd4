"""Objects of a store as seekable files, with or without read-ahead.

Planning a tar reads the header before each member; the position of the next header is known only from
the last one. Reading ahead in large pieces saves a round trip for each member, and downloads the members
too. Members larger than a piece are skipped.

A Parquet file says where its columns are, and its reader requests the ranges it needs: no read-ahead.
"""

import errno
import io
from concurrent.futures import Future

from upath import UPath

from .location import Location
from .parallel import Threads
from .requests import read_bytes, status_of

PIECE_BYTES = 8 << 20
_SMALL_BYTES = 64 << 10
"""Size of a piece after a seek to a distant position: the next read may be distant again."""

_KEPT_PIECES = 3


class RangeFile(io.RawIOBase):
    """A seekable, read-only file over one object. A read outside the last pieces is one request."""

    def __init__(self, location: UPath, *, num_bytes: int | None = None) -> None:
        """Open the object; without ``num_bytes`` its size is requested.

        Raises:
            FileNotFoundError, PermissionError: the object does not exist, or may not be read.
            StorageError: the store does not respond.
        """
        super().__init__()
        if num_bytes is None:
            status = status_of(location)
            if status is None:
                raise FileNotFoundError(errno.ENOENT, "no such object", str(location))
            num_bytes = status.num_bytes
        self._location, self._num_bytes = location, num_bytes
        self._position = 0
        self._pieces: list[tuple[int, bytes]] = []  # (first byte, bytes), the last one newest

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the current position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position and return it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._num_bytes}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        """Return ``size`` bytes, fewer only at the end of the object."""
        data = super().read(size) or b""
        while 0 < len(data) < size and (more := super().read(size - len(data))):
            data += more
        return data

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        """Fill the buffer from one piece and return the number of bytes."""
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), self._num_bytes - self._position)
        if wanted <= 0:
            return 0
        first, piece = self._piece_at(self._position, wanted)
        at = self._position - first
        found = piece[at : at + wanted]
        view[: len(found)] = found
        self._position += len(found)
        return len(found)

    def close(self) -> None:
        """Release the pieces."""
        self._pieces.clear()
        super().close()

    def _piece_at(self, position: int, wanted: int) -> tuple[int, bytes]:
        return self._kept_at(position) or self._fetch(position, max(wanted, _SMALL_BYTES))

    def _kept_at(self, position: int) -> tuple[int, bytes] | None:
        for first, piece in reversed(self._pieces):
            if first <= position < first + len(piece):
                return first, piece
        return None

    def _fetch(self, position: int, num_bytes: int) -> tuple[int, bytes]:
        return self._keep(position, read_bytes(self._location, position, num_bytes))

    def _keep(self, first: int, piece: bytes) -> tuple[int, bytes]:
        if not piece:
            reason = f"the object became shorter than {self._num_bytes:,} bytes while it was read"
            raise OSError(errno.EIO, reason, str(self._location))
        self._pieces.append((first, piece))
        del self._pieces[:-_KEPT_PIECES]
        return self._pieces[-1]


class ReadAhead(RangeFile):
    """A RangeFile that fetches the next piece in the background while reading is sequential.

    Holds at most five pieces.
    """

    def __init__(self, location: UPath, *, num_bytes: int | None = None) -> None:
        super().__init__(location, num_bytes=num_bytes)
        self._coming: tuple[int, Future[bytes]] | None = None
        self._fetcher = Threads(1, "read-ahead")

    def close(self) -> None:
        """Release the pieces and stop the background thread."""
        self._fetcher.close()
        self._coming = None
        super().close()

    def _piece_at(self, position: int, wanted: int) -> tuple[int, bytes]:
        found = self._kept_at(position) or self._take_coming(position)
        if found is None:
            found = self._fetch(position, PIECE_BYTES if self._is_near(position) else _SMALL_BYTES)
        self._fetch_next()
        return found

    def _take_coming(self, position: int) -> tuple[int, bytes] | None:
        if self._coming is None:
            return None
        first, future = self._coming
        if not first <= position < first + PIECE_BYTES:
            return None
        self._coming = None
        self._keep(first, future.result())
        return self._kept_at(position)  # None if the object became shorter

    def _is_near(self, position: int) -> bool:
        if not self._pieces:
            return position == 0
        first, piece = self._pieces[-1]
        return first <= position < first + len(piece) + PIECE_BYTES // 2

    def _fetch_next(self) -> None:
        """Start fetching the piece after the newest, if that was a large one."""
        first, piece = self._pieces[-1]
        following = first + len(piece)
        if len(piece) < PIECE_BYTES or following >= self._num_bytes:
            return
        if self._coming is not None and self._coming[0] == following:
            return
        location = self._location
        future = self._fetcher.submit(lambda: read_bytes(location, following, PIECE_BYTES))
        self._coming = following, future


def open_ranges(location: Location) -> io.RawIOBase:
    """Return an unbuffered binary file; of an object only the ranges that are read are fetched.

    Raises:
        OSError: the file cannot be opened.
        StorageError: the store does not respond.
    """
    if isinstance(location, UPath):
        return RangeFile(location)
    return location.open("rb", buffering=0)
