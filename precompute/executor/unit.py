"""Units: which rows to embed, embedding them batch by batch, and committing them.

A unit is made in memory and committed as a whole, so wherever it is made, the result is one record or
nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ...errors import DamagedCacheError
from ...images.catalog_refs import image_refs
from ...images.image import DecodedBatch, DecodedImage, ImageRef
from ...store.cache import Cache
from ...store.format import layout
from ...store.format.catalog import IMAGES_SCHEMA, encode_table
from ...store.format.layout import Modality
from ...store.format.manifest import Unit
from ...store.format.patch_encoding import encode_patches
from ...store.format.row_encoding import RowCodec
from ...store.format.shard import encode_shard
from ...store.format.transaction import Transaction
from ...store.format.unit_records import UnitRecord
from ...store.targets.distortion import refuse_distorted_rows, squared_error
from ..teacher.embedder import is_unit
from .row_targets import RowTargets, Wait, split_patches

_IMAGES = {"row": pl.Int64, "width": pl.Int32, "height": pl.Int32, "sha256": pl.Binary}


UnitId = tuple[Modality, int]
"""Modality and number of a unit."""


@dataclass(frozen=True, slots=True)
class Job:
    """A unit to make: for the first time, or again to retry its rejected rows."""

    unit: Unit
    attempt: int
    batch_size: int
    """Samples whose views, or texts, make up one batch."""

    previous: UnitRecord | None = None
    """The commit whose rejected rows are retried."""

    at_stake: UnitRecord | None = None
    """The commit whose rows are all made again although its targets are intact; it stays unless this attempt
    has each of its rows."""

    def __str__(self) -> str:
        unit = self.unit
        return f"{unit.modality} unit {unit.number} (rows {unit.rows.first}..{unit.rows.end - 1})"

    @property
    def id(self) -> UnitId:
        """Modality and number of the unit."""
        return self.unit.modality, self.unit.number

    @property
    def num_wanted(self) -> int:
        """Rows to embed."""
        return self.unit.rows.count if self.previous is None else len(self.previous.rejected)


@dataclass(slots=True)
class UnitRows:
    """A unit's rows as they fill up."""

    job: Job
    codec: RowCodec
    stored: NDArray[Any]
    """(n, views, stored_dim) or (n, stored_dim); without a target until embedded."""

    images: list[DecodedImage | None]
    """The decoder's result for each image; empty for texts."""

    rejected: dict[int, str]
    wanted: NDArray[np.bool_]
    """(n,) rows to embed: all, or those of the previous attempt that were rejected."""

    forward_size: int = 0
    """Smallest forward pass used."""

    num_left: int = 0
    """Batches that are not embedded yet."""

    patches: NDArray[np.int8] | None = None
    """(n, views, stored bytes) patch targets as they are stored; None for texts, or without any."""

    num_cells: int = 0
    """Cells that a view has room for."""

    squared_error: float = 0.0
    """Summed squared norms of what encoding changed."""

    num_encoded: int = 0
    """Vectors in that sum."""

    @property
    def lost(self) -> list[int]:
        """Rows with an intact target that a commit of this attempt would lose, ascending."""
        before = self.job.at_stake
        return [] if before is None else sorted(self.rejected.keys() - before.rejected.keys())

    @property
    def embed_dim(self) -> int:
        """Width of an embedding."""
        return self.stored.shape[-1] - self.codec.encoding.num_extra

    def put(self, positions: NDArray[np.int64], values: NDArray[np.float16]) -> None:
        """Store embeddings (n, [views,] embed_dim) at some positions of the unit."""
        stored = self.codec.encode(values)
        self.stored[positions] = stored
        if self.codec.rotation is not None:
            self.squared_error += squared_error(values, self.codec.decode(stored))
            self.num_encoded += int(np.prod(values.shape[:-1]))

    def put_patches(
        self,
        positions: NDArray[np.int64],
        values: NDArray[np.float16],
        grids: NDArray[np.float16],
    ) -> None:
        """Store cells (n, views, C, P) with their grids (n, views, 2) at some positions of the unit."""
        assert self.patches is not None
        stored = encode_patches(
            values.reshape(-1, *values.shape[2:]), grids.reshape(-1, 2).astype(np.int64)
        )
        self.patches[positions] = stored.reshape(*values.shape[:2], -1)


