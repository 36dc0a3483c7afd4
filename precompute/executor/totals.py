"""The totals of a build over all its workers."""

from collections.abc import Callable, Mapping
from typing import Any

from ...store.format.layout import MODALITIES, Modality
from .messages import Advanced, Ended, FinishedUnit
from .progress import BuildProgress
from .unit import StageTimes


class BuildTotals:
    """Counts what all workers of a build did, and shows it as it happens."""

    def __init__(
        self, progress: BuildProgress, on_provenance: Callable[[Mapping[str, Any]], None]
    ) -> None:
        """Start at zero; ``on_provenance`` is called once, with the provenance of the first worker."""
        self.say = progress.say
        self.num_units = 0
        """Units committed by this build."""

        self.num_rows: dict[Modality, int] = dict.fromkeys(MODALITIES, 0)
        """Wanted rows of those units."""

        self.num_rejected: dict[Modality, int] = dict.fromkeys(MODALITIES, 0)
        """Rejected rows of those units."""

        self.times = StageTimes()
        """Sum over the workers that ended normally."""

        self.num_ended = 0
        """Number of those workers."""

        self.num_decoders = 0
        """Decoding processes of each worker."""

        self.image_batch, self.text_batch = 0, 0
        """Smallest forward pass that any worker used."""

        self._progress = progress
        self._on_provenance = on_provenance
        self._provenance: Mapping[str, Any] | None = None
        self._unfinished: dict[tuple[int, Modality], tuple[int, int]] = {}

    def add_provenance(self, provenance: Mapping[str, Any]) -> None:
        """Note versions and device of a worker; warn where they differ from the first worker's."""
        if self._provenance is None:
            self._provenance = provenance
            self._on_provenance(provenance)
        elif differences := compare_provenance(self._provenance, provenance):
            self.say(
                f"warning: workers differ, so embeddings may differ in rounding: {differences}"
            )

    def add_rows(self, worker: int, done: Advanced) -> None:
        """Count rows of a unit that a worker has not finished yet."""
        rows, rejected = self._unfinished.get((worker, done.modality), (0, 0))
        now = rows + done.num_rows, rejected + done.num_rejected
        self._unfinished[worker, done.modality] = now
        self._progress.advance(done.modality, done.num_rows, done.num_rejected)

    def add_unit(self, worker: int, unit: FinishedUnit) -> None:
        """Count a finished unit."""
        rows, rejected = self._unfinished.get((worker, unit.modality), (0, 0))
        rest = rows - unit.num_wanted, rejected - unit.num_rejected
        self._unfinished[worker, unit.modality] = rest
        if unit.is_ours:
            self.num_units += 1
            self.num_rows[unit.modality] += unit.num_wanted
            self.num_rejected[unit.modality] += unit.num_rejected
        if unit.warning is not None:
            self.say(f"warning: {unit.warning}")
        self._progress.unit_done(unit.modality)

    def drop_unfinished(self, worker: int) -> None:
        """Subtract the rows of units that a worker did not finish: they are made again."""
        for modality in MODALITIES:
            rows, rejected = self._unfinished.pop((worker, modality), (0, 0))
            if rows or rejected:
                self._progress.advance(modality, -rows, -rejected)

    def add_worker(self, end: Ended) -> None:
        """Add the times and batch sizes of a worker that ended."""
        self.times += end.times
        self.num_ended += 1
        self.num_decoders = end.num_decoders
        self.image_batch = min(self.image_batch or end.image_batch, end.image_batch)
        self.text_batch = min(self.text_batch or end.text_batch, end.text_batch)


def compare_provenance(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return what differs, for people; empty if nothing does."""
    return "; ".join(
        f"{key} was {before.get(key)} and is {value}"
        for key, value in now.items()
        if before.get(key) != value
    )
