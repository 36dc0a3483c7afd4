"""What a corpus now says otherwise of samples that a cache holds: refused, or passed over and counted."""

import heapq

import polars as pl

from ...errors import SettingError
from ...formatting import format_count
from .existing import FROZEN, Known
from .spill import Buckets, Scratch

_SHOWN = 3
_MOST_CHARACTERS = 24
"""Of a value in a message."""


class Changes:
    """Counts the recorded samples that differ from the corpus; remembers the first few."""

    def __init__(self, known: Known, scratch: Scratch) -> None:
        self._known, self._scratch = known, scratch
        self._fact_rows = Buckets(scratch, {"row": pl.Int64()})
        self._num_facts = 0
        self._facts: list[tuple[int, str, str]] = []  # row, key, what differs
        self._num_captions = 0  # of samples that differ in nothing else
        self._rows: list[int] = []  # of those

    @property
    def count(self) -> int:
        """Samples that differ."""
        return self._num_facts + self._num_captions

    def add_facts(self, joined: pl.DataFrame) -> None:
        """Take the samples that name another image, place or label than recorded.

        Args:
            joined: samples of the plan, joined with what the cache has under their keys.
        """
        known = joined.filter(pl.col("row").is_not_null())
        differs = [pl.col(f"old_{name}").ne_missing(pl.col(name)) for name in FROZEN]
        changed = known.filter(pl.any_horizontal(differs)).sort("row")
        self._num_facts += changed.height
        self._fact_rows.append(changed, pl.col("row") // self._scratch.bucket_rows)
        found = [(row["row"], row["key"], _describe(row)) for row in changed[:_SHOWN].to_dicts()]
        self._facts = heapq.nsmallest(_SHOWN, [*self._facts, *found])

    def add_captions(self, rows: Buckets, captions: Buckets) -> None:
        """Compare the captions of recorded samples with those recorded.

        Args:
            rows: seq, row and is_new of every sample of the plan.
            captions: row, text_row (null: a text that the cache has not) and lang, of recorded samples,
                by row // bucket_rows.
        """
        if self._known.cache is None:
            return
        scratch, bucket_rows = self._scratch, self._scratch.bucket_rows
        known_rows = Buckets(scratch, {"row": pl.Int64()})
        for number in rows.numbers():
            known = rows.collect(number).filter(~pl.col("is_new"))
            known_rows.append(known, pl.col("row") // bucket_rows)
        recorded = Buckets(scratch, captions.schema)
        if known_rows.numbers():
            for frame in self._known.parts("captions"):
                recorded.append(frame, pl.col("row") // bucket_rows)
        for number in known_rows.numbers():
            ours = _lists_by_row(captions.collect(number), "now")
            theirs = _lists_by_row(recorded.collect(number), "recorded")
            both = known_rows.collect(number).join(ours, on="row", how="left")
            both = both.join(theirs, on="row", how="left")
            both = both.join(self._fact_rows.collect(number), on="row", how="anti")
            changed = both.filter(pl.col("now").ne_missing(pl.col("recorded"))).sort("row")
            self._num_captions += changed.height
            self._rows = heapq.nsmallest(_SHOWN, [*self._rows, *changed["row"][:_SHOWN]])

    def describe(self) -> str:
        """Return how many differ in what, and the first few."""
        parts: list[str] = []
        if self._num_captions:
            keys = ", ".join(map(_show, self._keys(self._rows)))
            parts.append(f"captions of {self._num_captions:,}: {keys}{_more(self._num_captions)}")
        if self._num_facts:
            first = ", ".join(f"{_show(key)} had {what}" for _, key, what in self._facts)
            parts.append(f"place or label of {self._num_facts:,}: {first}{_more(self._num_facts)}")
        return "; ".join(parts)

    def refuse(self) -> None:
        """Refuse the plan where samples differ.

        Raises:
            SettingError: says how many, and which.
        """
        if not self.count:
            return
        raise SettingError(
            f"{format_count(self.count, 'sample')} of {self._known.root} differ from the corpus "
            f"({self.describe()}); restore them or give them new keys; or keep what is recorded and add "
            "what is new: --changed skip"
        )

    def _keys(self, rows: list[int]) -> list[str]:
        assert self._known.cache is not None
        found = self._known.cache.samples().filter(pl.col("row").is_in(rows)).select("row", "key")
        return found.collect().sort("row")["key"].to_list()


def _describe(row: dict[str, object]) -> str:
    """Return what the cache has and what the corpus says, of the first thing that differs."""
    name = next(name for name in FROZEN if row[f"old_{name}"] != row[name])
    return f"{FROZEN[name]} {_show(row[f'old_{name}'])} and now has {_show(row[name])}"


def _show(value: object) -> str:
    if isinstance(value, str) and len(value) > _MOST_CHARACTERS:
        value = f"...{value[-_MOST_CHARACTERS:]}"  # paths and keys differ at their ends
    return repr(value)


def _more(count: int) -> str:
    return ", ..." if count > _SHOWN else ""


def _lists_by_row(captions: pl.DataFrame, name: str) -> pl.DataFrame:
    pairs = pl.struct("text_row", "lang").alias(name)
    return captions.select("row", pairs).group_by("row", maintain_order=True).agg(name)
