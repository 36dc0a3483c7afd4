"""Where an image's bytes lie, and reading them: a whole file, a part of one, a cell of a Parquet file.

Archives are read where they are, nothing is unpacked. A place was found when the corpus was planned;
an archive that was written anew since then has other bytes there, so each read checks what it can: a
tar member by the header before it, a part of another file by the file's size.
"""

import os
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import first_line
from .tar import BLOCK, REGULAR_KINDS, parse_header

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_MAX_BYTES = 2**31
"""More than any picture has that Pillow would decode: 179 million pixels, uncompressed, of 8 bytes. The
largest file is what one decoding process may have to hold."""

_SHORT_NAME = 100  # bytes that a tar header has room for; of a longer name it holds a part


class ReadError(Exception):
    """An image's bytes cannot be had; the message is the reason that the cache records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePlace:
    """Where one image lies; the columns of the catalog's tables ``samples`` and ``files``."""

    path: Path
    """The file, on this machine."""

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


def read_image_bytes(place: ImagePlace) -> bytes:
    """Return an image's bytes.

    Raises:
        ReadError: missing, unreadable, empty, or not what was planned.
    """
    try:
        data = _read(place)
    except FileNotFoundError:
        raise ReadError("no such file") from None
    except OSError as error:
        raise ReadError(f"cannot be read: {error.strerror or error}") from None
    if not data:
        raise ReadError("empty: 0 bytes")
    return data


def read_parquet_image(file: Any, place: ImagePlace) -> bytes:
    """Return the bytes of one row of an open Parquet file; reads the pages up to that row."""
    check_row(file, place)
    assert place.row_group is not None and place.index is not None and place.member is not None
    seen = 0
    for column in leaf_batches(file, place.member, place.row_group, batch_rows=64):
        if place.index < seen + len(column):
            return bytes_of(column[place.index - seen])
        seen += len(column)
    raise ReadError("the file is damaged: a row group is shorter than it says")


def leaf_batches(file: Any, member: str, row_group: int, *, batch_rows: int) -> Iterator[Any]:
    """Yield Arrow arrays, of at most batch_rows values, of one column of a row group.

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
        while column.type.num_fields:  # a struct, of which only the bytes were read
            column = column.flatten()[0]
        yield column


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
    found: object = value.as_py()
    if found is not None and not isinstance(found, bytes):
        raise ReadError("the file changed since it was planned: its column holds no bytes")
    return found or b""


def _read(place: ImagePlace) -> bytes:
    if place.row_group is not None:
        return _read_row(place)
    with place.path.open("rb") as file:
        if place.offset is None:
            return _read_whole(file)
        if place.member is not None:
            _check_member(file, place, place.offset)
        else:
            _check_size(file, place)
        _check_length(place.length or 0)
        file.seek(place.offset)
        data = file.read(place.length)
    if place.length is not None and len(data) != place.length:
        raise ReadError(f"cut short: {len(data)} bytes where {place.length} were planned")
    return data


def _read_whole(file: BinaryIO) -> bytes:
    status = os.fstat(file.fileno())
    if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):  # /dev/zero has no end
        raise ReadError("not a regular file")
    _check_length(status.st_size)
    return file.read()


def _check_length(num_bytes: int) -> None:
    if num_bytes > _MAX_BYTES:
        raise ReadError(f"too large: {num_bytes:,} bytes, at most {_MAX_BYTES:,} are read")


def _check_member(file: BinaryIO, place: ImagePlace, offset: int) -> None:
    """Refuse bytes that do not follow the header of the member that was planned."""
    file.seek(max(0, offset - BLOCK))
    header = parse_header(file.read(BLOCK))
    name = (place.member or "").encode("utf-8", "surrogateescape")
    is_same = (
        header is not None
        and header.kind in REGULAR_KINDS
        and header.size == place.length
        and (len(name) > _SHORT_NAME or not name.isascii() or header.name == name)
    )
    if not is_same:
        raise ReadError(
            f"the archive changed since it was planned: at byte {offset} is no {place.member!r} of "
            f"{place.length} bytes any more"
        )


def _check_size(file: BinaryIO, place: ImagePlace) -> None:
    file.seek(0, 2)
    found = file.tell()
    if place.file_bytes is not None and found != place.file_bytes:
        raise ReadError(
            f"the file changed since it was planned: {found} bytes where it had {place.file_bytes}"
        )


def open_rows(place: ImagePlace) -> Any:
    """Open the Parquet file that holds a row.

    Raises:
        ReadError: it is missing, unreadable, or has another size than when it was planned.
    """
    with _reading_parquet():
        with place.path.open("rb") as file:
            _check_size(file, place)
        return open_streamed(place.path)


def check_row(file: Any, place: ImagePlace) -> None:
    """Refuse an open Parquet file that has no such row.

    Raises:
        ReadError: as said.
    """
    group, metadata = place.row_group, file.metadata
    assert group is not None and place.index is not None
    rows = metadata.row_group(group).num_rows if group < metadata.num_row_groups else 0
    if place.index >= rows:
        raise ReadError("the file changed since it was planned: it has no such row any more")


def _read_row(place: ImagePlace) -> bytes:
    with place.path.open("rb") as file:
        _check_size(file, place)
    with _reading_parquet():
        return read_parquet_image(_kept_open(place.path), place)


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


def open_streamed(path: Path) -> "pq.ParquetFile":
    """Open a Parquet file so that row groups are read page by page, checksums compared if it has any.

    pyarrow's default, in recent versions, loads all of a row group beforehand.
    """
    import pyarrow.parquet as pq

    return pq.ParquetFile(
        path, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True
    )
