"""Null counts from the footer of a Parquet file.

pyarrow 26 ends its process if the footer is damaged so that it contradicts itself and one asks for the
metadata of a column, because nothing catches the C++ exception. So the footer is parsed here.
Source: the Thrift compact protocol specification; parquet-format 2.11, parquet.thrift.
"""

import os
from typing import Any

from ....store.io.range_file import open_ranges
from ..listing import as_location

_TAIL_BYTES = 8  # length of the footer, magic
_MAGIC = b"PAR1"
_ROW_GROUPS, _COLUMNS, _COLUMN, _PATH, _STATISTICS, _NULL_COUNT = 4, 1, 3, 3, 12, 3
"""Ids of fields, from FileMetaData down to Statistics."""

_MAX_BITS = 64

NullCounts = list[int | None]
"""Cells without a value by row group; None if the file does not record it."""


def read_null_counts(path: str, member: str, num_row_groups: int) -> NullCounts:
    """Return the null counts of a column, which is given by the names that lead to it, joined with dots.

    All are None if the footer is damaged or does not record them.

    Raises:
        StorageError: the file is in a store that is unreachable.
    """
    try:
        groups = _Thrift(_read_footer(path)).struct()[_ROW_GROUPS]
        found = [_null_count(group, member.encode().split(b".")) for group in groups]
    except (OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError):
        return [None] * num_row_groups
    return found if len(found) == num_row_groups else [None] * num_row_groups


def _null_count(group: dict[int, Any], names: list[bytes]) -> int | None:
    for chunk in group[_COLUMNS]:
        column = chunk[_COLUMN]
        if b".".join(column[_PATH]) == b".".join(names):
            return column.get(_STATISTICS, {}).get(_NULL_COUNT)
    return None


def _read_footer(path: str) -> bytes:
    with open_ranges(as_location(path)) as file:
        file.seek(-_TAIL_BYTES, os.SEEK_END)
        tail = file.read(_TAIL_BYTES)
        if tail[4:] != _MAGIC:
            raise ValueError("no Parquet file")
        num_bytes = int.from_bytes(tail[:4], "little")
        file.seek(-_TAIL_BYTES - num_bytes, os.SEEK_END)
        return file.read(num_bytes)


class _Thrift:
    """Values of the Thrift compact protocol; structs are dicts by field id."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def struct(self) -> dict[int, Any]:
        found: dict[int, Any] = {}
        number = 0
        while (head := self._byte()) != 0:
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            kind = head & 15
            found[number] = kind == 1 if kind in (1, 2) else self._value(kind)
        return found

    def _value(self, kind: int) -> Any:
        match kind:
            case 1 | 2 | 3:  # in a list a boolean is a byte
                return self._byte()
            case 4 | 5 | 6:
                return self._zigzag()
            case 7:
                return self._bytes(8)
            case 8:
                return self._bytes(self._varint())
            case 9 | 10:
                head = self._byte()
                num_values = head >> 4 if head >> 4 != 15 else self._varint()
                return [self._value(head & 15) for _ in range(num_values)]
            case 12:
                return self.struct()
            case _:  # a footer has no map
                raise ValueError(f"no value of kind {kind}")

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _bytes(self, num_bytes: int) -> bytes:
        self._at += num_bytes
        if self._at > len(self._data):
            raise ValueError("the footer is cut")
        return self._data[self._at - num_bytes : self._at]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 128:
            value |= (byte & 127) << shift
            shift += 7
            if shift > _MAX_BITS:
                raise ValueError("a number has too many bytes")
        return value | byte << shift

    def _zigzag(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
