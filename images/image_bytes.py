"""The bytes of an image: a whole file, a part of a file, a member of a tar, or a cell of a Parquet file.

Archives are not unpacked. The catalog records locations when the corpus is planned, and a file may be
rewritten later. So each read checks what it can: a tar member by the header before it, any other part of
a file by the size of the file.
"""

import errno
import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from upath import UPath

from ..formatting import first_line
from ..store.io.location import Location
from ..store.io.range_file import open_ranges
from ..store.io.requests import read_bytes, status_of
from .base64_text import decode_base64, is_base64_image
from .parquet_cells import ReadError, bytes_of, leaf_batches, open_streamed
from .tar_header import BLOCK, REGULAR_KINDS, parse_header

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_MAX_BYTES = 2**31
"""Largest image file that is read: 179 million pixels, the limit of Pillow, uncompressed at 8 bytes. A
decoding process holds one file in memory."""

_SHORT_NAME = 100  # bytes of a name in a tar header, which holds only a part of a longer name


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLocation:
    """Where the bytes of an image are: columns of the catalog tables ``samples`` and ``files``."""

    path: Location
    """The file, on this machine or in an object store."""

    member: str | None = None
    """Name of a tar member, or path of a column of a Parquet file."""

    offset: int | None = None
    """First byte in the file; None for a whole file or a row of a Parquet file."""

    length: int | None = None
    row_group: int | None = None
    """Row group of a Parquet file."""

    index: int | None = None
    """Row within the row group."""

    file_bytes: int | None = None
    """Size of the file when it was planned; None if it did not exist."""


def read_image_bytes(location: ImageLocation) -> bytes:
    """Return the bytes of an image.

    Raises:
        ReadError: they are missing, unreadable, empty, or differ from the plan.
        StorageError: the object store does not respond.
    """
    try:
        data = (
            _read(location)
            if isinstance(location.path, Path)
            else _read_object(location, location.path)
        )
    except FileNotFoundError:
        has_backslash = "\\" in str(location.path)
        hint = "; its path has a backslash, write / between folders" if has_backslash else ""
        raise ReadError(f"no such file{hint}") from None
    except OSError as error:
        raise ReadError(f"cannot be read: {error.strerror or error}") from None
    return _checked_image(data, location)


def _checked_image(data: bytes, location: ImageLocation) -> bytes:
    if not data:
        raise ReadError("empty: 0 bytes")
    if location.offset is not None and location.member is None and is_base64_image(data):
        try:
            return decode_base64(data)
        except ValueError as error:
            raise ReadError(str(error)) from None
    return data


def image_in_part(part: bytes, first: int, location: ImageLocation) -> bytes:
    """Return the bytes of an image from a part of its object that begins at byte ``first``.

    Raises:
        ReadError: they are missing, or differ from the plan.
        StorageError: the object store does not respond.
    """
    assert location.offset is not None
    if location.member is None:
        _check_same_size(_object_bytes(cast(UPath, location.path)), location)
    return _checked_image(_cut(part, first, location, location.offset), location)


def read_parquet_image(file: Any, location: ImageLocation) -> bytes:
    """Return the bytes of one row of an open Parquet file, reading the pages up to that row."""
    check_row(file, location)
    assert (
        location.row_group is not None
        and location.index is not None
        and location.member is not None
    )
    num_read = 0
    for column in leaf_batches(file, location.member, location.row_group, batch_rows=64):
        if location.index < num_read + len(column):
            return bytes_of(column[location.index - num_read])
        num_read += len(column)
    raise ReadError("the file is damaged: a row group is shorter than its metadata says")


def _read(location: ImageLocation) -> bytes:
    if location.row_group is not None:
        return _read_row(location)
    assert isinstance(location.path, Path)
    with location.path.open("rb") as file:
        if location.offset is None:
            return _read_whole(file)
        _check_length(location.length or 0)
        if location.member is None:
            _check_size(file, location)
        start = _first_byte(location, location.offset)
        file.seek(start)
        whole = file.read((location.length or 0) + location.offset - start)
    return _cut(whole, start, location, location.offset)


def _read_object(location: ImageLocation, path: UPath) -> bytes:
    """Return the bytes of an image in an object store. One request reads a tar header and the member."""
    if location.row_group is not None:
        return _read_row(location)
    if location.offset is None:
        _check_length(location.file_bytes or 0)
        return read_bytes(path)
    _check_length(location.length or 0)
    if location.member is None:
        _check_same_size(_object_bytes(path), location)
    start = _first_byte(location, location.offset)
    whole = read_bytes(path, start, (location.length or 0) + location.offset - start)
    return _cut(whole, start, location, location.offset)


