"""Rows of one picture made one sample: a table with a row for each caption names each picture several times.

The picture decides, not the key: a row may have a number of its own (an annotation's). The sample takes
the key of its picture's first row, the first label among them, and the captions of all in their order.
Rows of a picture need not follow each other, and memory is bounded: pictures are compared by buckets.

What a cache holds stays: a row whose key is a sample there goes on as that sample, and the other rows of
its picture belong to the first such row.
"""

from dataclasses import dataclass
from functools import lru_cache

import polars as pl

from .spill import Buckets, Scratch, Spool

KINDS = {"table", "parquet", "datasets"}
"""Kinds of source whose rows name pictures. In all others a picture is met once."""

_SHOWN = 3
_PICTURE = ["source", "path"]
_ROW = {
    "seq": pl.Int64(),
    "source": pl.String(),
    "path": pl.String(),
    "key": pl.String(),
    "label": pl.String(),
    "place": pl.String(),
    "stands": pl.Boolean(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Folded:
    """Samples and captions, each picture once."""

    samples: Buckets
    """By seq; those of later rows of a picture are gone."""

    captions: Spool
    """By seq, each numbered by its place (``cap``)."""

    num_rows: int
    """Rows that became part of another row's sample."""

    num_pictures: int
    """Samples that they became part of."""

    problems: pl.DataFrame
    """Source, place, key and reason of rows with another label than their picture's: of the first few,
    and how many more there are."""


def fold_rows(
    samples: Buckets, captions: Spool, sources: set[str], standing: Buckets, scratch: Scratch
) -> Folded | None:
    """Return samples and captions with each picture once; None where each is met once already.

    Args:
        samples: by seq // bucket_rows.
        captions: in the order of their samples.
        sources: names of the sources that may name a picture twice.
        standing: seq of the samples whose key the cache has, by seq // bucket_rows.
        scratch: where buckets go.
    """
    bucket_rows = scratch.bucket_rows
    rows = _by_picture(samples, sources, standing, scratch)
    moved = Buckets(scratch, {"seq": pl.Int64(), "first": pl.Int64()})
    labels = Buckets(scratch, {"seq": pl.Int64(), "label": pl.String()})
    others = _OtherLabels()
    num_rows = num_pictures = 0
    for number in rows.numbers():
        firsts = _find_firsts(rows.collect(number))
        repeated = firsts.filter(pl.len().over("first") > 1)
        later = repeated.filter(pl.col("seq") != pl.col("first"))
        num_rows += later.height
        num_pictures += repeated.height - later.height
        moved.append(later, pl.col("seq") // bucket_rows)
        taken = repeated.filter(pl.col("seq") == pl.col("first")).select("seq", label="taken")
        labels.append(taken, pl.col("seq") // bucket_rows)
        others.add(later)
    if not num_rows:
        return None
    return Folded(
        samples=_without(samples, moved, labels, scratch),
        captions=_reorder(captions, moved, scratch),
        num_rows=num_rows,
        num_pictures=num_pictures,
        problems=others.as_problems(),
    )


def _by_picture(
    samples: Buckets, sources: set[str], standing: Buckets, scratch: Scratch
) -> Buckets:
    """Return the rows that name a whole file, by that file."""
    count = scratch.num_buckets(samples.num_rows)
    rows = Buckets(scratch, _ROW)
    is_whole = pl.col("offset").is_null() & pl.col("row_group").is_null()
    for number in samples.numbers():
        found = samples.collect(number).filter(pl.col("source").is_in(list(sources)) & is_whole)
        stands = standing.collect(number).with_columns(stands=pl.lit(True))
        found = found.join(stands, on="seq", how="left")
        rows.append(found, pl.struct(_PICTURE).hash(seed=0) % count)
    return rows


def _find_firsts(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows with the seq of the row whose sample each is part of, and its label."""
    first = pl.when(pl.col("stands")).then(pl.col("seq").min().over([*_PICTURE, "key"]))
    standing = pl.col("seq").filter(pl.col("stands")).min().over(_PICTURE)
    any_row = pl.col("seq").min().over(_PICTURE)
    rows = rows.sort("seq").with_columns(first=first.otherwise(pl.coalesce(standing, any_row)))
    return rows.with_columns(taken=pl.col("label").drop_nulls().first().over("first"))


class _OtherLabels:
    """Rows whose picture has another label from an earlier row: counted, the first few kept."""

    def __init__(self) -> None:
        self._num_rows = 0
        self._first: pl.DataFrame | None = None

    def add(self, later: pl.DataFrame) -> None:
        """Take those among rows that became part of another row's sample."""
        found = later.filter(pl.col("label").ne(pl.col("taken")))
        self._num_rows += found.height
        both = found if self._first is None else pl.concat([self._first, found])
        self._first = both.sort("seq").head(_SHOWN)

    def as_problems(self) -> pl.DataFrame:
        """Return a line for each of the first few, and one for the rest."""
        assert self._first is not None
        reason = pl.format(
            "its picture has the label '{}' already; '{}' is unused", "taken", "label"
        )
        columns = ("source", "place", "key")
        lines = self._first.select(*columns, reason=reason)
        num_more = self._num_rows - lines.height
        more = pl.lit(f"{num_more:,} more rows name a picture that has another label already")
        return pl.concat([lines, self._first.head(int(num_more > 0)).select(*columns, reason=more)])


def _without(samples: Buckets, moved: Buckets, labels: Buckets, scratch: Scratch) -> Buckets:
    """Return the samples without those that moved, and with the labels of the others."""
    kept = Buckets(scratch, samples.schema)
    for number in samples.numbers():
        frame = samples.collect(number).join(moved.collect(number), on="seq", how="anti")
        found = labels.collect(number).rename({"label": "taken"})
        frame = frame.join(found, on="seq", how="left").sort("seq")
        frame = frame.with_columns(label=pl.coalesce("label", "taken"))
        kept.append(frame, pl.col("seq") // scratch.bucket_rows)
    return kept


def _reorder(captions: Spool, moved: Buckets, scratch: Scratch) -> Spool:
    """Return the captions with those of a sample together, each once, numbered anew."""
    bucket_rows = scratch.bucket_rows
    schema = {"cap": pl.Int64(), "seq": pl.Int64(), "text": pl.String(), "lang": pl.String()}
    by_sample = Buckets(scratch, schema)
    moves = lru_cache(maxsize=1)(moved.collect)  # frames follow each other in a bucket
    for frame in captions.frames():
        parts = frame.with_columns(_at=pl.col("seq") // bucket_rows).partition_by(
            "_at", maintain_order=True, as_dict=True, include_key=False
        )
        for (number,), part in parts.items():
            found = part.join(moves(number), on="seq", how="left")
            found = found.with_columns(seq=pl.coalesce("first", "seq"))
            by_sample.append(found, pl.col("seq") // bucket_rows)
    ordered, num_captions = scratch.spool(), 0
    for number in by_sample.numbers():
        frame = by_sample.collect(number).sort("seq", "cap")
        frame = frame.unique(["seq", "text", "lang"], keep="first", maintain_order=True)
        numbers = pl.int_range(pl.len(), dtype=pl.Int64) + num_captions
        ordered.append(frame.with_columns(cap=numbers))
        num_captions += frame.height
    return ordered
