"""What a plan should say of a corpus: what was not used, and which images lack a caption or a label."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

import polars as pl

from ...store.format.corpus_notes import Note
from ..sources import Source
from ..sources.caption_search import describe_caption_search
from .spill import Buckets, Scratch, SpillBuffer

_MAX_KINDS = 200
"""Most notes of one source; kinds that come later are ignored."""


@dataclass(slots=True)
class _Lack:
    """Images of a source that lack something."""

    count: int = 0
    first: str = ""
    """Where the first of them is."""

    def add(self, places: pl.Series) -> None:
        self.first = self.first or (places[0] if len(places) else "")
        self.count += len(places)


@dataclass(slots=True)
class _Coverage:
    """How many images of a source there are, and which have neither captions nor a label."""

    num_images: int = 0
    without_caption: _Lack = field(default_factory=_Lack)
    without_label: _Lack = field(default_factory=_Lack)

    def add(self, images: pl.DataFrame, has_caption: pl.Expr) -> None:
        self.num_images += images.height
        self.without_caption.add(images.filter(~has_caption)["place"])
        self.without_label.add(images.filter(pl.col("label").is_null())["place"])


class CorpusNotes:
    """Adds up, by source, what was not used and what images lack."""

    def __init__(self) -> None:
        self._unused: dict[str, dict[tuple[str, str], Note]] = {}
        self._coverage: dict[str, _Coverage] = {}

    def add_unused(self, name: str, frame: pl.DataFrame) -> None:
        """Add the rows of a frame (scan.py) that count unused items of a source."""
        notes = self._unused.setdefault(name, {})
        columns = ("reason", "remedy", "count", "place")
        for what, remedy, count, place in frame.select(columns).iter_rows():
            found = notes.get((what, remedy))
            if found is not None:
                notes[what, remedy] = replace(found, count=found.count + count)
            elif len(notes) < _MAX_KINDS:
                note = Note(source=name, what=what, count=count, first=place, remedy=remedy)
                notes[what, remedy] = note

    def add_samples(self, name: str, samples: pl.DataFrame) -> None:
        """Count samples of a source; those that the cache already has too."""
        self._coverage.setdefault(name, _Coverage()).add(samples, pl.col("texts").list.len() > 0)

    def recount(
        self, names: Collection[str], samples: Buckets, captions: SpillBuffer, scratch: Scratch
    ) -> None:
        """Count the samples of some sources anew, after rows of one image became one sample."""
        captioned = Buckets(scratch, {"seq": pl.Int64(), "has_caption": pl.Boolean()})
        for frame in captions.frames():
            seqs = frame.select(pl.col("seq").unique(), has_caption=pl.lit(True))
            captioned.append(seqs, pl.col("seq") // scratch.bucket_rows)
        self._coverage.update((name, _Coverage()) for name in names)
        has_caption = pl.col("has_caption").is_not_null()
        for number in samples.numbers():
            images = samples.collect(number).filter(pl.col("source").is_in(list(names)))
            images = images.join(captioned.collect(number).unique(), on="seq", how="left").sort(
                "seq"
            )
            for (name,), part in images.partition_by(
                "source", maintain_order=True, as_dict=True
            ).items():
                self._coverage[name].add(part, has_caption)

    def notes(self, sources: Sequence[tuple[str, Source]]) -> list[Note]:
        """Return the notes of all sources in order, of each the greatest count first."""
        found: list[Note] = []
        for name, source in sources:
            coverage = self._coverage.get(name)
            if coverage is not None:
                found += _lacks(name, source, coverage)
            unused = self._unused.get(name, {}).values()
            found += sorted(unused, key=lambda note: -note.count)
        return found


def _lacks(name: str, source: Source, coverage: _Coverage) -> Iterator[Note]:
    """Yield a note on images without a caption, and one on those without a label where others have one."""
    lack = coverage.without_caption
    if lack.count and lack.count == coverage.num_images:
        yield Note(
            source=name,
            what="images without a caption, which is all of them",
            count=lack.count,
            remedy=f"looked for {describe_caption_search(source)}",
        )
    elif lack.count:
        yield Note(
            source=name,
            what="images without a caption, where others have one",
            count=lack.count,
            first=lack.first,
            remedy="they are embedded without a text",
        )
    lack = coverage.without_label
    if 0 < lack.count < coverage.num_images:
        yield Note(
            source=name,
            what="images without a label, where others have one",
            count=lack.count,
            first=lack.first,
            remedy="zero-shot evaluation leaves them out",
        )
