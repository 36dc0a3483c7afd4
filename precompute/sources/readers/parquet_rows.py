"""Rows of a Parquet file, a batch at a time; of Arrow batches in general."""

# pyarrow has no types, so that everything it returns is unknown to a strict checker.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from ....errors import CacheError, SourceError
from ....formatting import first_line
from ....images.parquet_cells import ReadError, bytes_of, has_no_bytes, leaf_batches, open_streamed
from ....store.io.location import Location
from ..fields.image_column import holds_paths

_BATCH_ROWS = 1024


def parquet_names(table: Location) -> list[str]:
    """Return the names of the columns.

    Raises:
        SourceError: the file cannot be read.
    """
    return [str(name) for name in open_parquet(table).schema_arrow.names]


def refuse_packed_images(table: Location, column: str) -> None:
    """Refuse a Parquet column of images that cannot hold paths, before its bytes are read.

    Raises:
        SourceError: the message names the type of the column.
    """
    found = open_parquet(table).schema_arrow.field(column).type
    if not holds_paths(found):
        raise SourceError(
            f"{table}: column {column!r} holds {str(found)[:80]}, expected text: paths of images"
        )


def open_parquet(path: Location) -> Any:
    """Open a Parquet file; reads its footer only.

    Raises:
        SourceError: it cannot be read.
    """
    import pyarrow as pa  # imported here because it takes 0.2 s, and most tables are text

    try:
        file = open_streamed(path)
        check_names(file.schema_arrow)
        return file
    except CacheError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise SourceError(f"{path} cannot be read as Parquet ({first_line(error)})") from error


def check_names(fields: Any) -> None:
    """Read every name of an Arrow schema, or of the fields of a type.

    Raises:
        UnicodeDecodeError: one is not UTF-8; pyarrow would only raise this later.
    """
    for field in fields:
        assert field.name is not None
        check_names([field.type.field(i) for i in range(field.type.num_fields)])


def parquet_rows(
    table: Location, columns: Sequence[str] | None
) -> Iterator[tuple[str, dict[str, object] | str]]:
    """Yield the place of each row, and its values or the reason why it cannot be read.

    Raises:
        SourceError: the file cannot be read, or is damaged after some row.
    """
    import pyarrow as pa

    number = 1
    with open_parquet(table) as file:
        batches = file.iter_batches(batch_size=_BATCH_ROWS, columns=columns)
        while True:
            try:
                batch = next(batches, None)
            except (OSError, pa.ArrowException) as error:
                raise SourceError(
                    f"{table} is damaged from row {number} on ({first_line(error)}); copy it again"
                ) from error
            if batch is None:
                break
            for i, values in enumerate(batch_rows(batch)):
                yield f"row {number + i}", values
            number += len(batch)


def row_group_rows(
    file: Any, row_group: int, columns: Sequence[str]
) -> Iterator[dict[str, object] | str]:
    """Yield the values of each row of a row group, or the reason why it cannot be read.

    Raises:
        ValueError: the row group is damaged after this row; the message is a reason.
    """
    import pyarrow as pa

    if not columns:  # pyarrow would give no batch at all
        for _ in range(file.metadata.row_group(row_group).num_rows):
            yield {}
        return
    try:
        for batch in file.iter_batches(
            batch_size=_BATCH_ROWS, row_groups=[row_group], columns=columns
        ):
            yield from batch_rows(batch)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(first_line(error)) from error


def null_rows(file: Any, row_group: int, image: Sequence[str], null_count: int | None) -> set[int]:
    """Return the rows of a row group without bytes in a column, which is given by the names that lead to it.

    The column is read only if its null count is neither 0 nor the number of rows.

    Raises:
        ValueError: the row group is damaged; the message is a reason.
    """
    import pyarrow as pa

    num_rows = file.metadata.row_group(row_group).num_rows
    if null_count == 0:
        return set()
    if null_count == num_rows:
        return set(range(num_rows))
    found: set[int] = set()
    first = 0
    try:
        for column in leaf_batches(file, ".".join(image), row_group, batch_rows=64):
            is_null = has_no_bytes(column).to_pylist()
            found.update(first + i for i, each in enumerate(is_null) if each)
            first += len(column)
    except (OSError, ReadError, pa.ArrowException) as error:
        raise ValueError(first_line(error)) from error
    return found


def group_has_repeats(file: Any, row_group: int, column: str) -> bool:
    """Return whether a row group of a column repeats a value; False if it cannot be read.

    Args:
        file: open.
        row_group: number of the row group.
        column: name of the column, or of a field in it with dots.
    """
    import pyarrow as pa

    try:
        values = file.read_row_group(row_group, columns=[column]).column(0).combine_chunks()
        while pa.types.is_struct(values.type):  # of which only one field was read
            values = values.flatten()[0]
    except (OSError, LookupError, pa.ArrowException):
        return False
    return has_repeats(values)


def has_repeats(values: Any) -> bool:
    """Return whether an Arrow array repeats a value; False for types that cannot be compared."""
    import pyarrow as pa
    import pyarrow.compute as pc

    compute: Any = pc  # has no types
    try:
        num_distinct = compute.count_distinct(values, mode="only_valid").as_py()
    except pa.ArrowException:
        return False
    return num_distinct < len(values) - values.null_count


def image_sums(file: Any, member: str, row_group: int) -> dict[int, str]:
    """Return the SHA-256, in hexadecimal digits, of the bytes of the rows of a row group that have some.

    Raises:
        ValueError: the row group is damaged; the message is a reason.
    """
    import pyarrow as pa

    found: dict[int, str] = {}
    index = 0
    try:
        for column in leaf_batches(file, member, row_group, batch_rows=64):
            for value in column:
                with contextlib.suppress(
                    ReadError
                ):  # several images; reading the image will say so
                    if data := bytes_of(value):
                        found[index] = hashlib.sha256(data).hexdigest()
                index += 1
    except (OSError, ReadError, pa.ArrowException) as error:
        raise ValueError(first_line(error)) from error
    return found


def batch_rows(batch: Any) -> Iterator[dict[str, object] | str]:
    """Yield the values of each row of an Arrow batch, or the reason why it cannot be read."""
    import pyarrow as pa

    # Texts that are not UTF-8, times outside the range of Python, unknown time zones.
    no_value = (ValueError, OverflowError, LookupError, pa.ArrowException)
    try:
        yield from batch.to_pylist(maps_as_pydicts="lossy")
        return
    except no_value:
        pass
    for i in range(len(batch)):
        try:
            yield batch.slice(i, 1).to_pylist(maps_as_pydicts="lossy")[0]
        except UnicodeDecodeError:
            yield "not UTF-8"
        except no_value as error:
            yield f"a value cannot be read ({first_line(error)})"
