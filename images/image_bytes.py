"""Where an image's bytes lie, and reading them: a whole file, a part of one, a cell of a Parquet file.

Archives are read where they are, nothing is unpacked. A location was found when the corpus was planned;
an archive that was written anew since then has other bytes there, so each read checks what it can: a
tar member by the header before it, a part of another file by the file's size.
"""

import errno
import os
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from upath import UPath

from ..formatting import first_line
from ..store.io.location import Location
from ..store.io.range_file import RangeFile, open_ranges
from ..store.io.requests import read_bytes, status_of
from .tar_header import BLOCK, REGULAR_KINDS, parse_header

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_MAX_BYTES = 2**31
"""More than any picture has that Pillow would decode: 179 million pixels, uncompressed, of 8 bytes. The
largest file is what one decoding process may have to hold."""

_REQUEST_BYTES = 1 << 22
"""Of a Parquet file in an object store, fetched at a time: a page is seldom more."""

_SHORT_NAME = 100  # bytes that a tar header has room for; of a longer name it holds a part


class ReadError(Exception):
    """An image's bytes cannot be had; the message is the reason that the cache records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLocation:
    """Where one image lies; the columns of the catalog's tables ``samples`` and ``files``."""

    path: Location
    """The file, on this machine or in an object store."""

    member: str | None = None
    """Name of the member of a tar archive, or path of the column of a Parquet file."""

    offset: int | None = None
    """First byte in the file; None: the whole file, or a row of a Parquet file."""

    length: int | None = None
    row_group: int | None = None
    """Row group of a Parquet file."""

    index: int | None = None
    """Row within the row group."""

    file_bytes: int | None = None
    """Size of the file when it was planned; None where it was not there."""


def read_image_bytes(location: ImageLocation) -> bytes:
    """Return an image's bytes.

    Raises:
        ReadError: missing, unreadable, empty, or not what was planned.
        StorageError: the store that it lies in does not answer.
    """
    try:
        data = (
            _read(location)
            if isinstance(location.path, Path)
            else _read_object(location, location.path)
        )
    except FileNotFoundError:
        raise ReadError("no such file") from None
    except OSError as error:
        raise ReadError(f"cannot be read: {error.strerror or error}") from None
    if not data:
        raise ReadError("empty: 0 bytes")
    return data


def read_parquet_image(file: Any, location: ImageLocation) -> bytes:
    """Return the bytes of one row of an open Parquet file; reads the pages up to that row."""
    check_row(file, location)
    assert (
        location.row_group is not None
        and location.index is not None
        and location.member is not None
    )
    seen = 0
    for column in leaf_batches(file, location.member, location.row_group, batch_rows=64):
        if location.index < seen + len(column):
            return bytes_of(column[location.index - seen])
        seen += len(column)
    raise ReadError("the file is damaged: a row group is shorter than it says")


def leaf_batches(file: Any, member: str, row_group: int, *, batch_rows: int) -> Iterator[Any]:
    """Yield Arrow arrays, of at most batch_rows values, of one column of a row group.

    Of a list with one item, that is the value; of any other it is null. Lists of numbers are values.
    Pages are read one after the other, so memory holds a page and a batch whatever the row group.

    Raises:
        ReadError: there is no such column.
    """
    for batch in file.iter_batches(
        batch_size=batch_rows, row_groups=[row_group], columns=[member], use_threads=False
    ):
        if batch.num_columns != 1:
            raise ReadError(f"the file changed since it was planned: it has no column {member!r}")
        column: Any = batch.column(0)
        while (inside := _inside(column)) is not None:
            column = inside
        yield column


