"""Freezing the catalog: samples get rows, unique texts get text rows, in bounded memory.

The order is that of the sources, given in order: samples by first sight, texts by first appearance.
What is already in the cache is met first and keeps its rows. Uniqueness is decided in buckets by hash,
order restored in buckets by position, so the result depends neither on the number of buckets nor on
the hash function.

Steps: scan the sources -> fold rows of one picture -> match keys -> number samples -> match texts -> number
texts -> join captions.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import polars as pl

from ...errors import SourceError
from ...store.cache import Cache
from ...store.format.catalog import SCHEMAS, TABLES
from ...store.format.views import ViewPolicy, draw_views
from ..sources import Source
from .changes import Changes
from .existing import Known
from .group_rows import KINDS, fold_rows
from .keys import RepeatedKeys, by_key, find_standing
from .part_writer import Findings, PartWriter, Sink
from .prompts import Prompt
from .scan import SCAN_ROWS, SCANNED, Scanner
from .spill import Buckets, Scratch, Spool
from .unused import NoteBook

_NOT_OF_A_SAMPLE = {"texts", "langs", "reason", "count", "remedy"}
_SAMPLE = {
    "seq": pl.Int64(),
    "source": pl.String(),
    **{name: dtype for name, dtype in SCANNED.items() if name not in _NOT_OF_A_SAMPLE},
}
# seq -1 - i: the text of prompt i, which belongs to no sample
_CAPTION = {"cap": pl.Int64(), "seq": pl.Int64(), "text": pl.String(), "lang": pl.String()}
_OF_SAMPLE = {**_CAPTION, "is_new": pl.Boolean()}
_RESOLVED = {
    "cap": pl.Int64(),
    "seq": pl.Int64(),
    "lang": pl.String(),
    "text_row": pl.Int64(),
}
_SHOWN = 5
"""Keys and problems that a finding names."""


class Freezer:
    """One plan over some sources, appended to what a cache already has (None: a new cache)."""

    def __init__(
        self,
        *,
        cache: Cache | None,
        views: ViewPolicy,
        sink: Sink,
        scratch: Scratch,
        skips_changed: bool = False,
        has_prefixes: bool = False,
    ) -> None:
        """Args:
        cache: what is appended to.
        views: how views are drawn.
        sink: takes the parts of the catalog.
        scratch: the plan's temporary space.
        skips_changed: leave recorded samples that differ in the corpus as they are, instead of refusing.
        has_prefixes: keys of all sources have the name of their file before them.
        """
        self._known = Known(cache)
        self._skips_changed, self._has_prefixes = skips_changed, has_prefixes
        self._views, self._scratch = views, scratch
        self.first_row = self._known.next_row
        self.first_text_row = self._known.next_text_row
        self._next_file = self._known.num_files
        self._writers = {t: PartWriter(t, self._known.num_parts(t), sink) for t in TABLES}
        self.findings = Findings()
        self.labels: dict[str, None] = {}
        self._num_seqs = 0
        self._num_caps = 0
        self._samples = Buckets(scratch, _SAMPLE)
        self._captions: Spool = scratch.spool()
        self._prompts: list[Prompt] = []
        self._names: set[str] = set()
        self._notes = NoteBook()
        self._known_problems = self._known.problems()

    def scan(self, sources: Sequence[tuple[str, Source]], scanner: Scanner) -> None:
        """Read the sources, (namespace, source) in order.

        Raises:
            SourceError: a source as a whole cannot be read.
        """
        self._names = {name for name, _ in sources}
        for name, source in sources:
            for frame in scanner.frames(source):
                self._add_frame(name, frame)
        if self._num_seqs == 0:
            places = ", ".join(str(source.location) for _, source in sources)
            shown = "; ".join(self.findings.problems)
            raise SourceError(
                f"no images in {places}" + (f" ({shown})" if shown else "; is it the right folder?")
            )
        self._fold({name for name, source in sources if source.kind in KINDS})
        self.findings.notes = self._notes.notes(sources)

    def _fold(self, names: set[str]) -> None:
        """Make rows of one picture one sample, of sources that may have such."""
        if not names:
            return
        standing = find_standing(self._samples, self._known, self._scratch)
        folded = fold_rows(self._samples, self._captions, names, standing, self._scratch)
        if folded is None:
            return
        self._samples, self._captions = folded.samples, folded.captions
        self._num_caps = folded.captions.num_rows
        self.findings.num_folded_rows = folded.num_rows
        self.findings.num_folded_pictures = folded.num_pictures
        self._write_problems(folded.problems)

    def add_prompts(self, prompts: Iterable[Prompt], note: str = "") -> None:
        """Add zero-shot prompts after all captions; those the cache has are passed over.

        Args:
            prompts: all of them.
            note: what the user should know of how labels were understood.
        """
        prompts = list(prompts)
        if prompts:
            unprompted = sorted(self.labels.keys() - {prompt.label for prompt in prompts})
            self.findings.unprompted = unprompted
        self.findings.label_note = note
        known = self._known.prompts()
        new = [p for p in prompts if (p.label, p.template, p.lang, p.text) not in known]
        lines = [(self._num_caps + i, -1 - i, p.text, p.lang) for i, p in enumerate(new)]
        self._captions.append(pl.DataFrame(lines, schema=_CAPTION, orient="row"))
        self._num_caps += len(new)
        self._prompts = new
        self.findings.num_prompts = len(new)

    def freeze(self) -> Findings:
        """Number everything and hand the catalog's parts to the sink.

        Raises:
            DuplicateKeyError: two samples have one key.
            SettingError: known samples are others than in the cache, and these are not to be skipped.
        """
        changes = Changes(self._known, self._scratch)
        matched = self._match_keys(changes)
        rows = self._number_samples(matched)
        resolved = self._resolve_texts(rows)
        known_captions = self._join_captions(resolved, rows)
        changes.add_captions(rows, known_captions)
        if not self._skips_changed:
            changes.refuse()
        self.findings.num_kept, self.findings.kept = changes.count, changes.describe()
        for writer in self._writers.values():
            writer.finish()
        return self.findings

    # -- scanning

    def _add_frame(self, name: str, frame: pl.DataFrame) -> None:
        """Spool one frame of a source (scan.py): samples, captions; write problems; count what is unused."""
        is_problem, is_unused = pl.col("reason").is_not_null(), pl.col("count").is_not_null()
        self._add_problems(name, frame.filter(is_problem & ~is_unused))
        self._notes.add_unused(name, frame.filter(is_unused))
        samples = frame.filter(~is_problem)
        self._notes.add_samples(name, samples)
        samples = samples.with_columns(
            seq=pl.int_range(pl.len(), dtype=pl.Int64) + self._num_seqs, source=pl.lit(name)
        )
        if name:
            samples = samples.with_columns(key=pl.lit(f"{name}/") + pl.col("key"))
        samples = samples.drop("reason", "count", "remedy")
        captions = samples.filter(pl.col("texts").list.len() > 0)
        captions = captions.select("seq", text="texts", lang="langs").explode("text", "lang")
        captions = captions.with_columns(
            cap=pl.int_range(pl.len(), dtype=pl.Int64) + self._num_caps
        )
        self._samples.append(samples, pl.col("seq") // self._scratch.bucket_rows)
        self._captions.append(captions.select(*_CAPTION))
        self._num_seqs += samples.height
        self._num_caps += captions.height
        labels = samples["label"].drop_nulls().unique(maintain_order=True)
        self.labels.update(dict.fromkeys(labels))

    def _add_problems(self, name: str, problems: pl.DataFrame) -> None:
        key = pl.lit(f"{name}/") + pl.col("key") if name else pl.col("key")
        self._write_problems(problems.select("place", "reason", key=key, source=pl.lit(name)))

    def _write_problems(self, problems: pl.DataFrame) -> None:
        new = problems.join(
            self._known_problems,
            on=["source", "place", "reason"],
            how="anti",
            maintain_order="left",
        )
        self._writers["problems"].write(new.select(SCHEMAS["problems"].names))
        self.findings.num_problems += new.height
        shown = new.head(_SHOWN - len(self.findings.problems))
        self.findings.problems += [
            f"{place}: {reason}" for place, reason in shown.select("place", "reason").iter_rows()
        ]

    # -- samples

    def _match_keys(self, changes: Changes) -> Buckets:
        """Return (seq, row of a known sample or null, ...) by seq; refuse duplicate keys."""
        matched = Buckets(self._scratch, {"seq": pl.Int64(), "row": pl.Int64()})
        repeated = RepeatedKeys()
        for ours, theirs in by_key(self._samples, self._known, self._scratch):
            joined = ours.join(theirs.rename({"source": "owner"}), on="key", how="left")
            repeated.add(joined)
            changes.add_facts(joined)
            matched.append(joined, pl.col("seq") // self._scratch.bucket_rows)
            self._note_changed(joined)
            self._note_gone(theirs, ours)
        repeated.refuse(are_prefixed=self._has_prefixes)
        return matched

    def _note_changed(self, joined: pl.DataFrame) -> None:
        differs = pl.col("num_bytes").ne_missing(pl.col("old_bytes")) | pl.col(
            "mtime_ns"
        ).ne_missing(pl.col("old_mtime"))
        # A tar that grew holds its old members where they were: their places were compared.
        is_member = pl.col("member").is_not_null() & pl.col("offset").is_not_null()
        is_grown = is_member & (pl.col("num_bytes") > pl.col("old_bytes"))
        changed = joined.filter(
            pl.col("row").is_not_null() & differs & ~is_grown.fill_null(False)
        ).sort("key")
        self.findings.num_changed += changed.height
        self.findings.changed = sorted([*self.findings.changed, *changed["key"][:_SHOWN]])[:_SHOWN]

    def _note_gone(self, theirs: pl.DataFrame, ours: pl.DataFrame) -> None:
        gone = theirs.filter(pl.col("source").is_in(list(self._names))).join(
            ours, on="key", how="anti"
        )
        self.findings.num_gone += gone.height
        self.findings.gone = sorted([*self.findings.gone, *gone.sort("key")["key"][:_SHOWN]])[
            :_SHOWN
        ]

    def _number_samples(self, matched: Buckets) -> Buckets:
        """Write files, samples and views of new samples; return (seq, row, is_new) by seq."""
        rows = Buckets(
            self._scratch, {"seq": pl.Int64(), "row": pl.Int64(), "is_new": pl.Boolean()}
        )
        next_row = self.first_row
        last_file: tuple[str, str] | None = None
        for number in self._samples.numbers():
            frame = self._samples.collect(number).join(
                matched.collect(number), on="seq", how="left"
            )
            frame = frame.sort("seq").with_columns(is_new=pl.col("row").is_null())
            ordinal = next_row + pl.col("is_new").cast(pl.Int64).cum_sum() - 1
            frame = frame.with_columns(row=pl.when("is_new").then(ordinal).otherwise("row"))
            rows.append(frame, pl.col("seq") // self._scratch.bucket_rows)
            new = frame.filter("is_new")
            self.findings.num_known += frame.height - new.height
            if new.height:
                last_file = self._write_samples(new, last_file)
            next_row += new.height
        self.findings.num_samples = next_row - self.first_row
        return rows

    def _write_samples(
        self, new: pl.DataFrame, last_file: tuple[str, str] | None
    ) -> tuple[str, str]:
        """Write one bucket of new samples; files that follow each other and are one share a number."""
        before = last_file or ("", "")
        is_other = (
            pl.col("source").ne(pl.col("source").shift(1).fill_null(before[0]))
            | pl.col("path").ne(pl.col("path").shift(1).fill_null(before[1]))
        ).cast(pl.Int64)
        new = new.with_columns(starts_file=is_other).with_columns(
            file=self._next_file - 1 + pl.col("starts_file").cum_sum()
        )
        files = new.filter(pl.col("starts_file") == 1)
        self._next_file += files.height
        self._writers["files"].write(files.select(SCHEMAS["files"].names))
        self._writers["samples"].write(new.select(SCHEMAS["samples"].names))
        if self._views.num_views > 1:
            for part in new.select("key", "row").iter_slices(
                SCAN_ROWS // self._views.num_views + 1
            ):
                self._writers["views"].write(_draw_views(self._views, part["key"], part["row"]))
        self.findings.num_missing_files += int(new["num_bytes"].null_count())
        return new["source"][-1], new["path"][-1]

    # -- texts

    def _resolve_texts(self, rows: Buckets) -> Buckets:
        """Write the new unique texts of new samples and prompts; return (cap, seq, lang, text_row) by cap.

        text_row is null where a known sample has a text that the cache has not.
        """
        scratch, bucket_rows = self._scratch, self._scratch.bucket_rows
        by_cap = Buckets(scratch, _RESOLVED)
        first_seen = Buckets(scratch, {"first": pl.Int64(), "text": pl.String()})
        waiting = Buckets(
            scratch,
            {"cap": pl.Int64(), "seq": pl.Int64(), "lang": pl.String(), "first": pl.Int64()},
        )
        is_unseen = pl.col("text_row").is_null() & pl.col("is_new")
        for ours in self._captions_with_known_text_rows(rows):
            by_cap.append(ours.filter(~is_unseen), pl.col("cap") // bucket_rows)
            new = ours.filter(is_unseen)
            by_first = pl.col("first") // bucket_rows
            first_seen.append(new.filter(pl.col("cap") == pl.col("first")), by_first)
            waiting.append(new, by_first)
        next_text_row = self.first_text_row
        for number in first_seen.numbers():
            texts = first_seen.collect(number).sort("first").with_row_index("i")
            texts = texts.with_columns(text_row=next_text_row + pl.col("i").cast(pl.Int64))
            next_text_row += texts.height
            self._writers["texts"].write(texts.select("text_row", "text"))
            found = waiting.collect(number).join(texts.select("first", "text_row"), on="first")
            by_cap.append(found, pl.col("cap") // bucket_rows)
        self.findings.num_texts = next_text_row - self.first_text_row
        return by_cap

    def _captions_with_known_text_rows(self, rows: Buckets) -> Iterator[pl.DataFrame]:
        """Yield captions by hash of text: with the cap of the first new one of equal texts, and text_row."""
        num_known = self._known.num_texts
        count = self._scratch.num_buckets(self._captions.num_rows + num_known)
        by_text = pl.col("text").hash(seed=0) % count
        known = Buckets(self._scratch, {"text": pl.String(), "text_row": pl.Int64()})
        for frame in self._known.parts("texts"):
            known.append(frame, by_text)
        captions = Buckets(self._scratch, _OF_SAMPLE)
        collect = lru_cache(maxsize=1)(rows.collect)  # frames follow each other in a bucket
        for frame in self._captions.frames():
            captions.append(self._mark_new(frame, collect), by_text)
        first = pl.col("cap").filter(pl.col("is_new")).min().over("text")
        for number in captions.numbers():
            ours = captions.collect(number).with_columns(first=first)
            yield ours.join(known.collect(number), on="text", how="left")

    def _mark_new(
        self, captions: pl.DataFrame, rows: Callable[[int], pl.DataFrame]
    ) -> pl.DataFrame:
        """Add is_new: of a sample that the cache has not, or a prompt."""
        if self._known.cache is None:
            return captions.with_columns(is_new=pl.lit(True))
        found = _join_rows(captions, rows, self._scratch.bucket_rows)
        return found.with_columns(pl.col("is_new").fill_null(True))

    # -- captions

    def _join_captions(self, resolved: Buckets, rows: Buckets) -> Buckets:
        """Write captions of new samples and prompts; return those of known samples by row."""
        bucket_rows = self._scratch.bucket_rows
        known = Buckets(
            self._scratch, {"row": pl.Int64(), "text_row": pl.Int64(), "lang": pl.String()}
        )
        for number in resolved.numbers():
            frame = resolved.collect(number).sort("cap")
            self._write_prompts(frame.filter(pl.col("seq") < 0))
            frame = frame.filter(pl.col("seq") >= 0)
            if frame.height == 0:
                continue
            joined = _join_rows(frame, rows.collect, bucket_rows)
            new = joined.filter("is_new")
            self._writers["captions"].write(new.select("row", "text_row", "lang"))
            self.findings.num_captions += new.height
            known.append(joined.filter(~pl.col("is_new")), pl.col("row") // bucket_rows)
        return known

    def _write_prompts(self, frame: pl.DataFrame) -> None:
        if frame.height == 0:
            return
        lines = [
            (text_row, self._prompts[-1 - seq].label, self._prompts[-1 - seq].template, lang)
            for text_row, seq, lang in frame.select("text_row", "seq", "lang").iter_rows()
        ]
        schema = {
            "text_row": pl.Int64,
            "label": pl.String,
            "template": pl.String,
            "lang": pl.String,
        }
        self._writers["prompts"].write(pl.DataFrame(lines, schema=schema, orient="row"))


def _draw_views(policy: ViewPolicy, keys: pl.Series, rows: pl.Series) -> pl.DataFrame:
    num_views = policy.num_views
    columns = {
        "row": np.repeat(rows.to_numpy(), num_views),
        "view": np.tile(np.arange(num_views, dtype=np.int16), len(rows)),
        **{name: each.ravel() for name, each in draw_views(policy, keys.to_list()).items()},
    }
    return pl.DataFrame(columns)


def _join_rows(
    captions: pl.DataFrame, rows: Callable[[int], pl.DataFrame], bucket_rows: int
) -> pl.DataFrame:
    """Return captions, in order of samples, with row and is_new of the sample that each belongs to.

    One bucket of rows at a time: few captions may lie far apart.
    """
    parts = captions.with_columns(_bucket=pl.col("seq") // bucket_rows).partition_by(
        "_bucket", maintain_order=True, as_dict=True, include_key=False
    )
    return pl.concat(
        part.join(rows(number), on="seq", how="left", maintain_order="left")
        for (number,), part in parts.items()
    )
