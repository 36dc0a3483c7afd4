"""Tables larger than memory: frames kept in memory up to a limit, then spilled to scratch files.

The planner sorts and joins by buckets (a hash of the keys, a range of rows): each bucket fits in memory,
and the result does not depend on the number of buckets.
"""

import glob
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import polars as pl

BUCKET_ROWS = 2_000_000
"""Rows of a bucket: about 300 MB of captions."""

MEMORY_LIMIT_BYTES = 512 * 2**20
"""Memory of all buffers of one plan together, before they are spilled to disk."""


class Scratch:
    """A temporary folder, and the memory that its buffers share. A context manager."""

    def __init__(
        self,
        *,
        bucket_rows: int = BUCKET_ROWS,
        memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
        folder: Path | None = None,
    ) -> None:
        self.bucket_rows = bucket_rows
        self._limit = memory_limit_bytes
        self._parent = folder
        self._folder: Path | None = None
        self._num_bytes = 0
        self._num_files = 0
        self._buffers: list[SpillBuffer] = []

    def __enter__(self) -> "Scratch":
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def new_buffer(self) -> "SpillBuffer":
        """Return a new, empty buffer."""
        buffer = SpillBuffer(self)
        self._buffers.append(buffer)
        return buffer

    def num_buckets(self, num_rows: int) -> int:
        """Return the number of buckets for so many rows, at least 1."""
        return max(1, -(-num_rows // self.bucket_rows))

    def add_bytes(self, num_bytes: int) -> None:
        """Add to the bytes in memory; above the limit, spill all buffers to disk."""
        self._num_bytes += num_bytes
        if self._num_bytes > self._limit:
            for buffer in self._buffers:
                buffer.flush()
            self._num_bytes = 0

    def new_file(self) -> Path:
        """Return an unused path in the scratch folder."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="siglip2-cache-plan-", dir=self._parent))
        self._num_files += 1
        return self._folder / f"{self._num_files:08d}.arrow"


class SpillBuffer:
    """Frames of one schema in the order they were appended."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._files: list[Path] = []
        self._frames: list[pl.DataFrame] = []
        self.num_rows = 0

    def append(self, frame: pl.DataFrame) -> None:
        """Add a frame at the end."""
        if frame.height == 0:
            return
        self._frames.append(frame)
        self.num_rows += frame.height
        self._scratch.add_bytes(int(frame.estimated_size()))

    def flush(self) -> None:
        """Move what is in memory to a scratch file."""
        if self._frames:
            path = self._scratch.new_file()
            pl.concat(self._frames).write_ipc(path, compression="lz4")
            self._files.append(path)
            self._frames = []

    def frames(self) -> Iterator[pl.DataFrame]:
        """Yield the frames in order."""
        for path in self._files:
            yield pl.read_ipc(glob.escape(str(path)))  # which takes paths for patterns
        yield from list(self._frames)

    def collect(self, schema: pl.Schema) -> pl.DataFrame:
        """Return all rows as one frame, an empty one of the given schema if there are none."""
        frames = list(self.frames())
        return pl.concat(frames) if frames else pl.DataFrame(schema=schema)


class Buckets:
    """Buffers by number; an expression assigns each row of a frame to one of them."""

    def __init__(self, scratch: Scratch, schema: Mapping[str, pl.DataType]) -> None:
        self._scratch = scratch
        self.schema = pl.Schema(schema)
        self._buffers: dict[int, SpillBuffer] = {}

    def append(self, frame: pl.DataFrame, bucket: pl.Expr) -> None:
        """Add each row of a frame to the bucket that the expression returns for it."""
        frame = frame.select(*self.schema.names(), bucket.cast(pl.Int64).alias("_bucket"))
        if frame.height == 0:
            return
        parts = frame.partition_by("_bucket", maintain_order=True, include_key=False, as_dict=True)
        for (number,), part in parts.items():
            if number not in self._buffers:
                self._buffers[number] = self._scratch.new_buffer()
            self._buffers[number].append(part.cast(self.schema))

    def numbers(self) -> list[int]:
        """Return the numbers of the buckets that are not empty, ascending."""
        return sorted(self._buffers)

    @property
    def num_rows(self) -> int:
        """Rows of all buckets."""
        return sum(buffer.num_rows for buffer in self._buffers.values())

    def collect(self, number: int) -> pl.DataFrame:
        """Return one bucket whole."""
        buffer = self._buffers.get(number)
        return buffer.collect(self.schema) if buffer else pl.DataFrame(schema=self.schema)
