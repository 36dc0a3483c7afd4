"""An object of a store as a file, read by ranges: just those asked for, or what is read next as well.

A tar is planned by its headers, one behind each member, and where the next stands is known only from
the last. A request for each takes a round trip a member; reading on in large pieces takes none, at the
price of fetching the members as well. Where members are larger than a piece they are passed over.

A Parquet file says where its columns lie, and its reader asks for as much as it needs: there ranges are
fetched as they are asked for.
"""

import errno
import io
from concurrent.futures import Future

from upath import UPath

from .location import Location, read_bytes, status_of
from .parallel import Threads

PIECE_BYTES = 8 << 20
_SMALL_BYTES = 64 << 10
"""Of a piece where the last read was far away: nothing says that the next is near."""

_KEPT_PIECES = 3


class RangeFile(io.RawIOBase):
    """A seekable, read-only file over one object: a request for each read that is no part of the last."""

    def __init__(self, location: UPath, *, num_bytes: int | None = None) -> None:
        """Open it; its size is asked for where it is not given.

        Raises:
            FileNotFoundError, PermissionError, StorageError: as read_bytes (locations.py).
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
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._num_bytes}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        """Return as many bytes as asked for; fewer only at the end."""
        data = super().read(size) or b""
        while 0 < len(data) < size and (more := super().read(size - len(data))):
            data += more
        return data

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        """Fill the buffer from the piece at hand; fewer bytes at its end."""
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
            reason = f"it became shorter than {self._num_bytes:,} bytes while it was read"
            raise OSError(errno.EIO, reason, str(self._location))
        self._pieces.append((first, piece))
        del self._pieces[:-_KEPT_PIECES]
        return self._pieces[-1]


class ReadAhead(RangeFile):
    """As RangeFile; where reading goes on, the next piece is fetched meanwhile. Holds five pieces."""

    def __init__(self, location: UPath, *, num_bytes: int | None = None) -> None:
        super().__init__(location, num_bytes=num_bytes)
        self._coming: tuple[int, Future[bytes]] | None = None
        self._fetcher = Threads(1, "read-ahead")

    def close(self) -> None:
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
        return self._kept_at(position)  # None where the object became shorter

    def _is_near(self, position: int) -> bool:
        if not self._pieces:
            return position == 0
        first, piece = self._pieces[-1]
        return first <= position < first + len(piece) + PIECE_BYTES // 2

    def _fetch_next(self) -> None:
        """Begin to fetch what follows the newest piece, if that was a large one."""
        first, piece = self._pieces[-1]
        following = first + len(piece)
        if len(piece) < PIECE_BYTES or following >= self._num_bytes:
            return
        if self._coming is not None and self._coming[0] == following:
            return
        location = self._location
        future = self._fetcher.submit(lambda: read_bytes(location, following, PIECE_BYTES))
        self._coming = following, future


def open_binary(location: Location) -> io.RawIOBase:
    """Return a file of this machine, or an object of a store that is read ahead, unbuffered.

    Raises:
        OSError: as open, and as ReadAhead.
    """
    if isinstance(location, UPath):
        return ReadAhead(location)
    return location.open("rb", buffering=0)


def open_ranges(location: Location) -> io.RawIOBase:
    """As open_binary, with no more of an object fetched than is asked for.

    Raises:
        OSError: as open, and as RangeFile.
    """
    if isinstance(location, UPath):
        return RangeFile(location)
    return location.open("rb", buffering=0)
