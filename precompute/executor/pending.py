"""Which units of a teacher are still to make."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

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
                job = Job(unit, attempt, batch_size[modality], previous=done)
                if owns(unit.number) and (damaged := _damaged_files(cache.files, done, say)):
                    keeps_targets = layout.shard(teacher, modality, unit.number) not in damaged
                    job = replace(job, previous=None, at_stake=done if keeps_targets else None)
                jobs.append(job)
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


def _damaged_files(files: Storage, commit: UnitRecord, say: Say) -> set[str]:
    """Return the damaged files of a unit; without any, a retry may keep its other rows."""
    found: set[str] = set()
    for path, description in commit.files.items():
        try:
            is_same = files.describe(path)["sha256"] == description["sha256"]
        except FileNotFoundError:
            is_same = False
        if not is_same:
            say(f"warning: {path} is damaged; its whole unit is made again")
            found.add(path)
    return found
