"""Building an approximate index over the targets of a teacher, in blocks.

index_checkpoint.py saves the unfinished index, so that an interrupted run can be resumed.

Shape letters in this file:
    N = rows that have a target, S = rows of a sample, K = neighbours, D = embed_dim.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from ...errors import CacheError, SettingError
from ...progress import TaskProgress
from ..cache import Cache
from ..format.layout import IndexId, other_modality
from ..targets.blocks import Block, read_blocks
from .index_checkpoint import IndexState
from .index_kinds import Adder, IndexPlan, make_index, plan_index, train
from .index_recall import Measured, choose_rows, measure
from .index_record import IndexRecord, fingerprint, read_index_record, write_index_record

_faiss: Any = faiss  # its types lack what the C++ classes and functions have

SAVE_EVERY_S = 300.0
"""Seconds between saves, the work that a crash can lose. A save writes the whole index so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltIndex:
    """A finished index, and how it was built."""

    record: IndexRecord
    reason: str
    """The reason for its kind."""

    was_there: bool
    """Whether it existed already, built from the same targets."""

    resumed_rows: int
    """Rows that an earlier, interrupted run had added."""

    seconds: float


def build_index(
    cache: Cache,
    index_id: IndexId,
    *,
    progress: TaskProgress,
    kind: str = "auto",
    save_every_s: float = SAVE_EVERY_S,
    block_rows: int | None = None,
) -> BuiltIndex:
    """Build an index over the committed targets, or resume an unfinished one.

    Uses up to twice the memory of the index, whose lists grow by doubling, and some 500 MB; during training
    64 rows of each list in float32.

    Args:
        cache: the cache. An index of an unfinished build is stale once the build continues.
        index_id: the targets to index, from resolve_index.
        progress: receives the progress.
        kind: auto, flat, ivf, ivfpq or hnsw.
        save_every_s: seconds between saves.
        block_rows: rows of a block; None: as read_blocks chooses.

    Raises:
        SettingError: there is no such kind, there are no targets, or another process is building it.
        DiskFullError: the disk is full; an earlier save is kept.
    """
    builder = _Builder(cache, index_id, progress, kind, save_every_s, block_rows)
    with cache.files.locked(index_id.folder) as is_alone:
        if not is_alone:
            raise SettingError(
                f"another siglip2-cache index is running in {cache.files.where(index_id.folder)}; "
                "wait for it, or stop it and run this again to resume"
            )
        return builder.run()


