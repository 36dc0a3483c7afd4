"""Tables larger than memory: frames kept in memory up to a limit, then in scratch files.

The planner sorts and joins by buckets (a share of the keys, a range of rows): each bucket fits in
memory, and what comes out does not depend on how many there were.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import polars as pl

BUCKET_ROWS = 2_000_000
"""Rows of a bucket: about 300 MB of captions."""

MEMORY_LIMIT_BYTES = 512 * 2**20
"""What all spools of one plan may hold in memory together before they go to disk."""


class Scratch:
    """A temporary folder and the memory that its spools share. A context manager."""

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
        self._spools: list[Spool] = []

    def __enter__(self) -> "Scratch":
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def spool(self) -> "Spool":
        """Return a new, empty spool."""
        spool = Spool(self)
        self._spools.append(spool)
        return spool

    def num_buckets(self, num_rows: int) -> int:
        """Return how many buckets this many rows want, at least 1."""
        return max(1, -(-num_rows // self.bucket_rows))

    def account(self, num_bytes: int) -> None:
        """Add to the bytes in memory; above the limit everything goes to disk."""
        self._num_bytes += num_bytes
        if self._num_bytes > self._limit:
            for spool in self._spools:
                spool.flush()
            self._num_bytes = 0

    def new_file(self) -> Path:
        """Return a path in the scratch folder that nothing has used."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="siglip2-cache-plan-", dir=self._parent))
        self._num_files += 1
        return self._folder / f"{self._num_files:08d}.arrow"


class Spool:
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
        self._scratch.account(int(frame.estimated_size()))

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
            yield pl.read_ipc(path)
        yield from list(self._frames)

    def collect(self, schema: pl.Schema) -> pl.DataFrame:
        """Return everything as one frame; an empty one of the schema given if nothing came."""
        frames = list(self.frames())
        return pl.concat(frames) if frames else pl.DataFrame(schema=schema)


class Buckets:
    """Spools by number; a frame is split over them by a column of bucket numbers."""

    def __init__(self, scratch: Scratch, schema: Mapping[str, pl.DataType]) -> None:
        self._scratch = scratch
        self.schema = pl.Schema(schema)
        self._spools: dict[int, Spool] = {}

    def append(self, frame: pl.DataFrame, bucket: pl.Expr) -> None:
        """Split a frame: each row goes to the bucket that the expression gives it."""
        frame = frame.select(*self.schema.names(), bucket.cast(pl.Int64).alias("_bucket"))
        if frame.height == 0:
            return
        parts = frame.partition_by("_bucket", maintain_order=True, include_key=False, as_dict=True)
        for (number,), part in parts.items():
            if number not in self._spools:
                self._spools[number] = self._scratch.spool()
            self._spools[number].append(part.cast(self.schema))

    def numbers(self) -> list[int]:
        """Return the numbers of the buckets that hold something, ascending."""
        return sorted(self._spools)

    @property
    def num_rows(self) -> int:
        """Rows of all buckets."""
        return sum(spool.num_rows for spool in self._spools.values())

    def collect(self, number: int) -> pl.DataFrame:
        """Return one bucket whole."""
        spool = self._spools.get(number)
        return spool.collect(self.schema) if spool else pl.DataFrame(schema=self.schema)
