"""The files of an export, written block by block.

Shape letters in this file:
    B = rows of a block, N = rows of a file, D = embed_dim.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ...store.format.row_encoding import DTYPE

_FEW_VALUES = {"label", "source"}


class RowsFile(Protocol):
    """One file, or several, written block by block."""

    def write(self, lines: pa.Table, values_BD: NDArray[np.float16]) -> None:
        """Append a block."""
        ...

    def close(self) -> None:
        """Finish the file."""
        ...


class ParquetFile:
    """A table with the catalog entry of each row and, if ``column`` is given, its embedding.

    Embeddings are float32, although the cache stores float16: DuckDB has no such type, and pandas cannot
    compute with it. No value changes. The additional bytes are zeros, which BYTE_STREAM_SPLIT makes adjacent
    and zstd compresses to almost nothing.
    """

    def __init__(
        self,
        path: Path,
        schema: pa.Schema,
        embed_dim: int,
        *,
        column: str | None,
        about: Mapping[str, Any],
    ) -> None:
        self._column = column
        self._type = pa.list_(pa.field("element", pa.float32(), nullable=False), embed_dim)
        if column is not None:
            schema = schema.append(pa.field(column, self._type, nullable=False))
        self._schema = schema.with_metadata({"siglip2_cache": json.dumps(about)})
        encoding = {} if column is None else {f"{column}.list.element": "BYTE_STREAM_SPLIT"}
        few = [name for name in schema.names if name in _FEW_VALUES]
        self._writer = pq.ParquetWriter(
            path,
            self._schema,
            compression="zstd",
            use_dictionary=cast(Any, few),
            column_encoding=encoding or None,
        )

    def write(self, lines: pa.Table, values_BD: NDArray[np.float16]) -> None:
        """Append a block."""
        if self._column is not None:
            flat = pa.array(values_BD.astype(np.float32).reshape(-1))
            embeddings = pa.FixedSizeListArray.from_arrays(flat, type=self._type)
            lines = lines.append_column(self._schema.field(self._column), embeddings)
        self.write_lines(lines)

    def write_lines(self, lines: pa.Table) -> None:
        """Append lines that have all columns."""
        self._writer.write_table(lines.cast(self._schema))

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()


class NpyArray:
    """An (N, D) float16 .npy file, for memory mapping."""

    def __init__(self, path: Path, embed_dim: int) -> None:
        self._embed_dim, self._num_rows = embed_dim, 0
        self._file = path.open("wb")
        self._write_header()

    def write(self, values_BD: NDArray[np.float16]) -> None:
        """Append a block."""
        self._file.write(np.ascontiguousarray(values_BD, DTYPE).data)
        self._num_rows += len(values_BD)

    def close(self) -> None:
        """Finish the file."""
        self._file.seek(0)
        self._write_header()  # the header has room for any number of rows
        self._file.close()

    def _write_header(self) -> None:
        shape = (self._num_rows, self._embed_dim)
        fields = {"descr": DTYPE.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, fields)


class NpyFile:
    """An (N, D) float16 .npy file, and a Parquet table of its rows in the same order."""

    def __init__(
        self, path: Path, schema: pa.Schema, embed_dim: int, *, about: Mapping[str, Any]
    ) -> None:
        self._lines = ParquetFile(
            path.with_suffix(".parquet"), schema, embed_dim, column=None, about=about
        )
        self._array = NpyArray(path, embed_dim)

    def write(self, lines: pa.Table, values_BD: NDArray[np.float16]) -> None:
        """Append a block."""
        self._lines.write(lines, values_BD)
        self._array.write(values_BD)

    def close(self) -> None:
        """Finish the files."""
        self._lines.close()
        self._array.close()
