"""Walking a tar archive by its headers, to find where the data of each member are. No data are read.

Python's tarfile treats a damaged header as the end of the archive, and keeps an object for each member.
This walk reports how an archive ends and keeps nothing. It never uses a name as a path.
Source: POSIX.1-2017, pax, "Extended Header"; GNU tar manual, "Basic Tar Format", "Storing Sparse Files".
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

from ....images.tar_header import BLOCK, REGULAR_KINDS, TarHeader, parse_header

_MAX_NAME_BYTES = 1 << 16
"""Largest long name: sixteen times the limit of a path on Linux."""

_MAX_RECORDS_BYTES = 1 << 20
"""Largest PAX header, which is read whole; some hold extended attributes."""

_RECORD_START = re.compile(rb"(\d{1,7}) ")
_SIZE = re.compile(rb"\d{1,18}")
_SPARSE = b"GNU.sparse."  # prefix of the PAX records of a sparse file
_CHUNK = 1 << 20  # bytes checked at a time after the end mark

_LONG_NAME, _LONG_LINK, _OLD_SPARSE = b"L", b"K", b"S"
_EXTENDED, _SOLARIS, _GLOBAL = b"x", b"X", b"g"

TarKind = Literal["file", "link", "device", "folder", "sparse", "other"]

_WITHOUT_DATA: dict[bytes, TarKind] = {
    b"1": "link",
    b"2": "link",
    b"3": "device",
    b"4": "device",
    b"5": "folder",
    b"6": "device",
}
"""Kinds without data, at any size in the header: the size of a link is that of its file."""


@dataclass(frozen=True, slots=True)
class TarMember:
    """One member of an archive."""

    name: bytes
    """As stored. Only a name: never a path."""

    offset: int
    """First byte of its data in the archive."""

    size: int
    """Bytes of its data."""

    kind: TarKind
    """``file`` if the data are the bytes of a file."""


@dataclass(frozen=True, slots=True)
class TarFault:
    """Why a walk ended before the end of the archive. A walk yields it last."""

    reason: str
    cut_name: bytes | None = None
    """Name of the member whose data are cut, if known."""

    lacks_mark_only: bool = False
    """Only the end mark after a complete member is missing. Some writers never write one; an archive cut at
    this position looks the same."""


class _DamagedError(Exception):
    """The archive cannot be read further."""

    def __init__(
        self, reason: str, cut_name: bytes | None = None, *, lacks_mark_only: bool = False
    ) -> None:
        super().__init__(reason)
        self.fault = TarFault(reason, cut_name, lacks_mark_only)


@dataclass(slots=True)
class _ExtendedHeaders:
    """Extended headers, which apply to the members after them."""

    common: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    """Records of a global PAX header, for all members."""

    own: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    """Records of a PAX header, for the next member."""

    long_name: bytes | None = None
    """GNU's long name, for the next member."""

    is_extended: bool = False
    """A header has been read, and its member has not."""

    def resolve(self, header: TarHeader) -> tuple[bytes, int, bool]:
        """Return name, size and sparseness of the next member; forget the headers for it alone."""
        if not (self.is_extended or self.common):
            return header.name, header.size, False
        records = {**self.common, **self.own}
        name = records.get(b"path") or self.long_name or header.name
        size = int(records[b"size"]) if records.get(b"size") else header.size
        is_sparse = _SPARSE in records
        self.own, self.long_name, self.is_extended = {}, None, False
        return name, size, is_sparse


def walk_tar(file: BinaryIO) -> Iterator[TarMember | TarFault]:
    """Yield the members of an archive in order, and at last a fault unless it ends properly.

    Members before a fault are complete, but further members of the last sample may be missing. No content
    raises an error; only reading the file may.

    Args:
        file: seekable; best unbuffered, because only headers are read.
    """
    num_bytes = file.seek(0, 2)
    extended = _ExtendedHeaders()
    position = 0
    try:
        while position < num_bytes:
            block = _read(file, position, BLOCK)
            if len(block) < min(BLOCK, num_bytes - position):
                raise _DamagedError(f"it became shorter than {num_bytes:,} bytes while it was read")
            if block[0] == 0 and not block.strip(b"\0"):
                _check_end(file, position, num_bytes, extended)
                return
            if len(block) < BLOCK:
                raise _DamagedError(f"it is cut in the middle of a header, at byte {num_bytes:,}")
            header = parse_header(block)
            if header is None:
                raise _DamagedError(_describe_foreign(position))
            member, position = _step(file, position, num_bytes, header, block, extended)
            if member is not None:
                yield member
    except _DamagedError as damaged:
        yield damaged.fault
        return
    if num_bytes == 0:
        yield TarFault("it is empty: 0 bytes")
    elif extended.is_extended:
        yield TarFault(
            f"it is cut at byte {num_bytes:,}, after the name of a member that is missing"
        )
    else:
        reason = f"it has no end mark at byte {num_bytes:,} and may be cut"
        yield TarFault(
            reason, lacks_mark_only=position == num_bytes
        )  # otherwise zeros are missing as well


