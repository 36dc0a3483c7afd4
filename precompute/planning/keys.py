"""Keys: which sample of a plan is which of the cache, and two of one key refused."""

import heapq
from collections.abc import Iterator

import polars as pl

from ...errors import DuplicateKeyError
from .existing import KNOWN_SAMPLE, Known
from .spill import Buckets, Scratch

_Twice = tuple[int, str, str, str]  # seq of the second, key, both places


class RepeatedKeys:
    """Counts keys that are given twice; remembers the first."""

    def __init__(self) -> None:
        self._num_keys = 0
        self._first: list[_Twice] = []  # the smallest, alone

    def add(self, joined: pl.DataFrame) -> None:
        """Take the samples of a bucket of keys, joined with what the cache has of these.

        Args:
            joined: seq, key, source, place; row and owner (its source) of a sample of the cache, or null.
        """
        found = [*self._of_plan(joined), *self._of_cache(joined)]
        self._first = heapq.nsmallest(1, [*self._first, *found])

    def refuse(self, *, are_prefixed: bool) -> None:
        """Refuse the plan where there are any.

        Raises:
            DuplicateKeyError: says how many, the first of them, and what to do.
        """
        if not self._first:
            return
        _, key, first, second = self._first[0]
        shown = repr(key if len(key) <= 60 else key[:60] + "...")
        many = f"{self._num_keys:,} keys are given twice, first {shown}"
        told = f"key {shown} is given twice" if self._num_keys == 1 else many
        prefix = "" if are_prefixed else "--prefix-keys (its file's name before each), "
        raise DuplicateKeyError(
            f"{told}, at {first} and at {second}; keys must be unique in a cache: use {prefix}another "
            "--key-column or names of sources (NAME=PATH)"
        )

    def _of_plan(self, joined: pl.DataFrame) -> list[_Twice]:
        twice = joined.filter(pl.col("key").is_duplicated()).sort("seq")
        seconds = twice.filter(~pl.col("key").is_first_distinct())
        if seconds.height == 0:
            return []
        self._num_keys += seconds["key"].n_unique()
        seq, key, place = seconds.select("seq", "key", "place").row(0)
        return [(seq, key, twice.filter(pl.col("key") == key)["place"][0], place)]

    def _of_cache(self, joined: pl.DataFrame) -> list[_Twice]:
        """Return the first sample whose key the cache has from another source."""
        is_other = pl.col("owner").ne_missing(pl.col("source"))
        taken = joined.filter(is_other & pl.col("row").is_not_null())
        if taken.height == 0:
            return []
        self._num_keys += taken["key"].n_unique()
        columns = ("seq", "key", "row", "owner", "place")
        seq, key, row, owner, place = taken.sort("seq").select(*columns).row(0)
        return [(seq, key, f"row {row} of the cache (from source {owner!r})", place)]


def find_standing(samples: Buckets, known: Known, scratch: Scratch) -> Buckets:
    """Return the seq of each sample whose key the cache has, by seq // bucket_rows."""
    standing = Buckets(scratch, {"seq": pl.Int64()})
    if known.cache is None:
        return standing
    count = scratch.num_buckets(samples.num_rows + known.num_samples)
    bucket = pl.col("key").hash(seed=0) % count
    theirs = Buckets(scratch, {"key": pl.String()})
    for frame in known.parts("samples"):
        theirs.append(frame, bucket)
    ours = Buckets(scratch, {"seq": pl.Int64(), "key": pl.String()})
    for number in samples.numbers():
        ours.append(samples.collect(number), bucket)
    for number in ours.numbers():
        found = ours.collect(number).join(theirs.collect(number), on="key", how="semi")
        standing.append(found, pl.col("seq") // scratch.bucket_rows)
    return standing


def by_key(
    samples: Buckets, known: Known, scratch: Scratch
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Yield samples of the plan and of the cache, by the hash of their keys."""
    count = scratch.num_buckets(samples.num_rows + known.num_samples)
    bucket = pl.col("key").hash(seed=0) % count
    theirs = Buckets(scratch, KNOWN_SAMPLE)
    for frame in known.samples():
        theirs.append(frame, bucket)
    ours = Buckets(scratch, samples.schema)
    for number in samples.numbers():
        ours.append(samples.collect(number), bucket)
    for number in sorted({*ours.numbers(), *theirs.numbers()}):
        yield ours.collect(number), theirs.collect(number)
