"""Reading images from Parquet files before they are decoded, in order, in one thread.

A row of a Parquet file can only be read after the rows before it in its row group. If each decoding
process read its own images, every row group would be read many times.
"""

import contextlib
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

from ..formatting import first_line
from ..store.io.location import Location
from .image import ImageRef
from .image_bytes import ImageLocation, check_row, open_rows
from .parquet_cells import ReadError, bytes_of, column_chunk, leaf_batches

READ_AHEAD_BYTES = 1 << 28
"""Bytes of images that may wait for the decoders. One batch may always wait."""

_MAX_WAITING = 4
"""Batches that may wait. Images in other files have no bytes here, but each batch may open the catalog
rows of another unit."""

_STEP_BYTES = 1 << 22  # of a row group, decoded at a time

_Batch = tuple[Any, Sequence[ImageRef]]


def prefetch_parquet(
    batches: Iterable[_Batch], *, max_bytes: int = READ_AHEAD_BYTES, open_groups: int = 1
) -> Generator[_Batch]:
    """Yield the batches, with the bytes of the images that are in Parquet files.

    A thread takes batches early, starting at the first one that needs it; a corpus of other files
    starts no thread.

    Args:
        batches: (tag, images) pairs.
        max_bytes: bytes of images that may wait.
        open_groups: row groups that are read alternately, the rows of each in order.
    """
    source = iter(batches)
    for batch in source:
        if any(ref.location.row_group is not None for ref in batch[1]):
            prefetcher = _Prefetcher(chain([batch], source), max_bytes, open_groups)
            try:
                yield from prefetcher.batches()
            finally:
                prefetcher.stop()
            return
        yield batch


class _Prefetcher:
    """A thread that reads, and the batches it has read."""

    def __init__(self, source: Iterator[_Batch], max_bytes: int, open_groups: int) -> None:
        self._source, self._max_bytes, self._open_groups = source, max_bytes, open_groups
        self._ready: deque[tuple[_Batch | BaseException | None, int]] = deque()
        self._num_bytes = 0
        self._is_stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, name="parquet-images", daemon=True)
        self._thread.start()

    def batches(self) -> Iterator[_Batch]:
        """Yield the batches in order; raises the errors of their source."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ready)
                found, num_bytes = self._ready.popleft()
                self._num_bytes -= num_bytes
                self._changed.notify_all()
            if found is None:
                return
            if isinstance(found, BaseException):
                raise found
            yield found

    def stop(self) -> None:
        """Stop the thread, or abandon it if it hangs on a file."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        self._thread.join(1)

    def _read(self) -> None:
        rows = RowReader(open_groups=self._open_groups)
        try:
            for tag, refs in self._source:
                read: list[ImageRef] = []
                for ref in refs:
                    if self._is_stopping:
                        return
                    read.append(rows.read(ref))
                self._put((tag, read), sum(len(ref.data or b"") for ref in read))
            self._put(None, 0)
        except BaseException as error:
            self._put(error, 0)
        finally:
            rows.close()

    def _put(self, item: _Batch | BaseException | None, num_bytes: int) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._is_stopping
                    or not self._ready
                    or (
                        len(self._ready) < _MAX_WAITING
                        and self._num_bytes + num_bytes <= self._max_bytes
                    )
                )
            )
            self._ready.append((item, num_bytes))
            self._num_bytes += num_bytes
            self._changed.notify_all()