def _step(
    file: BinaryIO,
    position: int,
    num_bytes: int,
    header: TarHeader,
    block: bytes,
    extended: _ExtendedHeaders,
) -> tuple[TarMember | None, int]:
    """Return the member of a header, or None for an extended header, and the next position."""
    start = position + BLOCK
    if header.kind in (_LONG_NAME, _LONG_LINK, _EXTENDED, _SOLARIS, _GLOBAL):
        _check_cut(start + header.size, num_bytes, None)
        _read_extended(file, position, header, extended)
        return None, start + _padded(header.size)
    name, size, is_sparse = extended.resolve(header)
    kind: TarKind = "other"
    if header.kind in _WITHOUT_DATA:
        return TarMember(name, start, 0, _WITHOUT_DATA[header.kind]), start
    if header.kind == b"\0" and header.name.endswith(b"/"):
        return TarMember(name, start, 0, "folder"), start  # version 7 has no kind for folders
    if header.kind == _OLD_SPARSE:
        kind, start = "sparse", _skip_sparse_map(file, start, num_bytes, block)
    elif is_sparse:
        kind = "sparse"
    elif header.kind in REGULAR_KINDS:
        kind = "file"
    _check_cut(start + size, num_bytes, name)
    return TarMember(name, start, size, kind), start + _padded(size)


def _read_extended(
    file: BinaryIO, position: int, header: TarHeader, extended: _ExtendedHeaders
) -> None:
    """Read a long name or a PAX header."""
    is_name = header.kind in (_LONG_NAME, _LONG_LINK)
    limit = _MAX_NAME_BYTES if is_name else _MAX_RECORDS_BYTES
    if header.size > limit:
        what = "a name" if is_name else "an extended header"
        raise _DamagedError(
            f"it is damaged at byte {position:,}: {what} of {header.size:,} bytes, at most {limit:,} "
            "are read"
        )
    extended.is_extended = header.kind != _GLOBAL or extended.is_extended
    if header.kind == _LONG_LINK:
        return
    data = _read(file, position + BLOCK, header.size)
    if header.kind == _LONG_NAME:
        extended.long_name = data.split(b"\0", 1)[0]
    else:
        records = extended.common if header.kind == _GLOBAL else extended.own
        records.update(_parse_records(data, position))


def _parse_records(data: bytes, position: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the records of a PAX header, ``<length> <key>=<value>`` and a newline each.

    Only records about name, size and sparseness; others are ignored.
    """
    start = 0
    while start < len(data) and data[start] != 0:  # some writers pad with zeros
        found = _RECORD_START.match(data, start)
        end = start + int(found[1]) if found else 0
        if found is None or end > len(data) or data[end - 1 : end] != b"\n":
            raise _DamagedError(f"it is damaged at byte {position:,}: a broken extended header")
        key, separator, value = data[found.end() : end - 1].partition(b"=")
        if not separator or (key == b"size" and value and not _SIZE.fullmatch(value)):
            raise _DamagedError(f"it is damaged at byte {position:,}: a broken extended header")
        if key in (b"path", b"size"):
            yield key, value
        elif key.startswith(_SPARSE):  # one for all of them, so that memory stays bounded
            yield _SPARSE, b""
        start = end


def _skip_sparse_map(file: BinaryIO, start: int, num_bytes: int, block: bytes) -> int:
    """Return where the data of an old GNU sparse file begin, after the blocks that map its holes."""
    is_continued = block[482] != 0
    while is_continued:
        block = _read(file, start, BLOCK)
        if len(block) < BLOCK:
            raise _DamagedError(f"it is cut in the middle of a header, at byte {num_bytes:,}")
        is_continued = block[504] != 0
        start += BLOCK
    return start


def _check_cut(end: int, num_bytes: int, name: bytes | None) -> None:
    if end > num_bytes:
        what = "an extended header" if name is None else printable_name(name)
        raise _DamagedError(
            f"it is cut at byte {num_bytes:,}, in the middle of {what}, which would end at byte "
            f"{end:,}",
            name,
        )


def _check_end(file: BinaryIO, position: int, num_bytes: int, extended: _ExtendedHeaders) -> None:
    """Refuse an end mark that is cut, replaces a member, or is not the end."""
    if extended.is_extended:
        raise _DamagedError(f"it is damaged at byte {position:,}: an end mark instead of a member")
    if num_bytes - position < BLOCK:
        reason = f"it has no whole end mark at byte {num_bytes:,} and may be cut"
        raise _DamagedError(reason, lacks_mark_only=True)
    for start in range(position + BLOCK, num_bytes, _CHUNK):
        chunk = _read(file, start, _CHUNK)
        rest = chunk.lstrip(b"\0")
        if rest:
            at = start + len(chunk) - len(rest)
            raise _DamagedError(
                f"there is more data after its end mark, from byte {at:,} on, which is not read; if "
                "archives were concatenated, give each as a separate file"
            )


def _describe_foreign(position: int) -> str:
    if position == 0:
        return "it is not a tar archive: it does not begin with a header"
    return f"it is damaged at byte {position:,}, where a header should stand"


def printable_name(name: bytes) -> str:
    """Return a member's name for a message: quoted, cut where it is long, on one line."""
    text = name.decode("utf-8", "backslashreplace")
    return repr(text if len(text) <= 80 else f"{text[:80]}...")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _read(file: BinaryIO, position: int, size: int) -> bytes:
    """Return the bytes at a position, fewer only at the end of the file."""
    file.seek(position)
    data = file.read(size)
    while len(data) < size:  # an unbuffered file may return fewer
        more = file.read(size - len(data))
        if not more:
            break
        data += more
    return data
