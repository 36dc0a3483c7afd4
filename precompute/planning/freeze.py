"""Freezing the catalog: samples get rows, unique texts get text rows, in bounded memory.

Samples and texts are numbered in the order of their first appearance in the sources; those of the cache keep
their rows. Duplicates are found in buckets by hash, and order is restored in buckets by position, so the
result depends neither on the number of buckets nor on the hash function.

Steps: scan the sources -> merge rows of one image -> match keys -> number samples -> match texts -> number
texts -> join captions.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import polars as pl

from ...errors import SourceError
from ...store.cache import Cache
from ...store.format.augmentation import COLUMNS, UNCHANGED
from ...store.format.catalog import SCHEMAS, TABLES, empty_table
from ...store.format.views import ViewPolicy, draw_views
from ...store.io.location import Location
from ..sources import Source
from ..sources.crops import StoredViews
from .changes import Changes
from .existing import ExistingCatalog
from .findings import Findings
from .keys import RepeatedKeys, by_key, find_existing
from .merge_rows import KINDS, merge_rows
from .part_writer import PartWriter, Sink
from .prompts import Prompt
from .scan import SCAN_ROWS, SCANNED, Scanner
from .spill import Buckets, Scratch, SpillBuffer
from .text_rows import CAPTION, join_rows, resolve_texts
from .unused import CorpusNotes

_NOT_OF_A_SAMPLE = {"texts", "langs", "kinds", "reason", "count", "remedy"}
_SAMPLE = {
    "seq": pl.Int64(),
    "source": pl.String(),
    **{name: dtype for name, dtype in SCANNED.items() if name not in _NOT_OF_A_SAMPLE},
}
_SHOWN = 5
"""Problems shown in the findings."""


class Freezer:
    """Makes the catalog of some sources, or appends to the catalog of a cache."""

    def __init__(
        self,
        *,
        cache: Cache | None,
        views: ViewPolicy,
        sink: Sink,
        scratch: Scratch,
        skips_changed: bool = False,
        stored_views: Mapping[str, Location] | None = None,
    ) -> None:
        """Start with the catalog of a cache, or an empty one.

        Args:
            cache: the cache to append to; None: a new one.
            views: how views are drawn.
            sink: takes the parts of the catalog.
            scratch: temporary space.
            skips_changed: keep samples that have changed in the corpus as recorded, instead of refusing.
            stored_views: root by name of the sources whose views are stored in the corpus.
        """
        self._existing = ExistingCatalog(cache)
        self._skips_changed = skips_changed
        self._views, self._scratch = views, scratch
        self._stored_views = {
            name: StoredViews(root) for name, root in (stored_views or {}).items()
        }
        self.first_row = self._existing.next_row
        self.first_text_row = self._existing.next_text_row
        self._next_file = self._existing.num_files
        self._writers = {t: PartWriter(t, self._existing.num_parts(t), sink) for t in TABLES}
        self.findings = Findings()
        self.labels: dict[str, None] = {}
        self._num_seqs = 0
        self._num_caps = 0
        self._samples = Buckets(scratch, _SAMPLE)
        self._captions: SpillBuffer = scratch.new_buffer()
        self._prompts: list[Prompt] = []
        self._sources: dict[str, Source] = {}
        self._notes = CorpusNotes()
        self._existing_problems = self._existing.problems()

    def scan(
        self,
        sources: Sequence[tuple[str, Source]],
        scanner: Scanner,
        on_samples: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Read the sources, (name, source) in order; count samples with ``on_samples``.

        Raises:
            SourceError: a source as a whole cannot be read.
        """
        self._sources = dict(sources)
        for name, source in sources:
            for frame in scanner.frames(source):
                self._add_frame(name, frame)
                on_samples(len(frame))
        if self._num_seqs == 0:
            locations = ", ".join(str(source.location) for _, source in sources)
            shown = "; ".join(self.findings.problems)
            raise SourceError(
                f"no images in {locations}"
                + (f" ({shown})" if shown else "; is it the right folder?")
            )
        self._merge_rows({name for name, source in sources if source.kind in KINDS})
        self.findings.notes = self._notes.notes(sources)

    def _merge_rows(self, names: set[str]) -> None:
        """Merge rows of one image into one sample, in sources that may have such rows."""
        if not names:
            return
        existing = find_existing(self._samples, self._existing, self._scratch)
        merged = merge_rows(self._samples, self._captions, names, existing, self._scratch)
        if merged is None:
            return
        self._samples, self._captions = merged.samples, merged.captions
        self._num_caps = merged.captions.num_rows
        self._notes.recount(names, self._samples, self._captions, self._scratch)
        self.findings.num_merged_rows = merged.num_rows
        self.findings.num_merged_images = merged.num_images
        self._write_problems(merged.problems)

    def add_prompts(self, prompts: Iterable[Prompt], note: str = "") -> None:
        """Add zero-shot prompts after all captions; skip those that are in the cache.

        Args:
            prompts: all of them.
            note: how the labels of the corpus were understood, for the user.
        """
        prompts = list(prompts)
        if prompts:
            unprompted = sorted(self.labels.keys() - {prompt.label for prompt in prompts})
            self.findings.unprompted = unprompted
        self.findings.label_note = note
        existing = self._existing.prompts()
        new = [p for p in prompts if (p.label, p.template, p.lang, p.text) not in existing]
        lines = [(self._num_caps + i, -1 - i, p.lang, None, p.text) for i, p in enumerate(new)]
        self._captions.append(pl.DataFrame(lines, schema=CAPTION, orient="row"))
        self._num_caps += len(new)
        self._prompts = new
        self.findings.num_prompts = len(new)

    def freeze(self) -> Findings:
        """Number everything, write the catalog's parts to the sink, and return the findings.

        Raises:
            DuplicateKeyError: two samples have one key.
            SettingError: samples of the cache have changed, and skips_changed is not set.
        """
        changes = Changes(self._existing, self._scratch, self.findings)
        matched = self._match_keys(changes)
        rows = self._number_samples(matched)
        resolved, self.findings.num_texts = resolve_texts(
            self._captions, rows, self._existing, self._writers["texts"], self._scratch
        )
        existing_captions = self._join_captions(resolved, rows)
        changes.add_captions(rows, existing_captions)
        if not self._skips_changed:
            changes.refuse()
        self.findings.num_kept, self.findings.kept = changes.count, changes.describe()
        for writer in self._writers.values():
            writer.finish()
        return self.findings

    # -- scanning

    def _add_frame(self, name: str, frame: pl.DataFrame) -> None:
        """Add a frame of a source (scan.py): samples, captions, problems and unused items."""
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
        captions = captions.select("seq", text="texts", lang="langs", kind="kinds")
        captions = captions.explode("text", "lang", "kind")
        captions = captions.with_columns(
            cap=pl.int_range(pl.len(), dtype=pl.Int64) + self._num_caps
        )
        self._samples.append(samples, pl.col("seq") // self._scratch.bucket_rows)
        self._captions.append(captions.select(*CAPTION))
        self._num_seqs += samples.height
        self._num_caps += captions.height
        labels = samples["label"].drop_nulls().unique(maintain_order=True)
        self.labels.update(dict.fromkeys(labels))

    def _add_problems(self, name: str, problems: pl.DataFrame) -> None:
        key = pl.lit(f"{name}/") + pl.col("key") if name else pl.col("key")
        self._write_problems(problems.select("place", "reason", key=key, source=pl.lit(name)))

    def _write_problems(self, problems: pl.DataFrame) -> None:
        new = problems.join(
            self._existing_problems,
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
        """Return (seq, row of the cache's sample or null) by seq; refuse repeated keys."""
        matched = Buckets(self._scratch, {"seq": pl.Int64(), "row": pl.Int64()})
        repeated = RepeatedKeys()
        for ours, theirs in by_key(self._samples, self._existing, self._scratch):
            joined = ours.join(theirs.rename({"source": "owner"}), on="key", how="left")
            repeated.add(joined)
            changes.add_facts(joined)
            matched.append(joined, pl.col("seq") // self._scratch.bucket_rows)
            changes.add_files(joined)
            changes.add_gone(theirs, ours, set(self._sources))
        repeated.refuse(self._sources, self._existing.source_names)
        return matched

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
            self.findings.num_existing += frame.height - new.height
            if new.height:
                last_file = self._write_samples(new, last_file)
            next_row += new.height
        self.findings.num_samples = next_row - self.first_row
        return rows

    def _write_samples(
        self, new: pl.DataFrame, last_file: tuple[str, str] | None
    ) -> tuple[str, str]:
        """Write one bucket of new samples; consecutive samples of one file share its number."""
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
            for part in new.iter_slices(SCAN_ROWS // self._views.num_views + 1):
                for (name,), samples in part.partition_by(
                    "source", maintain_order=True, as_dict=True
                ).items():
                    self._writers["views"].write(self._views_of(samples, str(name)))
        self.findings.num_missing_files += int(new["num_bytes"].null_count())
        return new["source"][-1], new["path"][-1]

    def _views_of(self, samples: pl.DataFrame, source: str) -> pl.DataFrame:
        stored = self._stored_views.get(source)
        if stored is None:
            return _draw_views(self._views, samples["key"], samples["row"])
        found = stored.read(samples, self._views.num_views)
        if self._views.augmentation.is_none:
            return found
        return found.with_columns(
            pl.lit(getattr(UNCHANGED, name), empty_table("views").schema[name]).alias(name)
            for name in COLUMNS
        )

    # -- captions

    def _join_captions(self, resolved: Buckets, rows: Buckets) -> Buckets:
        """Write captions of new samples and prompts; return those of the cache's samples by row."""
        bucket_rows = self._scratch.bucket_rows
        columns = empty_table("captions").schema
        existing = Buckets(self._scratch, columns)
        for number in resolved.numbers():
            frame = resolved.collect(number).sort("cap")
            self._write_prompts(frame.filter(pl.col("seq") < 0))
            frame = frame.filter(pl.col("seq") >= 0)
            if frame.height == 0:
                continue
            joined = join_rows(frame, rows.collect, bucket_rows)
            new = joined.filter("is_new")
            self._writers["captions"].write(new.select(columns.names()))
            self.findings.num_captions += new.height
            existing.append(joined.filter(~pl.col("is_new")), pl.col("row") // bucket_rows)
        return existing

    def _write_prompts(self, frame: pl.DataFrame) -> None:
        if frame.height == 0:
            return
        lines = [
            (text_row, self._prompts[-1 - seq].label, self._prompts[-1 - seq].template, lang)
            for text_row, seq, lang in frame.select("text_row", "seq", "lang").iter_rows()
        ]
        schema = empty_table("prompts").schema
        self._writers["prompts"].write(pl.DataFrame(lines, schema=schema, orient="row"))


def _draw_views(policy: ViewPolicy, keys: pl.Series, rows: pl.Series) -> pl.DataFrame:
    num_views = policy.num_views
    columns = {
        "row": np.repeat(rows.to_numpy(), num_views),
        "view": np.tile(np.arange(num_views, dtype=np.int16), len(rows)),
        **{name: each.ravel() for name, each in draw_views(policy, keys.to_list()).items()},
    }
    return pl.DataFrame(columns)
