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

    A list with one item gives the item, any other list null. A list of uint8 is one value. Memory holds
    a page and a batch, regardless of the size of the row group.

    Raises:
        ReadError: there is no such column.
    """
    for batch in file.iter_batches(
        batch_size=batch_rows, row_groups=[row_group], columns=[member], use_threads=False
    ):
        if batch.num_columns != 1:
            raise ReadError(f"the file changed since it was planned: no column {member!r}")
        column: Any = batch.column(0)
        while (inside := _inside(column)) is not None:
            column = inside
        yield column


def _inside(column: Any) -> Any:
    """Return the contents of a column of structs or of lists with one item; None for plain values."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_struct(column.type):  # only its bytes were read
        return column.flatten()[0]
    is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if not is_list or pa.types.is_uint8(column.type.value_type):
        return None
    compute: Any = pc  # has no types
    lengths = compute.list_value_length(column)
    is_one = compute.fill_null(compute.equal(lengths, 1), False)
    return column.values.take(compute.if_else(is_one, column.offsets[:-1], None))


def column_chunk(file: Any, member: str, row_group: int) -> Any:
    """Return the metadata of one column of a row group, or None if there is no such column.

    The first value is read first: if the footer is damaged this raises an error, whereas reading the
    metadata would end the process, because pyarrow 26 does not catch a C++ exception there.

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
    """Return the bytes of an Arrow value, empty for null.

    Raises:
        ReadError: the value is not bytes.
    """
    values: Any = getattr(value, "values", None)  # a list of numbers has these
    if values is not None and str(values.type) == "uint8" and not values.null_count:
        return values.to_numpy().tobytes()
    found: object = value.as_py()
    if found is not None and not isinstance(found, bytes):
        raise ReadError("the file changed since it was planned: the column holds no bytes")
    return found or b""