class RowReader:
    """Reads rows of Parquet files. A row group is decoded once if its rows are requested in order.

    Several row groups may be read alternately. The last row of each may be requested again.
    """

    def __init__(self, *, open_groups: int = 1) -> None:
        """Keep at most ``open_groups`` row groups open, with a page and some 4 MB of rows of each."""
        self._open_groups = open_groups
        self._files: dict[_FileKey, _OpenFile] = {}
        self._groups: OrderedDict[_GroupKey, _OpenGroup] = OrderedDict()

    def read(self, ref: ImageRef) -> ImageRef:
        """Return the ref with its bytes or a fault; unchanged if it is not in a Parquet file."""
        if ref.location.row_group is None:
            return ref
        started = time.perf_counter()
        try:
            data = self._bytes(ref.location)
        except ReadError as error:
            return replace(ref, fault=str(error), read_s=time.perf_counter() - started)
        return replace(ref, data=data, read_s=time.perf_counter() - started)

    def close(self) -> None:
        """Close all files."""
        self._groups.clear()
        self._close_unused()

    def _bytes(self, location: ImageLocation) -> bytes:
        # The planned size is part of the key: a file rewritten later is refused only for earlier rows.
        file_key: _FileKey = (location.path, location.file_bytes)
        file = self._files.get(file_key)
        if file is None:
            file = _OpenFile(location)
            self._files[file_key] = file
        if file.fault is not None:
            self._close_unused(file_key)
            raise ReadError(file.fault)
        check_row(file.parquet, location)
        assert location.index is not None
        key: _GroupKey = (*file_key, location.member, location.row_group)
        group = self._groups.get(key)
        if group is None or not group.is_ahead(location.index):
            group = _OpenGroup(file.parquet, location)
            self._groups[key] = group
        self._groups.move_to_end(key)
        if len(self._groups) > self._open_groups:
            self._groups.popitem(last=False)
        self._close_unused(file_key)
        return group.read(location.index)

    def _close_unused(self, wanted: "_FileKey | None" = None) -> None:
        used = {(path, file_bytes) for path, file_bytes, *_ in self._groups}
        for key in [key for key in self._files if key != wanted and key not in used]:
            self._files.pop(key).close()


_FileKey = tuple[Location, int | None]
_GroupKey = tuple[Location, int | None, str | None, int | None]


class _OpenFile:
    """A Parquet file, or the reason why it cannot be read."""

    def __init__(self, location: ImageLocation) -> None:
        self.parquet: Any = None
        self.fault: str | None = None
        try:
            self.parquet = open_rows(location)
        except ReadError as error:
            self.fault = str(error)

    def close(self) -> None:
        if self.parquet is not None:
            with contextlib.suppress(OSError):
                self.parquet.close()


class _OpenGroup:
    """A row group being read, or the reason why it cannot be read."""

    def __init__(self, parquet: Any, location: ImageLocation) -> None:
        assert location.member is not None and location.row_group is not None
        self._row_group = location.row_group
        self._next = 0
        self._fault: str | None = None
        self._last: bytes | None = None
        self._last_fault = ""
        self._num_rows = parquet.metadata.row_group(location.row_group).num_rows
        self._rows = _values(parquet, location.member, location.row_group)

    def is_ahead(self, index: int) -> bool:
        """Return whether a row comes next, later, or was the last one read."""
        return index >= self._next - 1

    def read(self, index: int) -> bytes:
        """Return the bytes of a row for which ``is_ahead`` is true.

        Raises:
            ReadError: the row has no bytes, or cannot be read.
        """
        if self._fault is not None:
            raise ReadError(self._fault)
        if index >= self._next:
            self._last = None  # in case advancing fails
            self._last = self._advance(index)
        if not self._last:
            raise ReadError(self._last_fault or "empty: 0 bytes")
        return self._last

    def _advance(self, index: int) -> bytes:
        import pyarrow as pa

        try:
            value = next(islice(self._rows, index - self._next, None), None)
        except (OSError, pa.ArrowException) as error:
            self._fault = f"row group {self._row_group} is damaged: {first_line(error)}"
            raise ReadError(self._fault) from None
        except ReadError as error:  # no such column, for any row
            self._fault = str(error)
            raise
        if value is None:
            self._fault = "the file is damaged: a row group is shorter than its metadata says"
            raise ReadError(self._fault)
        self._next = index + 1
        self._last_fault, data = "", b""
        try:
            data = bytes_of(value)
        except ReadError as error:
            self._last_fault = str(error)
        if self._next == self._num_rows:
            self._rows = iter(())  # release the last page
        return data


def _values(parquet: Any, member: str, row_group: int) -> Iterator[Any]:
    """Yield the cells of a column of a row group, decoding some 4 MB at a time.

    Raises:
        ReadError, OSError, ArrowException: the column, or a cell of it, cannot be read.
    """
    chunk = column_chunk(parquet, member, row_group)
    batch_rows = 1
    if chunk is not None:
        size = max(1, chunk.total_uncompressed_size)
        batch_rows = max(1, min(1024, _STEP_BYTES * chunk.num_values // size))
    for column in leaf_batches(parquet, member, row_group, batch_rows=batch_rows):
        yield from column
