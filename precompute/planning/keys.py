"""Matching samples of a plan to those of the cache by key, and refusing repeated keys."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from posixpath import splitext

import polars as pl

from ...errors import DuplicateKeyError
from ..sources import Source
from ..sources.key_rules import PREFIXED
from .existing import EXISTING_SAMPLE, ExistingCatalog
from .spill import Buckets, Scratch

_WITHOUT_COLUMN = {
    "table": "paths",
    "parquet": "FILE/ROW",
    "datasets": "row numbers",
}
"""Keys of a kind of source without a key column."""


@dataclass(frozen=True, slots=True)
class _Owner:
    """A sample that has a key."""

    place: str
    source: str
    path: str


@dataclass(frozen=True, slots=True)
class _Repeat:
    """A key that two samples have."""

    seq: int
    """Of the second sample."""

    key: str
    first: _Owner
    second: _Owner


class RepeatedKeys:
    """Counts keys that are given twice, and keeps the first."""

    def __init__(self) -> None:
        self._num_keys = 0
        self._first: _Repeat | None = None

    def add(self, joined: pl.DataFrame) -> None:
        """Add the samples of a bucket of keys, joined with those of the cache.

        Args:
            joined: seq, key, source, path, place; row, owner (the source) and old_path of the cache's
                sample, or null.
        """
        for found in (self._of_plan(joined), self._of_cache(joined)):
            if found is not None and (self._first is None or found.seq < self._first.seq):
                self._first = found

    def refuse(self, sources: Mapping[str, Source], recorded: Collection[str]) -> None:
        """Refuse the plan if there are any.

        Args:
            sources: those of the plan, by name.
            recorded: names of the sources that the cache has.

        Raises:
            DuplicateKeyError: names the first of them and the remedy.
        """
        repeat = self._first
        if repeat is None:
            return
        key = repeat.key
        shown = repr(key if len(key) <= 60 else key[:60] + "...")
        subject = (
            f"key {shown} is given twice"
            if self._num_keys == 1
            else f"{self._num_keys:,} keys are given twice, the first {shown}"
        )
        raise DuplicateKeyError(
            f"{subject}, at {repeat.first.place} and at {repeat.second.place}; keys must be unique in a "
            f"cache{_remedy(repeat, sources, recorded)}"
        )

    def _of_plan(self, joined: pl.DataFrame) -> _Repeat | None:
        twice = joined.filter(pl.col("key").is_duplicated()).sort("seq")
        seconds = twice.filter(~pl.col("key").is_first_distinct())
        if seconds.height == 0:
            return None
        self._num_keys += seconds["key"].n_unique()
        seq, key = seconds.select("seq", "key").row(0)
        columns = ("place", "source", "path")
        first = _Owner(*twice.filter(pl.col("key") == key).select(columns).row(0))
        return _Repeat(seq, key, first, _Owner(*seconds.select(columns).row(0)))

    def _of_cache(self, joined: pl.DataFrame) -> _Repeat | None:
        """Return the first sample whose key is in the cache for another source."""
        is_other = pl.col("owner").ne_missing(pl.col("source"))
        taken = joined.filter(is_other & pl.col("row").is_not_null()).sort("seq")
        if taken.height == 0:
            return None
        self._num_keys += taken["key"].n_unique()
        columns = ("seq", "key", "row", "owner", "old_path", "place", "source", "path")
        seq, key, row, owner, old_path, *second = taken.select(columns).row(0)
        first = _Owner(f"row {row} of the cache (from source {owner!r})", owner, old_path)
        return _Repeat(seq, key, first, _Owner(*second))


def _remedy(repeat: _Repeat, sources: Mapping[str, Source], recorded: Collection[str]) -> str:
    """Return what tells the two samples apart, as the end of the message.

    The name and the key rules of a source that the cache has are fixed.
    """
    first, second = repeat.first, repeat.second
    if {first.source, second.source} <= set(recorded):
        fixed = ", and those of a source in it are made as before"
        return f"{fixed}: rename or remove the second of them, or build a new cache"
    if first.source != second.source:
        return ": give the new source another name (NAME=PATH)"
    source, ways = sources[second.source], list[str]()
    takes_prefixes = all(PREFIXED in sources[n].settings for n in recorded if n in sources)
    if PREFIXED not in source.settings and first.path != second.path and takes_prefixes:
        ways.append("--prefix-keys (its file's name before each key)")
    # Options of columns would also apply to sources of the cache.
    if source.kind in _WITHOUT_COLUMN and not any(name in sources for name in recorded):
        ways.append("another --key-column")
        if first.path == second.path or splitext(first.path)[0] != splitext(second.path)[0]:
            keys = _WITHOUT_COLUMN[source.kind]
            ways.append(f"--key-column '' (keys are {keys})")
    if not ways:
        return ": rename or remove one of them"
    return f": use {' or '.join(filter(None, [', '.join(ways[:-1]), ways[-1]]))}"


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
