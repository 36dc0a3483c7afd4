"""Which units of a teacher are still to make."""

from collections.abc import Callable, Mapping, Sequence

from ...store.cache import Cache
from ...store.format import layout
from ...store.format.layout import MODALITIES, Modality
from ...store.format.transaction import roll_forward
from ...store.format.unit_records import UnitRecord
from ...store.io.storage import Storage
from .unit import Job

Say = Callable[[str], None]

_SHOWN = 5
"""Unit numbers shown in a message."""


def roll_forward_units(files: Storage, teacher: str) -> None:
    """Finish commits of units whose process died between the intent and the record."""
    folder = layout.commits_folder(teacher)
    for name in files.names(folder):
        if name.endswith(".intent"):
            roll_forward(files, f"{folder}/{name.removesuffix('.intent')}")


def find_jobs(
    cache: Cache,
    teacher: str,
    *,
    batch_size: Mapping[Modality, int],
    retry_rejected: bool,
    say: Say,
    owns: Callable[[int], bool] = lambda unit: True,
) -> list[Job]:
    """Return the units to make, images first, by number.

    Args:
        cache: the cache as it is now.
        teacher: its name.
        batch_size: samples, or texts, in one batch.
        retry_rejected: also return units with rejected rows.
        say: called with a warning about each damaged unit, which is made again.
        owns: returns whether this process retries the rows of a unit, given its number; only then are the
            unit's files read.
    """
    commits = cache.commits(teacher)
    for message in commits.damaged:
        say(f"warning: {message}; the unit is made again")
    jobs: list[Job] = []
    for modality in MODALITIES:
        for unit in cache.manifest.units(modality):
            attempt = commits.next_attempt.get((modality, unit.number), 0)
            done = commits.units.get((modality, unit.number))
            if done is None:
                jobs.append(Job(unit, attempt, batch_size[modality]))
            elif done.rejected and retry_rejected:
                is_sound = not owns(unit.number) or _is_sound(cache.files, done, say)
                previous = done if is_sound else None
                jobs.append(Job(unit, attempt, batch_size[modality], previous=previous))
    return jobs


def describe_missing(cache: Cache, jobs: Sequence[Job]) -> str:
    """Return which units are missing and what to do, for a message."""
    parts: list[str] = []
    for modality in MODALITIES:
        numbers = [job.unit.number for job in jobs if job.unit.modality == modality]
        if numbers:
            shown = ", ".join(map(str, numbers[:_SHOWN])) + (
                ", ..." if len(numbers) > _SHOWN else ""
            )
            num_all = len(list(cache.manifest.units(modality)))
            parts.append(f"{len(numbers):,} of {num_all:,} {modality} units are missing ({shown})")
    return f"{' and '.join(parts)}; restart the ranks that ended early, or the whole build"


def _is_sound(files: Storage, commit: UnitRecord, say: Say) -> bool:
    """Return whether the files of a unit are intact, so that a retry may keep its other rows."""
    for path, description in commit.files.items():
        try:
            is_same = files.describe(path)["sha256"] == description["sha256"]
        except FileNotFoundError:
            is_same = False
        if not is_same:
            say(f"warning: {path} is damaged; its whole unit is made again")
            return False
    return True