def _inside(column: Any) -> Any:
    """Return what the structs, or the lists of one item, of a column hold; None: they are the values."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_struct(column.type):  # of which only the bytes were read
        return column.flatten()[0]
    is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if not is_list or pa.types.is_uint8(column.type.value_type):
        return None
    compute: Any = pc  # has no types
    lengths = compute.list_value_length(column)
    is_one = compute.fill_null(compute.equal(lengths, 1), False)
    return column.values.take(compute.if_else(is_one, column.offsets[:-1], None))


def column_chunk(file: Any, member: str, row_group: int) -> Any:
    """Return what an open Parquet file says of one column of a row group; None: no such column.

    The first value is read beforehand. Where a footer is damaged that raises, while asking pyarrow
    26's metadata right away would end this process: there nothing catches what C++ throws.

    Raises:
        ReadError, OSError, ArrowException: the column cannot be read.
    """
    described = file.metadata.row_group(row_group)
    paths = [file.schema.column(i).path for i in range(described.num_columns)]
    if member not in paths:
        return None
    next(leaf_batches(file, member, row_group, batch_rows=1), None)
    return described.column(paths.index(member))


def bytes_of(value: Any) -> bytes:
    """Return the bytes of an Arrow value; none where it is null.

    Raises:
        ReadError: it holds something else.
    """
    values: Any = getattr(value, "values", None)  # of a list of numbers
    if values is not None and str(values.type) == "uint8" and not values.null_count:
        return values.to_numpy().tobytes()
    found: object = value.as_py()
    if found is not None and not isinstance(found, bytes):
        raise ReadError("the file changed since it was planned: its column holds no bytes")
    return found or b""


def _read(location: ImageLocation) -> bytes:
    if location.row_group is not None:
        return _read_row(location)
    assert isinstance(location.path, Path)
    with location.path.open("rb") as file:
        if location.offset is None:
            return _read_whole(file)
        if location.member is not None:
            _check_member(file, location, location.offset)
        else:
            _check_size(file, location)
        _check_length(location.length or 0)
        file.seek(location.offset)
        data = file.read(location.length)
    _check_read(data, location)
    return data


def _read_object(location: ImageLocation, path: UPath) -> bytes:
    """As _read, with one request: the header of a tar's member comes along with its data."""
    if location.row_group is not None:
        return _read_row(location)
    if location.offset is None:
        _check_length(location.file_bytes or 0)
        return read_bytes(path)
    _check_length(location.length or 0)
    if location.member is None:
        _check_same_size(_object_bytes(path), location)
        data = read_bytes(path, location.offset, location.length)
    else:
        start = max(0, location.offset - BLOCK)
        whole = read_bytes(path, start, (location.length or 0) + location.offset - start)
        _check_header(whole[: location.offset - start], location, location.offset)
        data = whole[location.offset - start :]
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
        raise ReadError(f"cut short: {len(data)} bytes where {location.length} were planned")


def _read_whole(file: BinaryIO) -> bytes:
    status = os.fstat(file.fileno())
    if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):  # /dev/zero has no end
        raise ReadError("not a regular file")
    _check_length(status.st_size)
    return file.read()


def _check_length(num_bytes: int) -> None:
    if num_bytes > _MAX_BYTES:
        raise ReadError(f"too large: {num_bytes:,} bytes, at most {_MAX_BYTES:,} are read")


def _check_member(file: BinaryIO, location: ImageLocation, offset: int) -> None:
    """Refuse bytes that do not follow the header of the member that was planned."""
    file.seek(max(0, offset - BLOCK))
    _check_header(file.read(BLOCK), location, offset)


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
            f"the archive changed since it was planned: at byte {offset} is no {location.member!r} of "
            f"{location.length} bytes any more"
        )


def _check_size(file: BinaryIO, location: ImageLocation) -> None:
    _check_same_size(file.seek(0, 2), location)


def _check_same_size(found: int, location: ImageLocation) -> None:
    if location.file_bytes is not None and found != location.file_bytes:
        raise ReadError(
            f"the file changed since it was planned: {found} bytes where it had {location.file_bytes}"
        )


def open_rows(location: ImageLocation) -> Any:
    """Open the Parquet file that holds a row.

    Raises:
        ReadError: it is missing, unreadable, or has another size than when it was planned.
    """
    with _reading_parquet():
        return _open_checked(location)


def check_row(file: Any, location: ImageLocation) -> None:
    """Refuse an open Parquet file that has no such row.

    Raises:
        ReadError: as said.
    """
    group, metadata = location.row_group, file.metadata
    assert group is not None and location.index is not None
    rows = metadata.row_group(group).num_rows if group < metadata.num_row_groups else 0
    if location.index >= rows:
        raise ReadError("the file changed since it was planned: it has no such row any more")


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
    import pyarrow as pa  # here: decoding processes that read plain files start without it

    try:
        yield
    except FileNotFoundError:
        raise ReadError("no such file") from None
    except pa.ArrowException as error:
        raise ReadError(f"cannot be read as Parquet: {first_line(error)}") from None
    except OSError as error:
        raise ReadError(f"cannot be read: {error.strerror or error}") from None


@lru_cache(maxsize=8)  # the footer of a file of many row groups takes longer to read than an image
def _kept_open(path: Path) -> "pq.ParquetFile":
    return open_streamed(path)


def open_streamed(path: Location, *, num_bytes: int | None = None) -> "pq.ParquetFile":
    """Open a Parquet file so that row groups are read page by page, checksums compared if it has any.

    pyarrow's default, in recent versions, loads all of a row group beforehand. An object's size is asked
    for where it is not given.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    is_local = isinstance(path, Path)
    source = path if is_local else pa.PythonFile(RangeFile(path, num_bytes=num_bytes), mode="r")
    return pq.ParquetFile(
        source,
        buffer_size=1 << 20 if is_local else _REQUEST_BYTES,
        pre_buffer=False,
        page_checksum_verification=True,
    )