def _first_byte(location: ImageLocation, offset: int) -> int:
    """Return where reading begins: a tar member is read with its header, if there is room for one."""
    return offset if location.member is None else max(0, offset - BLOCK)


def _cut(part: bytes, first: int, location: ImageLocation, offset: int) -> bytes:
    """Return the planned bytes of a part that begins at byte ``first``; a tar header is checked."""
    at = offset - first
    if location.member is not None:
        _check_header(part[max(0, at - BLOCK) : at], location, offset)
    data = part[at : at + (location.length or 0)]
    _check_read(data, location)
    return data


@lru_cache(maxsize=256)
def _object_bytes(path: UPath) -> int:
    status = status_of(path)
    if status is None:
        raise FileNotFoundError(errno.ENOENT, "no such object", str(path))
    return status.num_bytes


def _check_read(data: bytes, location: ImageLocation) -> None:
    if location.length is not None and len(data) != location.length:
        raise ReadError(f"truncated: {len(data)} bytes, {location.length} were planned")


def _read_whole(file: BinaryIO) -> bytes:
    status = os.fstat(file.fileno())
    if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):  # /dev/zero is endless
        raise ReadError("not a regular file")
    _check_length(status.st_size)
    return file.read()


def _check_length(num_bytes: int) -> None:
    if num_bytes > _MAX_BYTES:
        raise ReadError(f"too large: {num_bytes:,} bytes, the limit is {_MAX_BYTES:,}")


def _check_header(block: bytes, location: ImageLocation, offset: int) -> None:
    header = parse_header(block)
    name = (location.member or "").encode("utf-8", "surrogateescape")
    is_same = (
        header is not None
        and header.kind in REGULAR_KINDS
        and header.size == location.length
        and (len(name) > _SHORT_NAME or not name.isascii() or header.name == name)
    )
    if not is_same:
        raise ReadError(
            f"the archive changed since it was planned: byte {offset} is not the start of "
            f"{location.member!r} with {location.length} bytes"
        )


def _check_size(file: BinaryIO, location: ImageLocation) -> None:
    _check_same_size(file.seek(0, 2), location)


def _check_same_size(found: int, location: ImageLocation) -> None:
    if location.file_bytes is not None and found != location.file_bytes:
        raise ReadError(
            f"the file changed since it was planned: {found} bytes, it had {location.file_bytes}"
        )


def open_rows(location: ImageLocation) -> Any:
    """Return the Parquet file that contains a row, open.

    Raises:
        ReadError: the file is missing, unreadable, or has another size than planned.
    """
    with _reading_parquet():
        return _open_checked(location)


def check_row(file: Any, location: ImageLocation) -> None:
    """Check that an open Parquet file has a row.

    Raises:
        ReadError: the row does not exist.
    """
    group, metadata = location.row_group, file.metadata
    assert group is not None and location.index is not None
    rows = metadata.row_group(group).num_rows if group < metadata.num_row_groups else 0
    if location.index >= rows:
        raise ReadError("the file changed since it was planned: the row no longer exists")


def _read_row(location: ImageLocation) -> bytes:
    if isinstance(location.path, Path):
        with location.path.open("rb") as file:
            _check_size(file, location)
        with _reading_parquet():
            return read_parquet_image(_kept_open(location.path), location)
    with _reading_parquet():
        return read_parquet_image(_open_checked(location), location)


def _open_checked(location: ImageLocation) -> "pq.ParquetFile":
    with open_ranges(location.path) as file:
        _check_size(cast(BinaryIO, file), location)
        if isinstance(location.path, Path):
            return open_streamed(location.path)
    return open_streamed(location.path, num_bytes=location.file_bytes)


@contextmanager
def _reading_parquet() -> Generator[None]:
    import pyarrow as pa  # not at the top: decoding processes for plain files start without it

    try:
        yield
    except FileNotFoundError:
        raise ReadError("no such file") from None
    except pa.ArrowException as error:
        raise ReadError(f"cannot be read as Parquet: {first_line(error)}") from None
    except OSError as error:
        raise ReadError(f"cannot be read: {error.strerror or error}") from None


@lru_cache(maxsize=8)  # reading the footer of many row groups takes longer than an image
def _kept_open(path: Path) -> "pq.ParquetFile":
    return open_streamed(path)
