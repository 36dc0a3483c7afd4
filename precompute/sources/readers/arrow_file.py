"""An Arrow file of record batches, and where in it the bytes of a value lie."""

# pyarrow has no types, so that everything it returns is unknown to a strict checker.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ....errors import SourceError
from ....formatting import first_line
from .parquet_rows import check_names

_FILE_MAGIC = b"ARROW1"
_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"

_INLINE_BYTES = 12  # a shorter value stands inside its view
_VIEW = np.dtype([("length", "<i4"), ("prefix", "<i4"), ("buffer", "<i4"), ("offset", "<i4")])

_Place = tuple[int, int]  # offset, length


class ArrowFile:
    """A stream or a file of batches, mapped: nothing but what is looked at is read."""

    def __init__(self, path: Path) -> None:
        """Raises:
        SourceError: it cannot be read.
        """
        import pyarrow as pa

        self._path = path
        try:
            with pa.memory_map(str(path)) as mapped:
                self._buffer = mapped.read_buffer()
            self._is_stream = self._buffer[: len(_FILE_MAGIC)].to_pybytes() != _FILE_MAGIC
            opener = pa.ipc.open_stream if self._is_stream else pa.ipc.open_file
            self._reader = opener(pa.BufferReader(self._buffer))
            check_names(self._reader.schema)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise SourceError(f"{path} cannot be read as Arrow ({first_line(error)})") from error
        end = self._buffer[-len(_STREAM_END) :].to_pybytes()
        if self._is_stream and end != _STREAM_END:
            raise SourceError(f"{path} is cut short: it does not end as Arrow does; copy it again")

    def __enter__(self) -> "ArrowFile":
        return self

    def __exit__(self, *_: object) -> None:
        del self._reader, self._buffer

    @property
    def schema(self) -> Any:
        """The Arrow schema."""
        return self._reader.schema

    def batches(self) -> Iterator[Any]:
        """Yield the batches in order.

        Raises:
            SourceError: the file is damaged.
        """
        number = 0
        while (batch := self._batch(number)) is not None:
            self._check(batch)
            yield batch
            number += 1

    def count_rows(self) -> int:
        """Return the number of rows; reads no value. The file is then at its end.

        Raises:
            SourceError: the file is damaged.
        """
        num_rows = number = 0
        while (batch := self._batch(number)) is not None:
            num_rows += batch.num_rows
            number += 1
        return num_rows

    def places(self, column: Any) -> list[_Place | None]:
        """Return where in the file the bytes of each value lie, as (offset, length); None for null.

        Args:
            column: array of binary, large_binary or binary_view, out of a batch.

        Raises:
            SourceError: they do not stand there as they are: the file is compressed.
        """
        if str(column.type) == "binary_view":
            found = _view_spans(column)
        else:
            found = _spans(column, np.dtype("<i8" if str(column.type) == "large_binary" else "<i4"))
        return [self._checked(*span) if span is not None else None for span in found]

    def _batch(self, number: int) -> Any:
        import pyarrow as pa

        try:
            if self._is_stream:
                return self._reader.read_next_batch()
            if number == self._reader.num_record_batches:
                return None
            return self._reader.get_batch(number)
        except StopIteration:
            return None
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self._damaged(error) from error

    def _check(self, batch: Any) -> None:
        """Refuse a batch with offsets that lead outside: Arrow itself would follow them."""
        import pyarrow as pa

        try:
            batch.validate(full=True)
        except pa.ArrowException as error:
            if "UTF8" not in str(error):  # a text that is not; its row will say so
                raise self._damaged(error) from error

    def _damaged(self, error: BaseException) -> SourceError:
        return SourceError(f"{self._path} is damaged ({first_line(error)}); copy it again")

    def _checked(self, address: int, length: int) -> _Place:
        offset = address - self._buffer.address
        if length and not 0 <= offset <= self._buffer.size - length:  # Arrow has checked length
            raise SourceError(
                f"{self._path} is compressed, so that its images cannot be read in place; write it "
                "without compression, as datasets' save_to_disk does, or as Parquet"
            )
        return (offset if length else 0), length


def follow(batch: Any, way: tuple[str, ...]) -> Any:
    """Return the array that names lead to: null where a struct on the way is."""
    column = batch.column(batch.schema.get_field_index(way[0]))
    for name in way[1:]:
        column = column.flatten()[column.type.get_field_index(name)]
    return column


def _spans(column: Any, of_offset: np.dtype[Any]) -> list[tuple[int, int] | None]:
    """Return (address, length) of each value; None for null."""
    _, offsets, data = column.buffers()
    if not len(column):
        return []
    at = column.offset
    ends = np.frombuffer(offsets, of_offset, at + len(column) + 1)[at:]
    base = data.address if data is not None else 0
    return [
        (base + start, end - start) if is_valid else None
        for start, end, is_valid in zip(
            ends[:-1].tolist(), ends[1:].tolist(), column.is_valid().to_pylist(), strict=True
        )
    ]


def _view_spans(column: Any) -> list[tuple[int, int] | None]:
    _, views, *data = column.buffers()
    if not len(column):
        return []
    at = column.offset
    table = np.frombuffer(views, _VIEW, at + len(column))[at:]
    found: list[tuple[int, int] | None] = []
    for i, (view, is_valid) in enumerate(
        zip(table.tolist(), column.is_valid().to_pylist(), strict=True)
    ):
        length, _, buffer, offset = view
        if not is_valid:
            found.append(None)
        elif length <= _INLINE_BYTES:
            found.append((views.address + (at + i) * _VIEW.itemsize + 4, length))
        else:
            found.append((data[buffer].address + offset, length))
    return found
