"""What a plan hands on: parts of the catalog's tables, and its findings."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import polars as pl

from ...store.format import layout
from ...store.format.catalog import PART_ROWS, Table, encode_part
from ...store.format.corpus_notes import Note


class Sink(Protocol):
    """Where finished parts go: a Transaction, or a counter when nothing is to be written."""

    def add(self, path: str, data: bytes, **described: Any) -> None:
        """Take one file whole."""
        ...


@dataclass(slots=True, kw_only=True)
class Findings:
    """What freezing found, for the record and the user."""

    num_samples: int = 0
    """Samples that are new."""

    num_known: int = 0
    """Samples that the cache had."""

    num_folded_rows: int = 0
    """Rows that name a picture which an earlier row names: their captions are its sample's."""

    num_folded_pictures: int = 0
    """Samples of which such rows are part."""

    num_captions: int = 0
    num_texts: int = 0
    num_prompts: int = 0
    label_note: str = ""
    """How the labels of the corpus were understood, where that is not plain."""

    unprompted: list[str] = field(default_factory=list[str])
    """Labels of the corpus that none of the prompts stands for."""

    num_problems: int = 0
    num_missing_files: int = 0
    """New samples whose file was not there."""

    num_gone: int = 0
    """Samples of the cache that their source no longer has; they keep their rows."""

    gone: list[str] = field(default_factory=list[str])
    """Keys of the first few."""

    num_changed: int = 0
    """Known samples whose file has another size or time than when it was planned."""

    changed: list[str] = field(default_factory=list[str])
    num_kept: int = 0
    """Known samples that the corpus now gives another image, place, label or captions, and that stay as they
    are recorded (--changed skip)."""

    kept: str = ""
    """What differs of the first few of them."""

    problems: list[str] = field(default_factory=list[str])
    """The first few, as ``place: reason``."""

    notes: list[Note] = field(default_factory=list[Note])
    """What the sources that were scanned hold and was not used, or lack."""

    @property
    def is_empty(self) -> bool:
        """Say whether there is nothing to append."""
        return not (self.num_samples or self.num_texts or self.num_prompts or self.num_problems)


class PartWriter:
    """Cuts one table into parts of PART_ROWS rows."""

    def __init__(self, table: Table, first_part: int, sink: Sink) -> None:
        self._table: Table = table
        self._part, self._sink = first_part, sink
        self._frames: list[pl.DataFrame] = []
        self._height = 0

    def write(self, frame: pl.DataFrame) -> None:
        """Add rows."""
        self._frames.append(frame)
        self._height += frame.height
        while self._height >= PART_ROWS:
            whole = pl.concat(self._frames)
            self._emit(whole[:PART_ROWS])
            self._frames = [whole[PART_ROWS:]]
            self._height -= PART_ROWS

    def finish(self) -> None:
        """Hand over the last, shorter part."""
        if self._height:
            self._emit(pl.concat(self._frames))

    def _emit(self, frame: pl.DataFrame) -> None:
        path = layout.catalog_part(self._table, self._part)
        data = encode_part(self._table, frame)
        self._sink.add(path, data, table=self._table, num_rows=frame.height)
        self._part += 1
