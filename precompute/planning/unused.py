"""Counting what a plan leaves unused in a corpus, by source and kind."""

from collections.abc import Sequence
from dataclasses import replace

import polars as pl

from ...store.format.corpus_notes import Note
from ..sources import Source
from ..sources.caption_search import captions_looked_for

_MAX_KINDS = 200
"""Most notes of one source; kinds that come later are ignored."""


class UnusedCounts:
    """Counts what is unused in each source, and finds sources without any caption."""

    def __init__(self) -> None:
        self._unused: dict[str, dict[tuple[str, str], Note]] = {}
        self._num_samples: dict[str, int] = {}
        self._num_captioned: dict[str, int] = {}

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
        """Count samples of a source, and those with captions."""
        num_captioned = samples.select((pl.col("texts").list.len() > 0).sum()).item()
        self._num_samples[name] = self._num_samples.get(name, 0) + samples.height
        self._num_captioned[name] = self._num_captioned.get(name, 0) + int(num_captioned)

    def notes(self, sources: Sequence[tuple[str, Source]]) -> list[Note]:
        """Return the notes of all sources in order, of each the greatest count first."""
        found: list[Note] = []
        for name, source in sources:
            num_samples = self._num_samples.get(name, 0)
            if num_samples and not self._num_captioned[name]:
                found.append(
                    Note(
                        source=name,
                        what="images without a caption, which is all of them",
                        count=num_samples,
                        remedy=f"looked for {captions_looked_for(source)}",
                    )
                )
            unused = self._unused.get(name, {}).values()
            found += sorted(unused, key=lambda note: -note.count)
        return found