class _Builder:
    def __init__(
        self,
        cache: Cache,
        index_id: IndexId,
        progress: TaskProgress,
        kind: str,
        save_every_s: float,
        block_rows: int | None,
    ) -> None:
        self._files, self._index_id, self._progress = cache.files, index_id, progress
        self._save_every_s, self._block_rows = save_every_s, block_rows
        self._targets = cache.targets(index_id.modality, index_id.teacher)
        self._others = cache.targets(other_modality(index_id.modality), index_id.teacher)
        self._rows_N = self._targets.available_rows()
        if len(self._rows_N) == 0:
            raise SettingError(
                f"{cache.root} has no {index_id.modality} targets by {index_id.teacher} to index; "
                "run siglip2-cache build"
            )
        self._embed_dim = self._targets.shape[-1]
        self._plan: IndexPlan = plan_index(kind, len(self._rows_N), self._embed_dim)
        self._fingerprint = fingerprint(cache, index_id)
        making = {
            "factory": self._plan.factory,
            "parameters": dict(self._plan.parameters),
            "fingerprint": asdict(self._fingerprint),
            "faiss_version": faiss.__version__,
        }
        self._state = IndexState(cache.files, index_id, making)

    def run(self) -> BuiltIndex:
        started = time.monotonic()
        existing = self._existing()
        if existing is not None:
            self._state.clear()
            existing = self._with_cross(existing)
            return self._built(existing, started, was_there=True)
        self._progress.say(f"{self._plan.kind} index {self._plan.factory}: {self._plan.reason}")
        index, next_row = self._state.resume(self._progress.say) or (None, 0)
        self._state.clear()
        if index is None:
            index = self._train()
        else:
            self._progress.say(f"resuming from {index.ntotal:,} of {len(self._rows_N):,} rows")
        resumed_rows = index.ntotal
        self._add(index, next_row)
        record = self._record(index, self._measure(index))
        self._state.publish(record)
        return self._built(record, started, resumed_rows=resumed_rows)

    def _built(
        self, record: IndexRecord, started: float, *, was_there: bool = False, resumed_rows: int = 0
    ) -> BuiltIndex:
        return BuiltIndex(
            record=record,
            reason=self._plan.reason,
            was_there=was_there,
            resumed_rows=resumed_rows,
            seconds=time.monotonic() - started,
        )

    def _existing(self) -> IndexRecord | None:
        """Return the record of an equal index that exists already, or None."""
        try:
            record = read_index_record(self._files, self._index_id)
        except CacheError as error:
            self._progress.say(f"building the index again: {error}")
            return None
        if record is None or record.fingerprint != self._fingerprint:
            return None
        is_same = (record.factory, record.parameters) == (self._plan.factory, self._plan.parameters)
        is_whole = self._files.num_bytes(self._index_id.file) == record.num_bytes
        return record if is_same and is_whole else None

    def _train(self) -> Any:
        index = make_index(self._plan, self._embed_dim)
        if index.is_trained:
            return index
        sample_S = choose_rows(self._rows_N, self._plan.parameters["train_rows"])
        self._progress.start("reading rows to train on", len(sample_S))
        rows_SD = np.empty((len(sample_S), self._embed_dim), np.float32)
        count = 0
        for block in self._blocks(sample_S):
            rows_SD[count : count + len(block.rows_B)] = block.unit_BD
            count += len(block.rows_B)
            self._progress.advance(len(block.rows_B))
        self._progress.start("training", 0)
        train(index, rows_SD[:count])
        self._state.save(index, 0)
        return index

    def _add(self, index: Any, next_row: int) -> None:
        self._progress.start("adding rows", len(self._rows_N), index.ntotal)
        adder = Adder(index)
        saved_at = time.monotonic()
        left_N = self._rows_N[np.searchsorted(self._rows_N, next_row) :]
        for block in self._blocks(left_N):
            adder.add(block.rows_B, block.unit_BD)
            self._progress.advance(len(block.rows_B))
            if time.monotonic() - saved_at >= self._save_every_s and len(block.rows_B):
                self._state.save(index, int(block.rows_B[-1]) + 1)
                saved_at = time.monotonic()
        if index.ntotal == 0:
            raise SettingError(
                f"no target in {self._files.root} has a direction; run siglip2-cache verify"
            )
        self._state.save(index, int(self._rows_N[-1]) + 1)

    def _with_cross(self, record: IndexRecord) -> IndexRecord:
        """Return the record of an existing index, with the recall of the other modality added."""
        if record.cross is not None or len(self._others.available_rows()) == 0:
            return record
        self._progress.say(f"measuring what {self._others.modality}s find in the existing index")
        [(path, description)] = record.files.items()
        index = _faiss.read_index(str(self._files.fetch(path, description)))
        found = self._measure(index)
        record = replace(record, search=found.search, recall=found.recall, cross=found.cross)
        write_index_record(self._files, self._index_id, record)
        return record

    def _measure(self, index: Any) -> Measured:
        self._progress.start("measuring recall", len(self._rows_N))
        return measure(
            index,
            self._plan,
            self._targets,
            self._others,
            view=self._index_id.view,
            block_rows=self._block_rows,
            on_rows=self._progress.advance,
        )

    def _record(self, index: Any, found: Measured) -> IndexRecord:
        return IndexRecord(
            teacher=self._index_id.teacher,
            modality=self._index_id.modality,
            view=self._index_id.view,
            kind=self._plan.kind,
            factory=self._plan.factory,
            parameters=self._plan.parameters,
            search=found.search,
            num_rows=index.ntotal,
            embed_dim=self._embed_dim,
            fingerprint=self._fingerprint,
            recall=found.recall,
            cross=found.cross,
            faiss_version=faiss.__version__,
            files={self._index_id.file: self._state.description},
        )

    def _blocks(self, rows: NDArray[np.int64]) -> Iterator[Block]:
        return read_blocks(
            self._targets, view=self._index_id.view, rows=rows, block_rows=self._block_rows
        )
