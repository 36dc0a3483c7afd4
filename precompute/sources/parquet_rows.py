"""Rows of a Parquet file, a batch at a time."""

# pyarrow has no types, so that everything it returns is unknown to a strict checker.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...errors import SourceError

_BATCH_ROWS = 1024


def parquet_names(table: Path) -> list[str]:
    """Names of the columns.

    Raises:
        SourceError: the file cannot be read.
    """
    return [str(name) for name in _open(table).schema_arrow.names]


def refuse_packed_images(table: Path, column: str) -> None:
    """Refuse a Parquet column of images that holds no paths, before its bytes are read.

    Raises:
        SourceError: names the type that the column has.
    """
    import pyarrow as pa

    found = _open(table).schema_arrow.field(column).type
    value = found.value_type if pa.types.is_dictionary(found) else found
    # Compared by name: string_view is too new for the oldest pyarrow we allow.
    if str(value) not in ("string", "large_string", "string_view"):
        raise SourceError(
            f"{table}: column {column!r} holds {str(found)[:80]}, expected text: paths of images"
        )


def _open(table: Path) -> Any:
    import pyarrow as pa  # here: it takes 0.2 s, and most tables are text
    import pyarrow.parquet as pq

    try:
        # With a buffer, column chunks are read in pieces and not a row group at a time.
        file = pq.ParquetFile(table, buffer_size=1 << 20)
        _ = file.schema_arrow.names  # UnicodeDecodeError: a damaged one has names that are no UTF-8
        return file
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise SourceError(f"{table} cannot be read as Parquet ({_first_line(error)})") from error


def parquet_rows(
    table: Path, columns: Sequence[str] | None
) -> Iterator[tuple[str, dict[str, object] | str]]:
    """Where each row stands, and its values or the reason why it has none.

    Raises:
        SourceError: the file cannot be read, or is damaged from some row on.
    """
    import pyarrow as pa

    number = 1
    with _open(table) as file:
        batches = file.iter_batches(batch_size=_BATCH_ROWS, columns=columns)
        while True:
            try:
                batch = next(batches, None)
            except (OSError, pa.ArrowException) as error:
                raise SourceError(
                    f"{table} is damaged from row {number} on ({_first_line(error)}); copy it again"
                ) from error
            if batch is None:
                break
            for i, values in enumerate(_batch_rows(batch)):
                yield f"row {number + i}", values
            number += len(batch)


def _batch_rows(batch: Any) -> Iterator[dict[str, object] | str]:
    try:
        yield from batch.to_pylist(maps_as_pydicts="lossy")
        return
    except (ValueError, OverflowError):
        pass  # Parquet does not check that its texts are UTF-8 nor that its times are: go row by row
    for i in range(len(batch)):
        try:
            yield batch.slice(i, 1).to_pylist(maps_as_pydicts="lossy")[0]
        except UnicodeDecodeError:
            yield "not UTF-8"
        except (ValueError, OverflowError) as error:  # nanoseconds, a year beyond 9999
            yield f"a value that cannot be read ({_first_line(error)})"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
