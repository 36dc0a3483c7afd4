"""Verification of a cache: every byte against its checksum, arrays against the catalog, no other files.

Neither Zarr nor a memory map detects a flipped bit in a shard.
"""

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from itertools import starmap
from typing import TypeVar

from ...errors import CacheError
from ...formatting import format_count
from ...progress import Display, TaskProgress
from ..cache import Cache
from ..format import layout
from ..format.layout import MODALITIES, ArrayName, Modality
from ..format.manifest import Unit
from ..format.record_fields import read_fields
from ..format.shard import ArrayLayout, parse_metadata
from ..format.teacher_record import TeacherRecord
from ..format.unit_records import UnitRecord
from ..io.foreign_files import is_stray
from ..io.parallel import map_parallel
from ..search.index_verify import check_indexes
from .catalog import check_catalog
from .files import Checked, FileChecker
from .kept_pixels import check_kept_pixels
from .missing_records import MissingRecords
from .unfinished import read_unfinished
from .units import UnitChecker

_Found = TypeVar("_Found")

_PARALLEL_UNITS = 8
"""Units of a cache in an object store that are checked in parallel. A piece of each is in memory."""


@dataclass(slots=True)
class Report:
    """The result of verification."""

    faults: list[str] = field(default_factory=list[str])
    """A line for each fault; empty for a sound cache."""

    notes: list[str] = field(default_factory=list[str])
    """Findings that are not faults, such as an unfinished commit or an index that is not used."""

    num_files: int = 0
    num_bytes: int = 0
    num_rows: dict[Modality, int] = field(default_factory=lambda: dict.fromkeys(MODALITIES, 0))
    """Rows whose values were checked, over all teachers."""

    num_rejected: int = 0

    @property
    def is_sound(self) -> bool:
        """Whether there are no faults."""
        return not self.faults


def verify_cache(
    cache: Cache,
    *,
    on_file: Callable[[str], None] = lambda path: None,
    progress: TaskProgress | None = None,
) -> Report:
    """Return the faults of a cache, reading every byte of it once.

    Args:
        cache: the cache.
        on_file: called with the path of each file that was read, in order.
        progress: shows how many files were read; None: nothing is shown.
    """
    progress = progress or TaskProgress(Display())

    def count(path: str) -> None:
        progress.advance(1)
        on_file(path)

    verifier = _Verifier(cache, count)
    progress.start("verifying files", verifier.num_files)
    return verifier.run()


