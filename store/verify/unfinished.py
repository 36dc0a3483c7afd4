"""Unfinished commits: their intent exists, their record does not.

A process that is killed while it commits leaves one. It is not damaged: all staged files are durable, and
the next build first rolls it forward (format/transaction.py).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ...errors import DamagedCacheError
from ..format.transaction import intent_path, read_intent
from ..io.storage import Storage

_INTENT = ".intent"


@dataclass(slots=True)
class Unfinished:
    """The unfinished commits of a cache."""

    records: set[str] = field(default_factory=set[str])
    """Paths of the records that the next build writes."""

    files: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    """Descriptions of the files of these records by final path."""

    staged: set[str] = field(default_factory=set[str])
    """Paths of the intents, and of the partial files they name."""

    damaged: list[str] = field(default_factory=list[str])
    """A message for each intent that cannot be read, with the remedy."""


def read_unfinished(files: Storage, paths: Iterable[str]) -> Unfinished:
    """Return the unfinished commits of a cache; ``paths`` are all its files."""
    found = Unfinished()
    for path in paths:
        record = path.removesuffix(_INTENT)
        if path != intent_path(record) or files.exists(record):
            continue
        try:
            intent = read_intent(files.read(path), where=path)
        except FileNotFoundError:  # another process has finished it since
            continue
        except DamagedCacheError as error:
            found.damaged.append(f"{error}; remove that file and run the same build again")
            continue
        found.records.add(record)
        found.files |= intent.files
        found.staged |= {path, *intent.staged.values()}
    return found
