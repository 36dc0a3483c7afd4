"""Telling a person how a build goes: a live display on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from ...formatting import format_seconds, short_line
from ...store.format.layout import Modality
from ...streams import say_on_stderr

if TYPE_CHECKING:
    from rich.progress import TaskID

_PLAIN_INTERVAL_S = 10.0
_NOUN: dict[Modality, str] = {"image": "images", "text": "texts"}


class Progress(Protocol):
    """What a build reports while it runs."""

    def say(self, message: str) -> None:
        """Print one line that stays."""
        ...

    def start(self, totals: Mapping[Modality, int], units: Mapping[Modality, int]) -> None:
        """Say how many rows and units are to be made."""
        ...

    def grow(self, modality: Modality, num_rows: int) -> None:
        """Say that one more unit is to be made."""
        ...

    def advance(self, modality: Modality, num_rows: int, num_rejected: int) -> None:
        """Count embedded and rejected rows; less than none where a unit is made again."""
        ...

    def unit_done(self, modality: Modality) -> None:
        """Count a committed unit."""
        ...

    def stop(self) -> None:
        """Leave the display."""
        ...


class Tally:
    """The counts behind both displays."""

    def __init__(self) -> None:
        self.totals: dict[Modality, int] = {}
        self.units: dict[Modality, int] = {}
        self.done: dict[Modality, int] = {"image": 0, "text": 0}
        self.units_done: dict[Modality, int] = {"image": 0, "text": 0}
        self.num_rejected: dict[Modality, int] = {"image": 0, "text": 0}
        self._started: dict[Modality, float] = {}
        self._last = time.monotonic()

    def start(self, totals: Mapping[Modality, int], units: Mapping[Modality, int]) -> None:
        self.totals, self.units = dict(totals), dict(units)
        self._last = time.monotonic()

    def grow(self, modality: Modality, num_rows: int) -> None:
        self.totals[modality] += num_rows
        self.units[modality] += 1

    def advance(self, modality: Modality, num_rows: int, num_rejected: int) -> None:
        # A modality begins where the one before ended: its first rows took time, too.
        self._started.setdefault(modality, self._last)
        self._last = time.monotonic()
        self.done[modality] += num_rows
        self.num_rejected[modality] += num_rejected

    def rate(self, modality: Modality) -> float:
        """Return rows per second since the teacher turned to this modality."""
        elapsed = time.monotonic() - self._started.get(modality, time.monotonic())
        return self.done[modality] / elapsed if elapsed > 0 else 0.0

    def line(self, modality: Modality) -> str:
        rate, left = self.rate(modality), self.totals[modality] - self.done[modality]
        eta = f", {format_seconds(left / rate)} left" if rate and left > 0 else ""
        return (
            f"{_NOUN[modality]} {self.done[modality]:,}/{self.totals[modality]:,}, "
            f"units {self.units_done[modality]}/{self.units[modality]}, "
            f"{rate:,.1f} {_NOUN[modality]}/s{eta}, {self.num_rejected[modality]:,} rejected"
        )


class PlainProgress:
    """A line every ten seconds and when the last unit is committed: for logs."""

    def __init__(self) -> None:
        self._tally = Tally()
        self._last = 0.0

    def say(self, message: str) -> None:
        say_on_stderr(message)

    def start(self, totals: Mapping[Modality, int], units: Mapping[Modality, int]) -> None:
        self._tally.start(totals, units)
        self._last = time.monotonic()

    def grow(self, modality: Modality, num_rows: int) -> None:
        self._tally.grow(modality, num_rows)

    def advance(self, modality: Modality, num_rows: int, num_rejected: int) -> None:
        self._tally.advance(modality, num_rows, num_rejected)
        if time.monotonic() - self._last > _PLAIN_INTERVAL_S:
            self._last = time.monotonic()
            self.say(self._tally.line(modality))

    def unit_done(self, modality: Modality) -> None:
        self._tally.units_done[modality] += 1
        if self._tally.units_done[modality] == self._tally.units[modality]:
            self.say(self._tally.line(modality))

    def stop(self) -> None:
        return


class RichProgress:
    """Two bars on a terminal: images and texts."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars

        self._tally = Tally()
        self._bars = Bars(
            TextColumn("{task.description:<7}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[line]}"),
            console=Console(stderr=True),
        )
        self._tasks: dict[Modality, TaskID] = {}

    def say(self, message: str) -> None:
        self._bars.console.print(short_line(message), markup=False, highlight=False)

    def start(self, totals: Mapping[Modality, int], units: Mapping[Modality, int]) -> None:
        self._tally.start(totals, units)
        self._bars.start()
        for modality, total in totals.items():
            if total:
                self._add_task(modality)

    def grow(self, modality: Modality, num_rows: int) -> None:
        self._tally.grow(modality, num_rows)
        if modality in self._tasks:
            self._show(modality, 0)
        else:
            self._add_task(modality)

    def advance(self, modality: Modality, num_rows: int, num_rejected: int) -> None:
        self._tally.advance(modality, num_rows, num_rejected)
        self._show(modality, num_rows)

    def unit_done(self, modality: Modality) -> None:
        self._tally.units_done[modality] += 1
        self._show(modality, 0)

    def stop(self) -> None:
        self._bars.stop()

    def _add_task(self, modality: Modality) -> None:
        total, line = self._tally.totals[modality], self._tally.line(modality)
        self._tasks[modality] = self._bars.add_task(_NOUN[modality], total=total, line=line)

    def _show(self, modality: Modality, num_rows: int) -> None:
        total, line = self._tally.totals[modality], self._tally.line(modality)
        self._bars.update(self._tasks[modality], advance=num_rows, total=total, line=line)


def make_progress() -> Progress:
    """Return the display that fits where stderr goes."""
    return RichProgress() if sys.stderr.isatty() else PlainProgress()