class _Verifier:
    def __init__(self, cache: Cache, on_file: Callable[[str], None]) -> None:
        self._cache, self._on_file = cache, on_file
        self._report = Report()
        self._paths = list(cache.files.walk())
        self._unfinished = read_unfinished(cache.files, self._paths)
        self._checker = FileChecker(cache.files, self._unfinished.files)
        self._missing = MissingRecords(
            cache, (path for path in self._paths if path not in self._unfinished.files)
        )
        self._named: set[str] = set()

    @property
    def num_files(self) -> int:
        """Number of files in the folder of the cache."""
        return len(self._paths)

    def run(self) -> Report:
        self._note_unfinished()
        for generation in self._cache.manifest.generations:
            self._named.add(layout.generation_record(generation.number))
        self._note(check_catalog(self._cache, self._checker))
        for record in self._cache.teacher_records.values():
            self._check_teacher(record)
        self._note(check_kept_pixels(self._cache, self._checker, self._map_units))
        self._check_indexes()
        lost = self._check_orphans()
        if not self._cache.teacher_records and not any(map(layout.is_teacher_record, lost)):
            self._fault("the cache has no teacher and no embeddings; run siglip2-cache build")
        return self._report

    def _fault(self, message: str) -> None:
        self._report.faults.append(message)

    def _note(self, found: Checked) -> None:
        for path in found.named:
            self._on_file(path)
        self._named.update(found.named)
        self._report.faults += found.faults
        self._report.num_files += found.num_files
        self._report.num_bytes += found.num_bytes

    def _note_unfinished(self) -> None:
        for record in sorted(self._unfinished.records):
            self._report.notes.append(f"{record} is unfinished; run the same build again")
        self._report.faults += self._unfinished.damaged
        self._named |= self._unfinished.staged | self._unfinished.files.keys()

    def _check_teacher(self, record: TeacherRecord) -> None:
        self._named.add(layout.teacher_record(record.name))
        is_raw = self._check_metadata(record)
        self._check_maps(record)
        commits = self._cache.commits(record.name)
        for message in commits.damaged:
            self._fault(f"{message}; run the same build again to embed the unit again")
        for modality in MODALITIES:
            done = commits.units_of(modality)
            uncommitted: list[int] = []
            committed: list[tuple[Unit, UnitRecord]] = []
            for unit in self._cache.manifest.units(modality):
                commit = done.get(unit.number)
                if commit is None:
                    files = _unit_files(record, unit)
                    self._named |= files
                    if not files <= self._unfinished.files.keys():
                        uncommitted.append(unit.number)
                else:
                    committed.append((unit, commit))
            checker = UnitChecker(self._cache, record, modality, self._checker, is_raw=is_raw)
            for found in self._map_units(checker.check, committed):
                self._note(found.checked)
                self._report.num_rows[modality] += found.num_rows
                self._report.num_rejected += found.num_rejected
            if uncommitted:
                self._fault(
                    f"{record.name}: {len(uncommitted):,} {modality} units are not embedded yet "
                    f"(first: {uncommitted[0]}); run the same build again"
                )

    def _map_units(
        self,
        check: Callable[[Unit, UnitRecord], _Found],
        committed: Iterable[tuple[Unit, UnitRecord]],
    ) -> Generator[_Found]:
        """Yield the result of checking each unit, in order; several at a time in an object store."""
        if not self._cache.files.is_remote:
            yield from starmap(check, committed)
            return
        results = map_parallel(
            lambda each: check(*each),
            committed,
            num_threads=_PARALLEL_UNITS,
            num_ahead=2 * _PARALLEL_UNITS,
        )
        yield from (found for _, found in results)

    def _layouts(self, record: TeacherRecord) -> list[ArrayLayout]:
        return self._cache.manifest.layouts(record.embed_dim, record.encoding, record.patches)

    def _check_metadata(self, record: TeacherRecord) -> dict[ArrayName, bool]:
        """Check the metadata of arrays against their record and the catalog.

        Returns:
            Whether the shards of each array with sound metadata contain raw rows.
        """
        latest = self._cache.manifest.latest.number
        owner, files = layout.teacher_record(record.name), record.files
        arrays = {layout.array_metadata(record.name, each.name) for each in self._layouts(record)}
        files = {path: each for path, each in files.items() if path in arrays}
        if self._missing.has_later_generation:  # arrays may have grown for it
            latest = max([latest, *self._arrays_records(record.name)])
        for generation in range(record.generation + 1, latest + 1):
            path = layout.arrays_record(record.name, generation)
            if not self._cache.files.exists(path):
                continue
            self._named.add(path)
            try:
                files = read_fields(self._cache.files.read(path), where=path).files()
                owner = path
            except CacheError as error:
                self._fault(f"{error}; remove it and run the same build again")
                self._named |= arrays
                return {}
        found = Checked()
        data = {
            path: self._checker.read(path, description, owner, found)
            for path, description in files.items()
        }
        is_raw: dict[ArrayName, bool] = {}
        for array in self._layouts(record):
            path = layout.array_metadata(record.name, array.name)
            text = data.get(path)
            if text is None:
                continue
            try:
                metadata = parse_metadata(text, where=path)
            except CacheError as error:
                found.faults.append(str(error))
                continue
            is_raw[array.name] = array.matches_map(metadata)
            shape = metadata.get("shape")
            may_differ = path in self._unfinished.files or self._missing.has_later_generation
            if shape != list(array.shape) and not may_differ:
                found.faults.append(
                    f"{path} has shape {shape}, the catalog needs {list(array.shape)}; "
                    "run the same build again"
                )
        self._note(found)
        return is_raw

    def _arrays_records(self, teacher: str) -> list[int]:
        """Return the generations with a record of the array shapes of a teacher."""
        names = self._cache.files.names(layout.commits_folder(teacher))
        found = map(layout.parse_arrays_record, names)
        return [generation for generation in found if generation is not None]

    def _check_maps(self, record: TeacherRecord) -> None:
        """Check the rotation of int8 targets and the map of patch targets."""
        arrays = {layout.array_metadata(record.name, each.name) for each in self._layouts(record)}
        found, owner = Checked(), layout.teacher_record(record.name)
        for path in sorted(record.files.keys() - arrays):
            self._checker.check(path, record.files[path], owner, found)
        try:
            self._cache.codec(record.name)
            self._cache.patch_map(record.name)
        except CacheError as error:
            if not found.faults:
                found.faults.append(str(error))
        self._note(found)

    def _check_indexes(self) -> None:
        found = check_indexes(self._cache, self._on_file)
        self._named |= found.named
        self._report.faults += found.faults
        self._report.notes += found.notes
        self._report.num_files += found.num_files
        self._report.num_bytes += found.num_bytes

    def _check_orphans(self) -> set[str]:
        """Report files that no record names; return the records that are missing."""
        leftovers, strays, lost = 0, list[str](), dict[str, list[str]]()
        for path in self._paths:
            if path in self._named:
                continue
            if is_stray(path):
                strays.append(path)
            elif layout.is_garbage_name(path):
                leftovers += 1
            elif (record := self._missing.record_of(path)) is not None:
                lost.setdefault(record, []).append(path)
            elif not self._is_older_record(path):
                self._fault(f"{path} is in no record; remove it unless you put it there")
        for record, paths in lost.items():
            self._note_missing(record, paths)
        if strays:
            self._report.notes.append(
                f"ignored: {format_count(len(strays), 'file')} of the desktop or the file system, the "
                f"first {strays[0]}"
            )
        if leftovers:
            self._report.notes.append(
                f"{leftovers} temporary files of interrupted commits; a finished build removes them"
            )
        return set(lost)

    def _note_missing(self, record: str, paths: list[str]) -> None:
        """Report a record that is missing; another process may have written it since the cache was opened."""
        if self._cache.files.exists(record):
            self._report.notes.append(f"{record} was written meanwhile; verify again")
            return
        self._fault(
            f"{record} is missing, without which {format_count(len(paths), 'file')} (first: {paths[0]}) "
            "cannot be used; copy it from where the cache came from, and remove nothing"
        )

    def _is_older_record(self, path: str) -> bool:
        """Return whether a file is a record of any attempt at a unit, or of array shapes."""
        folder, _, name = path.rpartition("/")
        folders = {layout.commits_folder(t) for t in self._cache.teachers}
        is_commits = folder in {*folders, layout.PIXELS_COMMITS}
        is_unit = layout.parse_unit_record(name) is not None
        return is_commits and (is_unit or name.startswith("arrays-"))


def _unit_files(record: TeacherRecord, unit: Unit) -> set[str]:
    """Return the files that the record of a unit names or would name."""
    found = {layout.shard(record.name, unit.modality, unit.number)}
    if unit.modality == "image":
        found.add(layout.images_part(record.name, unit.number))
        if record.patches is not None:
            found.add(layout.shard(record.name, "patch", unit.number))
    return found
