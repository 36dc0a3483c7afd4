"""An object of a store as a file: what is read next has been fetched before.

A tar is planned by its headers, one behind each member, and where the next stands is known only from
the last. A request for each takes a round trip a member; reading on in large pieces takes none, at the
price of fetching the members as well. Where members are larger than a piece they are passed over.
"""

import io
from concurrent.futures import Future, ThreadPoolExecutor

from upath import UPath

from .locations import Location, read_bytes, status_of

PIECE_BYTES = 8 << 20
_SMALL_BYTES = 64 << 10
"""Of a piece where the last read was far away: nothing says that the next is near."""

_KEPT_PIECES = 3


class ReadAhead(io.RawIOBase):
    """A seekable, read-only file over one object. The object's size is asked for once, when opened."""

    def __init__(self, location: UPath) -> None:
        """Open it.

        Raises:
            FileNotFoundError, PermissionError, StorageError: as read_bytes (locations.py).
        """
        super().__init__()
        status = status_of(location)
        if status is None:
            raise FileNotFoundError(2, "no such object", str(location))
        self._location, self._num_bytes = location, status.num_bytes
        self._position = 0
        self._pieces: list[tuple[int, bytes]] = []  # (first byte, bytes), the last one newest
        self._coming: tuple[int, Future[bytes]] | None = None
        self._fetcher: ThreadPoolExecutor | None = None

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

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        """Fill the buffer from the piece at hand; fewer bytes at its end."""
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), self._num_bytes - self._position)
        if wanted <= 0:
            return 0
        first, piece = self._piece_at(self._position)
        at = self._position - first
        found = piece[at : at + wanted]
        view[: len(found)] = found
        self._position += len(found)
        self._fetch_next(first + len(piece))
        return len(found)

    def close(self) -> None:
        if self._fetcher is not None:
            self._fetcher.shutdown(wait=False, cancel_futures=True)
            self._fetcher = None
        self._pieces.clear()
        super().close()

    def _piece_at(self, position: int) -> tuple[int, bytes]:
        for first, piece in reversed(self._pieces):
            if first <= position < first + len(piece):
                return first, piece
        if self._coming is not None:
            first, future = self._coming
            self._coming = None
            if first <= position < first + PIECE_BYTES:
                self._keep(first, future.result())
                return self._piece_at(position)
        size = PIECE_BYTES if self._is_near(position) else _SMALL_BYTES
        self._keep(position, read_bytes(self._location, position, size))
        return self._pieces[-1]

    def _is_near(self, position: int) -> bool:
        if not self._pieces:
            return position == 0
        first, piece = self._pieces[-1]
        return first <= position < first + len(piece) + PIECE_BYTES // 2

    def _keep(self, first: int, piece: bytes) -> None:
        if not piece:
            raise OSError(f"it became shorter than {self._num_bytes:,} bytes while it was read")
        self._pieces.append((first, piece))
        del self._pieces[:-_KEPT_PIECES]

    def _fetch_next(self, first: int) -> None:
        """Begin to fetch what follows the piece at hand, if it was a large one."""
        is_known = any(start <= first < start + len(piece) for start, piece in self._pieces)
        is_large = bool(self._pieces) and len(self._pieces[-1][1]) == PIECE_BYTES
        if first >= self._num_bytes or is_known or not is_large or self._coming is not None:
            return
        if self._fetcher is None:
            self._fetcher = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        future = self._fetcher.submit(read_bytes, self._location, first, PIECE_BYTES)
        self._coming = first, future


def open_binary(location: Location) -> io.RawIOBase:
    """Return a file of this machine, or an object of a store, open for reading, unbuffered.

    Raises:
        OSError: as open, and as ReadAhead.
    """
    if isinstance(location, UPath):
        return ReadAhead(location)
    return location.open("rb", buffering=0)