@dataclass(slots=True, kw_only=True)
class StageTimes:
    """Seconds spent in each stage. Reading and decoding are summed over the worker processes."""

    read_s: float = 0.0
    decode_s: float = 0.0
    forward_s: float = 0.0
    write_s: float = 0.0
    wait_s: float = field(default=0.0)
    """Time in which the teacher waited for pixels."""

    def __add__(self, other: "StageTimes") -> "StageTimes":
        return StageTimes(
            read_s=self.read_s + other.read_s,
            decode_s=self.decode_s + other.decode_s,
            forward_s=self.forward_s + other.forward_s,
            write_s=self.write_s + other.write_s,
            wait_s=self.wait_s + other.wait_s,
        )


def unit_images(cache: Cache, unit: Unit) -> list[ImageRef]:
    """Return where the images of a unit are and which views to embed, in row order."""
    refs = image_refs(cache, unit.rows)
    _refuse_other_rows(cache, unit, [ref.row for ref in refs])
    return refs


def unit_texts(cache: Cache, unit: Unit) -> list[str]:
    """Return the texts of a unit in row order."""
    rows = pl.col("text_row").is_between(unit.rows.first, unit.rows.end - 1)
    texts = cache.table("texts", unit.rows).filter(rows).sort("text_row").collect()
    _refuse_other_rows(cache, unit, texts["text_row"].to_list())
    return texts["text"].to_list()


def _refuse_other_rows(cache: Cache, unit: Unit, rows: list[int]) -> None:
    """Refuse a catalog that lacks rows of a unit: every later target would shift by one.

    Raises:
        DamagedCacheError: the rows are not those that were planned.
    """
    if rows != list(_numbers(unit)):
        raise DamagedCacheError(
            f"the catalog of {cache.root} does not hold the rows of {unit.modality} unit "
            f"{unit.number} ({unit.rows.first}..{unit.rows.end - 1}); siglip2-cache verify names "
            "the damaged file"
        )


def open_rows(cache: Cache, teacher: str, job: Job) -> UnitRows:
    """Return the rows of a unit before embedding: empty, or for a retry those of the last attempt."""
    unit = job.unit
    array, codec = cache.array_layout(unit.modality, teacher), cache.codec(teacher)
    count = unit.rows.count
    stored = codec.encoding.empty_rows((count, *array.row_shape))
    wanted = np.ones(count, np.bool_)
    images: list[DecodedImage | None] = [None] * count if unit.modality == "image" else []
    forward_size = 0
    if job.previous is not None:
        # Read, not mapped: a map would keep the old shard on disk after the new one replaces it.
        # As stored: encoding what was decoded could change it.
        cache.targets(unit.modality, teacher).read_stored(unit.number, 0, stored)
        wanted[:] = [row in job.previous.rejected for row in _numbers(unit)]
        forward_size = job.previous.batch_size
        if images:
            images[:] = _previous_images(cache, teacher, unit)
    num_left = sum(1 for _ in wanted_batches(wanted, job.batch_size))
    rows = UnitRows(job, codec, stored, images, {}, wanted, forward_size, num_left)
    settings = cache.teacher(teacher).patches
    if images and settings is not None:
        patches = cache.manifest.patch_layout(settings)
        rows.patches = patches.encoding.empty_rows((count, *patches.row_shape))
        rows.num_cells = settings.num_cells
        if job.previous is not None:
            cache.patch_targets(teacher).read_stored(unit.number, 0, rows.patches)
    return rows


def wanted_batches(wanted: NDArray[np.bool_], size: int) -> Iterator[slice]:
    """Yield the batches of a unit that hold a wanted row.

    A batch always has the same rows, so that a retried row has the same neighbours: rounding may depend
    on the position in a batch.
    """
    for first in range(0, len(wanted), size):
        if wanted[first : first + size].any():
            yield slice(first, min(first + size, len(wanted)))


def image_batches(
    cache: Cache, teacher: str, jobs: Iterable[Job]
) -> Iterator[tuple[tuple[UnitRows, slice], Sequence[ImageRef]]]:
    """Yield ((rows of the unit, which of them), images) for the decoder, unit after unit."""
    for job in jobs:
        rows = open_rows(cache, teacher, job)
        refs = unit_images(cache, job.unit)
        for where in wanted_batches(rows.wanted, job.batch_size):
            yield (rows, where), refs[where]


