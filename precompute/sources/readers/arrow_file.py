"""Reading an Arrow file of record batches, and finding the bytes of its values in it."""

# pyarrow has no types, so that everything it returns is unknown to a strict checker.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import hashlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ....errors import SourceError
from ....formatting import first_line
from .parquet_rows import check_names

_FILE_MAGIC = b"ARROW1"
_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"

_INLINE_BYTES = 12  # a value of at most this length is inside its view
_VIEW = np.dtype([("length", "<i4"), ("prefix", "<i4"), ("buffer", "<i4"), ("offset", "<i4")])

Span = tuple[int, int]
"""Offset of the first byte in the file, and number of bytes."""


class ArrowFile:
    """A stream or a file of batches, memory-mapped: only what is used is read."""

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
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
            raise SourceError(f"{path} is cut short: it has no end mark of Arrow; copy it again")

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
        """Return the number of rows, without reading values. The file is then at its end.

        Raises:
            SourceError: the file is damaged.
        """
        num_rows = number = 0
        while (batch := self._batch(number)) is not None:
            num_rows += batch.num_rows
            number += 1
        return num_rows

    def image_spans(self, column: Any) -> list[Span | str | None]:
        """Return the span of each image in the file; None for null, or why a value is not an image.

        Args:
            column: array out of a batch, of a type in which _leaf of fields/image_column.py finds bytes.

        Raises:
            SourceError: the file is compressed.
        """
        return [
            self._checked(*span) if isinstance(span, tuple) else span for span in _spans(column)
        ]

    def sha256(self, span: Span) -> str:
        """Return the SHA-256 of a part of the file, in hexadecimal digits."""
        return hashlib.sha256(self._buffer.slice(*span)).hexdigest()

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
        """Refuse a batch with offsets outside its buffers, which Arrow would follow."""
        import pyarrow as pa

        try:
            batch.validate(full=True)
        except pa.ArrowException as error:
            if "UTF8" not in str(error):  # an invalid text; reported with its row
                raise self._damaged(error) from error

    def _damaged(self, error: BaseException) -> SourceError:
        return SourceError(f"{self._path} is damaged ({first_line(error)}); copy it again")

    def _checked(self, address: int, length: int) -> Span:
        offset = address - self._buffer.address
        if length and not 0 <= offset <= self._buffer.size - length:  # Arrow has checked the length
            raise SourceError(
                f"{self._path} is compressed, so its images cannot be read in place; write it "
                "without compression, as datasets' save_to_disk does, or as Parquet"
            )
        return (offset if length else 0), length


def follow(batch: Any, names: tuple[str, ...]) -> Any:
    """Return the array that names lead to through structs, null where a struct is null."""
    import pyarrow as pa

    column = batch.column(batch.schema.get_field_index(names[0]))
    for name in names[1:]:
        if not pa.types.is_struct(column.type):  # a list, whose items image_spans looks into
            break
        column = column.flatten()[column.type.get_field_index(name)]
    return column


def _spans(column: Any) -> list[Span | str | None]:
    """Return (address, length) of the one image in each value; None for null, or why there is none."""
    import pyarrow as pa

    kind = column.type
    if not len(column):
        return []
    if pa.types.is_struct(kind):
        return _spans(column.flatten()[kind.get_field_index("bytes")])
    if pa.types.is_dictionary(kind):
        values = _spans(column.dictionary)
        return [None if i is None else values[i] for i in column.indices.to_pylist()]
    if pa.types.is_fixed_size_binary(kind):
        first, width = _address(column.buffers()[1]), kind.byte_width
        rows = range(column.offset, column.offset + len(column))
        spans = [(first + row * width, width) for row in rows]
    elif str(kind) == "binary_view":
        return _view_spans(column)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        if not pa.types.is_uint8(kind.value_type):
            return _item_spans(column)
        values = column.values
        first = _address(values.buffers()[1]) + values.offset
        spans = [
            (first + start, end - start) for start, end in pairwise(column.offsets.to_pylist())
        ]
    else:
        spans = _offset_spans(column)
    is_valid = column.is_valid().to_pylist()
    return [span if valid else None for span, valid in zip(spans, is_valid, strict=True)]


def _item_spans(column: Any) -> list[Span | str | None]:
    """Return the span of the only item of each list."""
    offsets = column.offsets.to_pylist()
    items = _spans(column.values.slice(offsets[0], offsets[-1] - offsets[0]))
    found: list[Span | str | None] = []
    for (start, end), is_valid in zip(
        pairwise(offsets), column.is_valid().to_pylist(), strict=True
    ):
        if not is_valid or end == start:
            found.append(None)
        elif end - start == 1:
            found.append(items[start - offsets[0]])
        else:
            found.append(
                f"the row holds {end - start:,} images, expected one; write a row for each"
            )
    return found


def _offset_spans(column: Any) -> list[Span]:
    _, offsets, data = column.buffers()
    kind = np.dtype("<i8" if str(column.type) == "large_binary" else "<i4")
    ends = np.frombuffer(offsets, kind, column.offset + len(column) + 1)[column.offset :].tolist()
    first = _address(data)
    return [(first + start, end - start) for start, end in pairwise(ends)]


def _view_spans(column: Any) -> list[Span | str | None]:
    _, views, *data = column.buffers()
    start = column.offset
    table = np.frombuffer(views, _VIEW, start + len(column))[start:].tolist()
    found: list[Span | str | None] = []
    for i, (view, is_valid) in enumerate(zip(table, column.is_valid().to_pylist(), strict=True)):
        length, _, buffer, offset = view
        if not is_valid:  # its view has no meaning
            found.append(None)
        elif length <= _INLINE_BYTES:
            found.append((views.address + (start + i) * _VIEW.itemsize + 4, length))
        else:
            found.append((data[buffer].address + offset, length))
    return found


def _address(buffer: Any) -> int:
    return 0 if buffer is None else buffer.address  # None: it would be empty
