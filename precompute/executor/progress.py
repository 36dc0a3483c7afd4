"""What a build shows while it runs: rows, units and rejected rows of each modality."""

import time
from collections.abc import Mapping

from ...progress import Display, Task, log_display
from ...store.format.layout import Modality

_NOUN: dict[Modality, str] = {"image": "images", "text": "texts"}


class _Counts:
    """The counts of one modality."""

    def __init__(self, modality: Modality, num_rows: int, num_units: int) -> None:
        self.noun = _NOUN[modality]
        self.rows = Task(self.noun, num_rows)
        self.num_units, self.num_units_done, self.num_rejected = num_units, 0, 0
        self.has_started = False

    def line(self) -> str:
        return self.rows.line(
            f"units {self.num_units_done}/{self.num_units}",
            f"{self.rows.rate:,.1f} {self.noun}/s",
            f"{self.num_rejected:,} rejected",
        )


class BuildProgress:
    """Shows what a build has done: one line or bar for images, one for texts."""

    def __init__(self, display: Display | None = None) -> None:
        """Use a display; None: lines on stderr."""
        self._display = display or log_display()
        self._counts: dict[Modality, _Counts] = {}
        self._last = time.monotonic()
        self._scan = Task("planning", 0)

    def say(self, message: str) -> None:
        """Print one line that stays."""
        self._display.say(message)

    def scanned(self, num_samples: int) -> None:
        """Count samples of the corpus that were scanned for the plan."""
        self._scan.done += num_samples
        line = f"planning {self._scan.done:,} samples, {self._scan.rate:,.0f} samples/s"
        self._display.show(self._scan, line)

    def start(self, totals: Mapping[Modality, int], units: Mapping[Modality, int]) -> None:
        """Set how many rows and units are to be made."""
        self._display.hide(self._scan)
        self._last = time.monotonic()
        for modality, total in totals.items():
            self._counts[modality] = _Counts(modality, total, units[modality])
            if total:
                self._show(modality)

    def grow(self, modality: Modality, num_rows: int) -> None:
        """Add one unit of so many rows to the totals."""
        counts = self._counts[modality]
        counts.rows.total += num_rows
        counts.num_units += 1
        self._show(modality)

    def advance(self, modality: Modality, num_rows: int, num_rejected: int) -> None:
        """Count embedded and rejected rows; negative if a unit has to be made again."""
        counts = self._counts[modality]
        if not counts.has_started:  # where the other modality ended: the first rows took time too
            counts.has_started, counts.rows.started = True, self._last
        self._last = time.monotonic()
        counts.rows.done += num_rows
        counts.num_rejected += num_rejected
        self._show(modality)

    def unit_done(self, modality: Modality) -> None:
        """Count a committed unit."""
        counts = self._counts[modality]
        counts.num_units_done += 1
        self._show(modality, now=counts.num_units_done == counts.num_units)

    def show(self, task: Task, line: str) -> None:
        """Show where another task of the build is."""
        self._display.show(task, line)

    def stop(self) -> None:
        """Close the display."""
        self._display.stop()

    def _show(self, modality: Modality, *, now: bool = False) -> None:
        counts = self._counts[modality]
        self._display.show(counts.rows, counts.line(), now=now)