def fill_images(batch: DecodedBatch, targets: RowTargets) -> Callable[[], None]:
    """Start the targets of a decoded batch; return a function that waits and fills its rows."""
    rows, where = batch.tag
    images = list(batch.images)
    wait: Wait | None = None
    if any(image.reason is None for image in images):
        wait = targets.start_images(batch)
    size, _ = targets.batch_sizes

    def finish() -> None:
        found = wait() if wait else None
        good_B = np.array([image.reason is None for image in images]) & rows.wanted[where]
        if found is not None:
            embeddings = found[..., : rows.embed_dim]
            good_B &= is_unit(embeddings).all(axis=1)
            if rows.patches is not None:
                cells, grids = split_patches(found[..., rows.embed_dim :], rows.num_cells)
                good_B &= np.isfinite(cells).all(axis=(1, 2, 3))
                rows.put_patches(where.start + np.flatnonzero(good_B), cells[good_B], grids[good_B])
            rows.put(where.start + np.flatnonzero(good_B), embeddings[good_B])
        for i in np.flatnonzero(rows.wanted[where]).tolist():
            position, image = where.start + i, images[i]
            rows.images[position] = image
            if not good_B[i]:
                row = rows.job.unit.rows.first + position
                rows.rejected[row] = image.reason or targets.why_missing("image", row)
        _note_batch(rows, size)

    return finish


def fill_texts(
    rows: UnitRows, where: slice, texts: Sequence[str], targets: RowTargets
) -> Callable[[], None]:
    """Start the targets of some texts of a unit; return a function that waits and fills its rows."""
    first_row = rows.job.unit.rows.first + where.start
    wait = targets.start_texts(texts[where], first_row)
    _, size = targets.batch_sizes

    def finish() -> None:
        found = wait()
        is_good = is_unit(found)
        wanted = rows.wanted[where]
        rows.put(where.start + np.flatnonzero(wanted & is_good), found[wanted & is_good])
        for i in np.flatnonzero(wanted & ~is_good):
            row = first_row + int(i)
            rows.rejected[row] = targets.why_missing("text", row)
        _note_batch(rows, size)

    return finish


def commit_unit(
    cache: Cache, teacher: str, rows: UnitRows, provenance: Mapping[str, Any], *, budget: float
) -> bool:
    """Write and publish a finished unit; return False if the last commit stays.

    It stays if another process had published this attempt, if a retry changed nothing, or if rows would be
    lost.

    Raises:
        BuildError: encoding its rows changes the soft targets by more than the budget.
    """
    job, unit = rows.job, rows.job.unit
    if rows.lost:
        return False
    refuse_distorted_rows(
        cache.teacher(teacher), str(job), rows.squared_error, rows.num_encoded, budget
    )
    previous = job.previous
    if previous is not None and dict(previous.rejected) == rows.rejected:
        return False  # the retry changed nothing: keep the last attempt
    array = cache.array_layout(unit.modality, teacher)
    record = layout.unit_record(teacher, unit.modality, unit.number, job.attempt)
    transaction = Transaction(cache.files, record)
    transaction.add(
        layout.shard(teacher, unit.modality, unit.number), encode_shard(array, rows.stored)
    )
    if unit.modality == "image":
        data = encode_table(_images_frame(rows), IMAGES_SCHEMA)
        transaction.add(layout.images_part(teacher, unit.number), data)
    if rows.patches is not None:
        settings = cache.teacher(teacher).patches
        assert settings is not None
        shard = encode_shard(cache.manifest.patch_layout(settings), rows.patches)
        transaction.add(layout.shard(teacher, "patch", unit.number), shard)
    return transaction.commit(
        {
            "modality": unit.modality,
            "unit": unit.number,
            "attempt": job.attempt,
            "first_row": unit.rows.first,
            "num_rows": unit.rows.count,
            "num_rejected": len(rows.rejected),
            "rejected": [
                {"row": row, "reason": reason} for row, reason in sorted(rows.rejected.items())
            ],
            "batch_size": rows.forward_size,
            "provenance": dict(provenance),
        }
    )


def _note_batch(rows: UnitRows, forward_size: int) -> None:
    rows.forward_size = min(rows.forward_size or forward_size, forward_size)
    rows.num_left -= 1


def _numbers(unit: Unit) -> range:
    return range(unit.rows.first, unit.rows.end)


def _previous_images(cache: Cache, teacher: str, unit: Unit) -> list[DecodedImage | None]:
    frame = cache.seen(teacher, unit.number).select("width", "height", "sha256")
    return [
        DecodedImage(width=width, height=height, sha256=digest) if width is not None else None
        for width, height, digest in frame.iter_rows()
    ]


def _images_frame(rows: UnitRows) -> pl.DataFrame:
    lines = [
        (row, None, None, None)
        if image is None or image.reason is not None or row in rows.rejected
        else (row, image.width, image.height, image.sha256)
        for row, image in zip(_numbers(rows.job.unit), rows.images, strict=True)
    ]
    return pl.DataFrame(lines, schema=_IMAGES, orient="row")
