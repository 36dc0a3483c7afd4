"""Merging rows of one image into one sample: a table with a row for each caption repeats its images.

The image decides, not the key, because each row may have its own key, such as an annotation's number. The
sample takes the key of the image's first row, the first label, and all captions in order. Rows of one image
need not be adjacent, and memory is bounded: images are compared in buckets.

Samples of the cache stay: a row whose key is in the cache remains that sample, and the other rows of its
image belong to the first such row.
"""

from dataclasses import dataclass
from functools import lru_cache

import polars as pl

from .spill import Buckets, Scratch, SpillBuffer
from .text_rows import CAPTION

KINDS = {"table", "parquet", "datasets"}
"""Kinds of source with rows that name images. In all others, each image occurs once."""

_SHOWN = 3
_IMAGE = ["source", "image_id"]
_ROW = {
    "seq": pl.Int64(),
    "source": pl.String(),
    "image_id": pl.String(),
    "key": pl.String(),
    "label": pl.String(),
    "place": pl.String(),
    "is_existing": pl.Boolean(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedRows:
    """Samples and captions, each image once."""

    samples: Buckets
    """By seq, without those of later rows of an image."""

    captions: SpillBuffer
    """By seq, numbered by position (``cap``)."""

    num_rows: int
    """Rows merged into another row's sample."""

    num_images: int
    """Samples that they were merged into."""

    problems: pl.DataFrame
    """Source, place, key and reason of rows whose label differs from their image's: the first few, and the
    number of the others."""


def merge_rows(
    samples: Buckets, captions: SpillBuffer, sources: set[str], existing: Buckets, scratch: Scratch
) -> MergedRows | None:
    """Return samples and captions with each image once; None if they are so already.

    Args:
        samples: by seq // bucket_rows.
        captions: in the order of their samples.
        sources: names of the sources that may repeat an image.
        existing: seq of the samples whose key is in the cache, by seq // bucket_rows.
        scratch: temporary space of the buckets.
    """
    bucket_rows = scratch.bucket_rows
    rows = _by_image(samples, sources, existing, scratch)
    moved = Buckets(scratch, {"seq": pl.Int64(), "first": pl.Int64()})
    labels = Buckets(scratch, {"seq": pl.Int64(), "label": pl.String()})
    others = _OtherLabels()
    num_rows = num_images = 0
    for number in rows.numbers():
        firsts = _find_firsts(rows.collect(number))
        repeated = firsts.filter(pl.len().over("first") > 1)
        later = repeated.filter(pl.col("seq") != pl.col("first"))
        num_rows += later.height
        num_images += repeated.height - later.height
        moved.append(later, pl.col("seq") // bucket_rows)
        taken = repeated.filter(pl.col("seq") == pl.col("first")).select("seq", label="taken")
        labels.append(taken, pl.col("seq") // bucket_rows)
        others.add(later)
    if not num_rows:
        return None
    return MergedRows(
        samples=_without(samples, moved, labels, scratch),
        captions=_reorder(captions, moved, scratch),
        num_rows=num_rows,
        num_images=num_images,
        problems=others.as_problems(),
    )


def _by_image(samples: Buckets, sources: set[str], existing: Buckets, scratch: Scratch) -> Buckets:
    """Return the rows whose image has an id, in buckets by that id; a whole file has its path."""
    count = scratch.num_buckets(samples.num_rows)
    rows = Buckets(scratch, _ROW)
    is_whole = pl.col("offset").is_null() & pl.col("row_group").is_null()
    image_id = pl.coalesce("image_id", pl.when(is_whole).then("path"))
    for number in samples.numbers():
        found = samples.collect(number).filter(pl.col("source").is_in(list(sources)))
        found = found.with_columns(image_id=image_id).filter(pl.col("image_id").is_not_null())
        marked = existing.collect(number).with_columns(is_existing=pl.lit(True))
        found = found.join(marked, on="seq", how="left")
        rows.append(found, pl.struct(_IMAGE).hash(seed=0) % count)
    return rows


def _find_firsts(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows with the seq of the row that each is merged into, and that row's label."""
    first = pl.when(pl.col("is_existing")).then(pl.col("seq").min().over([*_IMAGE, "key"]))
    existing = pl.col("seq").filter(pl.col("is_existing")).min().over(_IMAGE)
    any_row = pl.col("seq").min().over(_IMAGE)
    rows = rows.sort("seq").with_columns(first=first.otherwise(pl.coalesce(existing, any_row)))
    return rows.with_columns(taken=pl.col("label").drop_nulls().first().over("first"))


class _OtherLabels:
    """Counts rows whose image has a different label from an earlier row, and keeps the first few."""

    def __init__(self) -> None:
        self._num_rows = 0
        self._first: pl.DataFrame | None = None

    def add(self, later: pl.DataFrame) -> None:
        """Add those among rows that are merged into another row's sample."""
        found = later.filter(pl.col("label").ne(pl.col("taken")))
        self._num_rows += found.height
        both = found if self._first is None else pl.concat([self._first, found])
        self._first = both.sort("seq").head(_SHOWN)

    def as_problems(self) -> pl.DataFrame:
        """Return a row for each of the first few, and one for the rest."""
        assert self._first is not None
        reason = pl.format("its image already has the label '{}'; '{}' is unused", "taken", "label")
        columns = ("source", "place", "key")
        lines = self._first.select(*columns, reason=reason)
        num_more = self._num_rows - lines.height
        more = pl.lit(f"{num_more:,} more rows have a label that differs from their image's")
        return pl.concat([lines, self._first.head(int(num_more > 0)).select(*columns, reason=more)])


def _without(samples: Buckets, moved: Buckets, labels: Buckets, scratch: Scratch) -> Buckets:
    """Return the samples without the merged ones, with the labels of the others."""
    kept = Buckets(scratch, samples.schema)
    for number in samples.numbers():
        frame = samples.collect(number).join(moved.collect(number), on="seq", how="anti")
        found = labels.collect(number).rename({"label": "taken"})
        frame = frame.join(found, on="seq", how="left").sort("seq")
        frame = frame.with_columns(label=pl.coalesce("label", "taken"))
        kept.append(frame, pl.col("seq") // scratch.bucket_rows)
    return kept


def _reorder(captions: SpillBuffer, moved: Buckets, scratch: Scratch) -> SpillBuffer:
    """Return the captions grouped by sample, without repetitions, and renumbered."""
    bucket_rows = scratch.bucket_rows
    by_sample = Buckets(scratch, CAPTION)
    moves = lru_cache(maxsize=1)(moved.collect)  # frames follow each other in a bucket
    for frame in captions.frames():
        parts = frame.with_columns(_at=pl.col("seq") // bucket_rows).partition_by(
            "_at", maintain_order=True, as_dict=True, include_key=False
        )
        for (number,), part in parts.items():
            found = part.join(moves(number), on="seq", how="left")
            found = found.with_columns(seq=pl.coalesce("first", "seq"))
            by_sample.append(found, pl.col("seq") // bucket_rows)
    ordered, num_captions = scratch.new_buffer(), 0
    for number in by_sample.numbers():
        frame = by_sample.collect(number).sort("seq", "cap")
        frame = frame.unique(["seq", "text", "lang", "kind"], keep="first", maintain_order=True)
        numbers = pl.int_range(pl.len(), dtype=pl.Int64) + num_captions
        ordered.append(frame.with_columns(cap=numbers))
        num_captions += frame.height
    return ordered
