"""Records of units: which units of a teacher are committed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from sys import intern
from typing import Any

from ...errors import DamagedCacheError
from ..io.read_many import read_many
from ..io.storage import Storage
from . import layout
from .layout import Modality
from .record_fields import Fields, read_fields


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitRecord:
    """The record of a committed unit."""

    modality: Modality
    unit: int
    attempt: int
    num_rows: int
    rejected: Mapping[int, str]
    """The reason for each rejected row."""

    files: Mapping[str, Mapping[str, Any]]
    batch_size: int
    """Size of the smallest forward pass; 0 for kept pixels, which need none."""

    provenance: Mapping[str, Any]


@dataclass(slots=True, kw_only=True)
class CommittedUnits:
    """The committed units of a teacher, and the damaged records."""

    units: dict[tuple[Modality, int], UnitRecord] = field(
        default_factory=dict[tuple[Modality, int], UnitRecord]
    )
    next_attempt: dict[tuple[Modality, int], int] = field(
        default_factory=dict[tuple[Modality, int], int]
    )
    damaged: list[str] = field(default_factory=list[str])
    """A message for each unit whose latest record is damaged: the unit is not committed."""

    def units_of(self, modality: Modality) -> dict[int, UnitRecord]:
        """Return the committed units of one modality by number."""
        return {unit: record for (m, unit), record in self.units.items() if m == modality}

    def rejected(self, modality: Modality) -> Iterator[tuple[int, str]]:
        """Yield (row, reason) of every rejected row, ascending."""
        for _, record in sorted(self.units_of(modality).items()):
            yield from sorted(record.rejected.items())

    def num_rejected(self, modality: Modality) -> int:
        """Return the number of rejected rows."""
        return sum(len(record.rejected) for record in self.units_of(modality).values())


def read_committed_units(
    files: Storage, folder: str, *, shard_rows: int, previous: CommittedUnits | None = None
) -> CommittedUnits:
    """Return the committed units of a teacher, or of kept pixels, and messages about damaged records.

    A billion samples have 122,000 records: each takes some 50 microseconds and 1.4 kB of memory.

    Args:
        files: the cache.
        folder: the folder of their records.
        shard_rows: rows of a unit.
        previous: the result of an earlier call. Records never change, so these are not read again.
    """
    found = CommittedUnits()
    for name in files.names(folder):
        parsed = layout.parse_unit_record(name)
        if parsed is not None:
            modality, unit, attempt = parsed
            key = (modality, unit)
            found.next_attempt[key] = max(found.next_attempt.get(key, 0), attempt + 1)
    unread: list[tuple[tuple[Modality, int], str]] = []
    for key, next_attempt in sorted(found.next_attempt.items()):
        record = previous.units.get(key) if previous else None
        if record is not None and record.attempt == next_attempt - 1:
            found.units[key] = record
        else:
            name = layout.unit_record_name(*key, next_attempt - 1)
            unread.append((key, f"{folder}/{name}"))
    parser = _Parser(shard_rows, has_batches=folder != layout.PIXELS_COMMITS)
    data = read_many(files.read, [path for _, path in unread])
    for (key, path), record_data in zip(unread, data, strict=True):
        try:
            fields = read_fields(record_data, where=files.where(path))
            found.units[key] = parser.parse(fields, (*key, found.next_attempt[key] - 1))
        except DamagedCacheError as error:
            found.damaged.append(str(error))
    return found


class _Parser:
    """Parses unit records. Equal parts of many records are shared, which halves their memory."""

    def __init__(self, shard_rows: int, *, has_batches: bool) -> None:
        self._shard_rows, self._has_batches = shard_rows, has_batches
        self._provenances: dict[str, Mapping[str, Any]] = {}
        self._nothing_rejected: Mapping[int, str] = {}

    def parse(self, fields: Fields, key: tuple[Modality, int, int]) -> UnitRecord:
        """Return a record. ``key`` is the modality, unit and attempt in the name of its file."""
        modality, unit, attempt = key
        recorded = (fields.text("modality"), fields.count("unit"), fields.count("attempt"))
        first, num_rows = fields.count("first_row"), fields.count("num_rows", most=self._shard_rows)
        if recorded != key or first != unit * self._shard_rows:
            fields.refuse("unit", f"{unit} from row {unit * self._shard_rows}, as in its file name")
        provenance = fields.mapping("provenance")
        rejected = {
            each.count("row", least=first, most=first + num_rows - 1): intern(each.text("reason"))
            for each in fields.entries("rejected")
        }
        return UnitRecord(
            modality=modality,
            unit=unit,
            attempt=attempt,
            num_rows=num_rows,
            rejected=rejected or self._nothing_rejected,
            files={
                path: {intern(name): value for name, value in description.items()}
                for path, description in fields.files().items()
            },
            batch_size=fields.count("batch_size") if self._has_batches else 0,
            provenance=self._provenances.setdefault(repr(provenance), provenance),
        )
