"""Changes in the corpus of samples that a cache already has: refused, or ignored and counted."""

import heapq

import polars as pl

from ...errors import SettingError
from ...formatting import format_count
from .existing import FROZEN, ExistingCatalog
from .findings import Findings
from .spill import Buckets, Scratch

_SHOWN = 3
_MOST_KEYS = 5
"""Keys of changed files, or of samples that are gone, in the findings."""

_MOST_CHARACTERS = 24
"""Length of a value in a message."""


class Changes:
    """Counts the recorded samples that differ from the corpus, and keeps the first few."""

    def __init__(self, existing: ExistingCatalog, scratch: Scratch, findings: Findings) -> None:
        self._existing, self._scratch, self._findings = existing, scratch, findings
        self._fact_rows = Buckets(scratch, {"row": pl.Int64()})
        self._num_facts = 0
        self._facts: list[tuple[int, str, str]] = []  # row, key, what differs
        self._num_captions = 0  # samples that differ only in their captions
        self._num_kinds = 0  # those of them whose captions differ only in their kinds
        self._rows: list[int] = []  # the first of those

    @property
    def count(self) -> int:
        """Samples that differ."""
        return self._num_facts + self._num_captions

    def add_facts(self, joined: pl.DataFrame) -> None:
        """Add the samples whose image, location or label differs from the recorded one.

        Args:
            joined: samples of the plan, joined with those of the cache by key.
        """
        recorded = joined.filter(pl.col("row").is_not_null())
        differs = [pl.col(f"old_{name}").ne_missing(pl.col(name)) for name in FROZEN]
        changed = recorded.filter(pl.any_horizontal(differs)).sort("row")
        self._num_facts += changed.height
        self._fact_rows.append(changed, pl.col("row") // self._scratch.bucket_rows)
        found = [(row["row"], row["key"], _describe(row)) for row in changed[:_SHOWN].to_dicts()]
        self._facts = heapq.nsmallest(_SHOWN, [*self._facts, *found])

    def add_files(self, joined: pl.DataFrame) -> None:
        """Add the samples whose file has another size or time than when planned, to the findings."""
        differs = pl.col("num_bytes").ne_missing(pl.col("old_bytes")) | pl.col(
            "mtime_ns"
        ).ne_missing(pl.col("old_mtime"))
        # A tar that has grown still has its old members: their offsets are compared elsewhere.
        is_member = pl.col("member").is_not_null() & pl.col("offset").is_not_null()
        is_grown = is_member & (pl.col("num_bytes") > pl.col("old_bytes"))
        changed = joined.filter(pl.col("row").is_not_null() & differs & ~is_grown.fill_null(False))
        self._findings.num_changed += changed.height
        self._findings.changed = _first_keys(self._findings.changed, changed)

    def add_gone(self, theirs: pl.DataFrame, ours: pl.DataFrame, sources: set[str]) -> None:
        """Add the samples of the cache that are no longer in their source, to the findings."""
        gone = theirs.filter(pl.col("source").is_in(list(sources)))
        gone = gone.join(ours, on="key", how="anti")
        self._findings.num_gone += gone.height
        self._findings.gone = _first_keys(self._findings.gone, gone)

    def add_captions(self, rows: Buckets, captions: Buckets) -> None:
        """Compare the captions of recorded samples with those recorded.

        Args:
            rows: seq, row and is_new of every sample of the plan.
            captions: row, text_row (null for a text that is not in the cache), lang and kind, of recorded
                samples, by row // bucket_rows.
        """
        if self._existing.cache is None:
            return
        scratch, bucket_rows = self._scratch, self._scratch.bucket_rows
        existing_rows = Buckets(scratch, {"row": pl.Int64()})
        for number in rows.numbers():
            recorded_rows = rows.collect(number).filter(~pl.col("is_new"))
            existing_rows.append(recorded_rows, pl.col("row") // bucket_rows)
        recorded = Buckets(scratch, captions.schema)
        if existing_rows.numbers():
            for frame in self._existing.parts("captions"):
                recorded.append(frame, pl.col("row") // bucket_rows)
        for number in existing_rows.numbers():
            ours = _lists_by_row(captions.collect(number), "now")
            theirs = _lists_by_row(recorded.collect(number), "recorded")
            both = existing_rows.collect(number).join(ours, on="row", how="left")
            both = both.join(theirs, on="row", how="left")
            both = both.join(self._fact_rows.collect(number), on="row", how="anti")
            changed = both.filter(pl.col("now").ne_missing(pl.col("recorded"))).sort("row")
            self._num_captions += changed.height
            now, then = (_without_kinds(name) for name in ("now", "recorded"))
            self._num_kinds += changed.filter(now.eq_missing(then)).height
            self._rows = heapq.nsmallest(_SHOWN, [*self._rows, *changed["row"][:_SHOWN]])

    def describe(self) -> str:
        """Return what differs, in how many samples, and the first few."""
        parts: list[str] = []
        if self._num_captions:
            keys = ", ".join(map(_show, self._keys(self._rows)))
            what = f"captions of {self._num_captions:,}"
            if self._num_kinds == self._num_captions:
                what = f"kinds of {what}"
            elif self._num_kinds:
                what += f", {self._num_kinds:,} of them only in kinds"
            parts.append(f"{what}: {keys}{_more(self._num_captions)}")
        if self._num_facts:
            first = ", ".join(f"{_show(key)} had {what}" for _, key, what in self._facts)
            parts.append(
                f"location or label of {self._num_facts:,}: {first}{_more(self._num_facts)}"
            )
        return "; ".join(parts)

    def refuse(self) -> None:
        """Refuse the plan if samples differ.

        Raises:
            SettingError: gives their number and the first few.
        """
        if not self.count:
            return
        kinds = "; recorded captions get no kinds later: build a new cache to have them"
        raise SettingError(
            f"{format_count(self.count, 'sample')} of {self._existing.root} differ from the corpus "
            f"({self.describe()}); restore them, or give them new keys; or keep them as recorded and add "
            f"only what is new: --changed skip{kinds if self._num_kinds else ''}"
        )

    def _keys(self, rows: list[int]) -> list[str]:
        assert self._existing.cache is not None
        found = (
            self._existing.cache.samples().filter(pl.col("row").is_in(rows)).select("row", "key")
        )
        return found.collect().sort("row")["key"].to_list()


def _describe(row: dict[str, object]) -> str:
    """Return the recorded and the current value of the first column that differs."""
    name = next(name for name in FROZEN if row[f"old_{name}"] != row[name])
    return f"{FROZEN[name]} {_show(row[f'old_{name}'])} and now has {_show(row[name])}"


def _first_keys(first: list[str], more: pl.DataFrame) -> list[str]:
    return sorted([*first, *more.sort("key")["key"][:_MOST_KEYS]])[:_MOST_KEYS]


def _show(value: object) -> str:
    if isinstance(value, str) and len(value) > _MOST_CHARACTERS:
        value = f"...{value[-_MOST_CHARACTERS:]}"  # paths and keys differ at their ends
    return repr(value)


def _more(count: int) -> str:
    return ", ..." if count > _SHOWN else ""


def _without_kinds(name: str) -> pl.Expr:
    fields = (pl.element().struct.field(field) for field in ("text_row", "lang"))
    return pl.col(name).list.eval(pl.struct(*fields))


def _lists_by_row(captions: pl.DataFrame, name: str) -> pl.DataFrame:
    pairs = pl.struct("text_row", "lang", "kind").alias(name)
    return captions.select("row", pairs).group_by("row", maintain_order=True).agg(name)
