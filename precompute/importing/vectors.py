"""Vectors in files: .npy and .npz arrays, and columns of Parquet files. Nothing is unpickled."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ...errors import SourceError
from ...formatting import first_line
from ...store.io.location import Location
from .files import SourceFiles

_BATCH_ROWS = 8192
_NAMES_BATCH = 65_536


def open_npy(location: Location, files: SourceFiles) -> NDArray[Any]:
    """Return a two-dimensional array of floats in a .npy file, mapped.

    Raises:
        SourceError: it is another array, or pickled.
    """
    try:
        found = np.load(files.path(location), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise SourceError(f"{location} cannot be read as an array ({_reason(error)})") from error
    return check_vectors(found, str(location))


def load_npz(data: Any, where: str, *, most_bytes: int) -> dict[str, NDArray[Any]]:
    """Return the arrays of a .npz file.

    Args:
        data: its path, or an open file.
        where: for messages.
        most_bytes: the most that they take, decompressed.

    Raises:
        SourceError: it cannot be read, is pickled or too large.
    """
    import zipfile

    try:
        with zipfile.ZipFile(data) as archive:
            num_bytes = sum(info.file_size for info in archive.infolist())
        if num_bytes > most_bytes:
            raise SourceError(f"{where} has {num_bytes:,} bytes of arrays, at most {most_bytes:,}")
        with np.load(data, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise SourceError(f"{where} cannot be read as arrays ({_reason(error)})") from error


def check_vectors(found: NDArray[Any], where: str) -> NDArray[Any]:
    """Return an array if it is (rows, width) floats.

    Raises:
        SourceError: it is not.
    """
    if found.ndim != 2 or found.dtype.kind != "f" or found.shape[1] == 0:
        raise SourceError(
            f"{where} is {found.dtype} of shape {found.shape}, expected floats of shape (rows, width)"
        )
    return found


class ParquetVectors:
    """One column of a Parquet file whose values are vectors."""

    def __init__(self, location: Location, opened: Any, column: str, files: SourceFiles) -> None:
        """Find the width; read no vectors.

        Raises:
            SourceError: the column has no vectors.
        """
        self._location, self._file, self._column, self._files = location, opened, column, files
        self._where = f"{location}: column {column!r}"
        self.shape = (int(opened.metadata.num_rows), self._find_width())

    def unpack(self) -> NDArray[Any]:
        """Return the vectors as an array in a scratch file; null is NaN.

        Raises:
            SourceError: a vector has another width than the first.
            DiskFullError: the temporary folder is too small.
        """
        element = self._file.schema_arrow.field(self._column).type.value_type
        dtype = np.float16 if element.bit_width == 16 else np.float32
        found, first = self._files.new_array(self.shape, dtype), 0
        for batch in self._batches():
            found[first : first + len(batch)] = self._rows(batch, first)
            first += len(batch)
        return found

    def _find_width(self) -> int:
        kind = self._file.schema_arrow.field(self._column).type
        if getattr(kind, "list_size", 0):
            return int(kind.list_size)
        for batch in self._batches():
            widths = [len(value) for value in batch if value.is_valid]
            if widths:
                return widths[0]
        raise SourceError(f"{self._where} has no vector")

    def _batches(self) -> Iterator[Any]:
        import pyarrow as pa

        try:
            for batch in self._file.iter_batches(_BATCH_ROWS, columns=[self._column]):
                yield batch.column(0)
        except (OSError, pa.ArrowException) as error:
            raise SourceError(f"{self._where} cannot be read ({first_line(error)})") from error

    def _rows(self, batch: Any, first: int) -> NDArray[Any]:
        width = self.shape[1]
        lengths = pl.Series(pl.from_arrow(batch)).cast(pl.List(pl.Float32)).list.len()
        wrong = lengths.ne(width).fill_null(False).arg_true()
        if len(wrong):
            raise SourceError(
                f"{self._where} has a vector of width {lengths[wrong[0]]:,} in row {first + wrong[0]:,}, "
                f"and {width:,} in the rows before"
            )
        is_valid = batch.is_valid().to_numpy(zero_copy_only=False)
        rows = np.full((len(batch), width), np.nan, np.float32)
        flat = batch.filter(batch.is_valid()).flatten()
        rows[is_valid] = flat.to_numpy(zero_copy_only=False).reshape(-1, width)
        return rows


def parquet_names(
    location: Location, opened: Any, name: str, view: str | None
) -> Iterator[pl.DataFrame]:
    """Yield name (as text) and view of the rows of a Parquet file.

    Raises:
        SourceError: they cannot be read, or a view is not a number.
    """
    import pyarrow as pa

    columns = [name] if view is None else [name, view]
    try:
        for batch in opened.iter_batches(_NAMES_BATCH, columns=columns):
            frame = pl.DataFrame(pl.from_arrow(batch))
            views = pl.lit(0) if view is None else pl.col(view)
            yield frame.select(
                name=pl.col(name).cast(pl.String), view=views.cast(pl.Int64).fill_null(0)
            )
    except (OSError, pa.ArrowException, pl.exceptions.PolarsError) as error:
        raise SourceError(f"{location} cannot be read ({first_line(error)})") from error


def is_vectors(kind: Any) -> bool:
    """Return whether a type of Arrow is a list of floats."""
    import pyarrow.types as pt

    is_list = pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind)
    return is_list and pt.is_floating(kind.value_type)


def read_names(path: Path, location: Location) -> pl.Series | None:
    """Return the names in a .txt (one a line), .json (a list) or .npy file; None for another file.

    Raises:
        SourceError: it cannot be read.
    """
    import json

    try:
        match location.suffix.lower():
            case ".txt":
                lines = path.read_text("utf-8-sig").split("\n")
                found: list[Any] = lines[:-1] if lines[-1] == "" else lines
                found = [line.removesuffix("\r") for line in found]
            case ".json":
                found = json.loads(path.read_text("utf-8-sig"))
            case ".npy":
                found = np.load(path, allow_pickle=False).tolist()
            case _:
                return None
        if not all(isinstance(each, str | int) for each in found):
            raise ValueError("it is not a list of texts")
        return pl.Series("name", [str(each) for each in found], pl.String)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise SourceError(f"{location} cannot be read as names ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    text = first_line(error)
    is_pickled = any(word in text.lower() for word in ("pickle", "python object", "object array"))
    return "it is pickled, and pickle is never loaded" if is_pickled else text
