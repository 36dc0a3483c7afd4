"""Cells of Parquet files that hold the bytes of images."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..store.io.location import Location
from ..store.io.range_file import RangeFile

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_REQUEST_BYTES = 1 << 22
"""Bytes of one request for a Parquet file in an object store; a page is rarely larger."""


class ReadError(Exception):
    """The bytes of an image cannot be read. The cache records the message as the reason."""


def open_streamed(path: Location, *, num_bytes: int | None = None) -> "pq.ParquetFile":
    """Return a Parquet file whose row groups are read page by page, with page checksums checked.

    By default recent versions of pyarrow load a whole row group first.

    Args:
        path: the file.
        num_bytes: size of an object; None: the size is requested.
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


def leaf_batches(file: Any, member: str, row_group: int, *, batch_rows: int) -> Iterator[Any]:
    """Yield one column of a row group as Arrow arrays of at most ``batch_rows`` values.

    Memory holds a page and a batch, regardless of the size of the row group.

    Raises:
        ReadError: there is no such column.
    """
    for batch in file.iter_batches(
        batch_size=batch_rows, row_groups=[row_group], columns=[member], use_threads=False
    ):
        if batch.num_columns != 1:
            raise ReadError(f"the file changed since it was planned: no column {member!r}")
        yield batch.column(0)


def has_no_bytes(column: Any) -> Any:
    """Return an Arrow array that is true where a value is null, or a struct or list without bytes."""
    import pyarrow as pa
    import pyarrow.compute as pc

    compute: Any = pc  # has no types
    if pa.types.is_struct(column.type):  # only its bytes were read
        return has_no_bytes(column.flatten()[0])
    if not _is_list_of_images(column.type):
        return column.is_null()
    is_filled = compute.fill_null(compute.greater(compute.list_value_length(column), 0), False)
    first = compute.if_else(is_filled, column.offsets[:-1], None)
    return has_no_bytes(column.values.take(first))


def _is_list_of_images(kind: Any) -> bool:
    """Return whether a type is a list, but not of the bytes of one image."""
    import pyarrow as pa

    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return is_list and not pa.types.is_uint8(kind.value_type)


def column_chunk(file: Any, member: str, row_group: int) -> Any:
    """Return the metadata of one column of a row group, or None if there is no such column.

    The first value is read first: if the footer is damaged this raises an error, whereas reading the
    metadata would end the process, because pyarrow 26 does not catch a C++ exception there.

    Raises:
        ReadError, OSError, ArrowException: the column cannot be read.
    """
    description = file.metadata.row_group(row_group)
    paths = [file.schema.column(i).path for i in range(description.num_columns)]
    if member not in paths:
        return None
    next(leaf_batches(file, member, row_group, batch_rows=1), None)
    return description.column(paths.index(member))


def bytes_of(value: Any) -> bytes:
    """Return the bytes of an Arrow value, empty for null.

    The value is bytes, a list of uint8, a struct with bytes, or a list with one of these.

    Raises:
        ReadError: the value holds several images, or no bytes.
    """
    import pyarrow as pa

    if not value.is_valid:
        return b""
    if pa.types.is_struct(value.type):  # only its bytes were read
        return bytes_of(value[0])
    if _is_list_of_images(value.type):
        if len(value.values) > 1:
            raise ReadError(
                f"its row holds {len(value.values):,} images, expected one; write a row for each"
            )
        return bytes_of(value.values[0]) if len(value.values) else b""
    values: Any = getattr(value, "values", None)  # a list of numbers has these
    if values is not None and str(values.type) == "uint8" and not values.null_count:
        return values.to_numpy().tobytes()
    found: object = value.as_py()
    if not isinstance(found, bytes):
        raise ReadError("the file changed since it was planned: the column holds no bytes")
    return found
