"""Matching samples of a plan to those of the cache by key, and refusing repeated keys."""

import heapq
from collections.abc import Iterator

import polars as pl

from ...errors import DuplicateKeyError
from .existing import EXISTING_SAMPLE, ExistingCatalog
from .spill import Buckets, Scratch

_Repeat = tuple[int, str, str, str]  # seq of the second sample, key, both places


class RepeatedKeys:
    """Counts keys that are given twice, and keeps the first."""

    def __init__(self) -> None:
        self._num_keys = 0
        self._first: list[_Repeat] = []  # at most one

    def add(self, joined: pl.DataFrame) -> None:
        """Add the samples of a bucket of keys, joined with those of the cache.

        Args:
            joined: seq, key, source, place; row and owner (the source) of the cache's sample, or null.
        """
        found = [*self._of_plan(joined), *self._of_cache(joined)]
        self._first = heapq.nsmallest(1, [*self._first, *found])

    def refuse(self, *, are_prefixed: bool) -> None:
        """Refuse the plan if there are any.

        Raises:
            DuplicateKeyError: names the first of them and the remedy.
        """
        if not self._first:
            return
        _, key, first, second = self._first[0]
        shown = repr(key if len(key) <= 60 else key[:60] + "...")
        subject = (
            f"key {shown} is given twice"
            if self._num_keys == 1
            else f"{self._num_keys:,} keys are given twice, the first {shown}"
        )
        prefix = "" if are_prefixed else "--prefix-keys (prefixes each key with its file's name), "
        raise DuplicateKeyError(
            f"{subject}, at {first} and at {second}; keys must be unique in a cache: use {prefix}another "
            "--key-column or names of sources (NAME=PATH)"
        )

    def _of_plan(self, joined: pl.DataFrame) -> list[_Repeat]:
        twice = joined.filter(pl.col("key").is_duplicated()).sort("seq")
        seconds = twice.filter(~pl.col("key").is_first_distinct())
        if seconds.height == 0:
            return []
        self._num_keys += seconds["key"].n_unique()
        seq, key, place = seconds.select("seq", "key", "place").row(0)
        return [(seq, key, twice.filter(pl.col("key") == key)["place"][0], place)]

    def _of_cache(self, joined: pl.DataFrame) -> list[_Repeat]:
        """Return the first sample whose key is in the cache for another source."""
        is_other = pl.col("owner").ne_missing(pl.col("source"))
        taken = joined.filter(is_other & pl.col("row").is_not_null())
        if taken.height == 0:
            return []
        self._num_keys += taken["key"].n_unique()
        columns = ("seq", "key", "row", "owner", "place")
        seq, key, row, owner, place = taken.sort("seq").select(*columns).row(0)
        return [(seq, key, f"row {row} of the cache (from source {owner!r})", place)]


def find_existing(samples: Buckets, existing: ExistingCatalog, scratch: Scratch) -> Buckets:
    """Return the seq of each sample whose key is in the cache, by seq // bucket_rows."""
    found_seqs = Buckets(scratch, {"seq": pl.Int64()})
    if existing.cache is None:
        return found_seqs
    count = scratch.num_buckets(samples.num_rows + existing.num_samples)
    bucket = pl.col("key").hash(seed=0) % count
    theirs = Buckets(scratch, {"key": pl.String()})
    for frame in existing.parts("samples"):
        theirs.append(frame, bucket)
    ours = Buckets(scratch, {"seq": pl.Int64(), "key": pl.String()})
    for number in samples.numbers():
        ours.append(samples.collect(number), bucket)
    for number in ours.numbers():
        found = ours.collect(number).join(theirs.collect(number), on="key", how="semi")
        found_seqs.append(found, pl.col("seq") // scratch.bucket_rows)
    return found_seqs


def by_key(
    samples: Buckets, existing: ExistingCatalog, scratch: Scratch
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Yield (samples of the plan, samples of the cache) in buckets by the hash of their keys."""
    count = scratch.num_buckets(samples.num_rows + existing.num_samples)
    bucket = pl.col("key").hash(seed=0) % count
    theirs = Buckets(scratch, EXISTING_SAMPLE)
    for frame in existing.samples():
        theirs.append(frame, bucket)
    ours = Buckets(scratch, samples.schema)
    for number in samples.numbers():
        ours.append(samples.collect(number), bucket)
    for number in sorted({*ours.numbers(), *theirs.numbers()}):
        yield ours.collect(number), theirs.collect(number)
