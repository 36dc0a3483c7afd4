"""Proving a cache: every byte against its checksum, arrays against the catalog, nothing left over.

A flipped bit in a shard is silent to Zarr and to the memory map alike; only this finds it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from ..errors import CacheError
from . import layout
from .arrays import NORM_TOLERANCE
from .cache import Cache
from .catalog import Table
from .layout import MODALITIES, Modality
from .manifest import Manifest, TeacherRecord, Unit, UnitCommit
from .records import decode_record, sha256_hex
from .unfinished import read_unfinished
from .verify_indexes import check_indexes


@dataclass(slots=True)
class Report:
    """What verifying found."""

    faults: list[str] = field(default_factory=list[str])
    """One line each; none: the cache is what its records say."""

    notes: list[str] = field(default_factory=list[str])
    """Worth knowing, no fault: a commit that a killed process left for the next build to finish, or an
    index that is not used."""

    num_files: int = 0
    num_bytes: int = 0
    num_rows: dict[Modality, int] = field(default_factory=lambda: dict.fromkeys(MODALITIES, 0))
    """Rows whose values were looked at, over all teachers."""

    num_rejected: int = 0

    @property
    def is_sound(self) -> bool:
        """Say whether there is no fault."""
        return not self.faults


def verify_cache(cache: Cache, *, on_file: Callable[[str], None] = lambda path: None) -> Report:
    """Return what is wrong with a cache, reading every byte of it once.

    Args:
        cache: the cache as it was opened.
        on_file: called with each file's path before it is read.
    """
    return _Verifier(cache, on_file).run()


class _Verifier:
    def __init__(self, cache: Cache, on_file: Callable[[str], None]) -> None:
        self._cache, self._on_file = cache, on_file
        self._report = Report()
        self._paths = list(cache.files.walk())
        self._unfinished = read_unfinished(cache.files, self._paths)
        self._named: set[str] = set()
        self._damaged: set[str] = set()

    def run(self) -> Report:
        self._note_unfinished()
        self._check_generations()
        self._check_catalog()
        for record in self._cache.teacher_records.values():
            self._check_teacher(record)
        if not self._cache.teacher_records:
            self._fault("the cache has no teacher: nothing is embedded; run siglip2-cache build")
        self._check_indexes()
        self._check_orphans()
        return self._report

    def _fault(self, message: str) -> None:
        self._report.faults.append(message)

    def _note_unfinished(self) -> None:
        for record in sorted(self._unfinished.records):
            self._report.notes.append(f"{record} was not finished; run the same build again")
        self._report.faults += self._unfinished.damaged
        self._named |= self._unfinished.staged | self._unfinished.files.keys()

    # -- files

    def _check_file(self, path: str, described: Mapping[str, Any], owner: str) -> bool:
        """Say whether a file holds the bytes its record names."""
        self._named.add(path)
        self._on_file(path)
        try:
            data = self._cache.files.read(path)
        except OSError as error:
            self._fault(f"{path} cannot be read ({error.strerror}), {owner} names it")
            self._damaged.add(path)
            return False
        self._report.num_files += 1
        self._report.num_bytes += len(data)
        if len(data) == described["num_bytes"] and sha256_hex(data) == described["sha256"]:
            return True
        ahead = self._unfinished.files.get(path)
        if ahead and len(data) == ahead["num_bytes"] and sha256_hex(data) == ahead["sha256"]:
            return False  # an unfinished commit has put it there, ahead of its record
        self._damaged.add(path)
        size = f"{len(data):,} bytes where {described['num_bytes']:,} were written"
        same = "its bytes have changed since they were written"
        self._fault(
            f"{path} is damaged: {same if len(data) == described['num_bytes'] else size}; "
            f"{_remedy(path, owner)}"
        )
        return False

    def _check_generations(self) -> None:
        for generation in self._cache.manifest.generations:
            path = layout.generation_record(generation.number)
            self._named.add(path)
            record = decode_record(self._cache.files.read(path), where=path)
            for part, described in record["files"].items():
                self._check_file(part, described, path)

    # -- catalog

    def _check_catalog(self) -> None:
        tables: tuple[Table, ...] = ("samples", "captions", "texts", "views")
        parts = {p.path for t in tables for p in self._cache.manifest.parts(t)}
        if parts & self._damaged:
            return  # already named; what is read of them says nothing
        for modality in MODALITIES:
            self._check_row_numbers(modality)
        self._check_captions()
        self._check_views()

    def _check_row_numbers(self, modality: Modality) -> None:
        manifest = self._cache.manifest
        column, frame = (
            ("row", self._cache.samples())
            if modality == "image"
            else (
                "text_row",
                self._cache.texts(),
            )
        )
        name = "key" if modality == "image" else "text"
        found = frame.select(pl.col(column)).collect()[column].to_numpy()
        expected = planned_rows(manifest, modality)
        if not np.array_equal(found, expected):
            self._fault(
                f"catalog: the {column}s of {'samples' if name == 'key' else 'texts'} "
                f"({len(found):,}) are not those the plan records ({len(expected):,})"
            )
        num_unique = int(frame.select(pl.col(name).n_unique()).collect().item())
        if num_unique != len(found):
            self._fault(f"catalog: {len(found) - num_unique:,} {name}s stand twice")

    def _check_captions(self) -> None:
        captions = self._cache.captions()
        for column, frame in (("row", self._cache.samples()), ("text_row", self._cache.texts())):
            lost = captions.join(frame, on=column, how="anti").select(pl.len()).collect().item()
            if lost:
                self._fault(f"catalog: {lost:,} captions name a {column} that does not exist")
        num_captions = int(captions.select(pl.len()).collect().item())
        recorded = sum(g.num_new_captions for g in self._cache.manifest.generations)
        if num_captions != recorded:
            self._fault(f"catalog: {num_captions:,} captions where {recorded:,} were planned")

    def _check_views(self) -> None:
        num_views = self._cache.num_views
        if num_views == 1:
            return
        counts = self._cache.table("views").group_by("row").len().collect()
        if counts.height != self._cache.num_samples or (counts["len"] != num_views).any():
            self._fault(f"catalog: not every sample has {num_views} views")

    # -- teachers

    def _check_teacher(self, record: TeacherRecord) -> None:
        self._named.add(layout.teacher_record(record.name))
        self._check_metadata(record)
        commits = self._cache.commits(record.name)
        for message in commits.damaged:
            self._fault(f"{message}; run the same build again to make the unit anew")
        for modality in MODALITIES:
            done = commits.of(modality)
            open_units: list[int] = []
            for unit in self._cache.manifest.units(modality):
                commit = done.get(unit.number)
                if commit is None:
                    self._named |= _unit_files(record.name, unit)
                    if not _unit_files(record.name, unit) <= self._unfinished.files.keys():
                        open_units.append(unit.number)
                else:
                    self._check_unit(record, unit, commit)
            if open_units:
                self._fault(
                    f"{record.name}: {len(open_units):,} {modality} units are not embedded yet "
                    f"(first: {open_units[0]}); run the same build again"
                )

    def _check_metadata(self, record: TeacherRecord) -> None:
        latest = self._cache.manifest.latest.number
        owner, files = layout.teacher_record(record.name), record.files
        for generation in range(record.generation + 1, latest + 1):
            path = layout.arrays_record(record.name, generation)
            if not self._cache.files.exists(path):
                continue
            self._named.add(path)
            try:
                files = decode_record(self._cache.files.read(path), where=path)["files"]
                owner = path
            except CacheError as error:
                self._fault(f"{error}; remove it and run the same build again to make it anew")
                self._named |= {layout.array_metadata(record.name, m) for m in MODALITIES}
                return
        for path, described in files.items():
            self._check_file(path, described, owner)
        for modality in MODALITIES:
            path = layout.array_metadata(record.name, modality)
            if path in self._damaged or path in self._unfinished.files:
                continue
            shape = json.loads(self._cache.files.read(path))["shape"]
            expected = list(self._cache.manifest.array_layout(modality, record.embed_dim).shape)
            if shape != expected:
                self._fault(
                    f"{path} has shape {shape}, the catalog wants {expected}; "
                    "run the same build again"
                )

    def _check_unit(self, record: TeacherRecord, unit: Unit, commit: UnitCommit) -> None:
        path = layout.unit_record(record.name, unit.modality, unit.number, commit.attempt)
        sound = [self._check_file(p, d, path) for p, d in commit.files.items()]
        if commit.num_rows != unit.rows.count:
            self._fault(f"{path} has {commit.num_rows} rows where {unit.rows.count} were planned")
        elif all(sound) and layout.array_metadata(record.name, unit.modality) not in self._damaged:
            self._check_values(record, unit, commit, path)
            if unit.modality == "image":
                self._check_images(record, unit, commit, path)

    def _check_values(
        self, record: TeacherRecord, unit: Unit, commit: UnitCommit, path: str
    ) -> None:
        is_image = unit.modality == "image"
        targets = self._cache.image_targets if is_image else self._cache.text_targets
        try:
            values = targets(record.name).read_unit(unit.number)
        except CacheError as error:
            self._fault(str(error))
            return
        norms = np.linalg.norm(values.astype(np.float32), axis=-1).reshape(len(values), -1)
        is_rejected = np.zeros(len(values), np.bool_)
        is_rejected[[row - unit.rows.first for row in commit.rejected]] = True
        is_nan = np.isnan(norms).any(axis=1)
        is_unit = (np.abs(norms - 1) < NORM_TOLERANCE).all(axis=1)
        self._report.num_rows[unit.modality] += len(values)
        self._report.num_rejected += len(commit.rejected)
        wrong = {
            "rejected but not NaN": is_rejected & ~is_nan,
            "not finite, though not rejected": ~is_rejected & ~np.isfinite(norms).all(axis=1),
            "zero": ~is_rejected & (norms == 0).any(axis=1),
            "not of norm 1": ~is_rejected
            & ~is_unit
            & np.isfinite(norms).all(axis=1)
            & (norms != 0).all(axis=1),
        }
        for what, rows in wrong.items():
            if rows.any():
                first = unit.rows.first + int(np.flatnonzero(rows)[0])
                self._fault(
                    f"{record.name}: {int(rows.sum())} {unit.modality} rows of unit {unit.number} "
                    f"are {what} (first: row {first}, {path})"
                )

    def _check_images(
        self, record: TeacherRecord, unit: Unit, commit: UnitCommit, path: str
    ) -> None:
        part = layout.images_part(record.name, unit.number)
        frame = self._cache.seen(record.name, unit.number)
        rows = frame["row"].to_list()
        if rows != list(range(unit.rows.first, unit.rows.end)):
            self._fault(f"{part} does not hold the rows of {path}")
        nulls = set(frame.filter(pl.col("sha256").is_null())["row"])
        if nulls != set(commit.rejected):
            self._fault(f"{part} lacks the hash of rows that {path} does not list as rejected")

    def _check_indexes(self) -> None:
        found = check_indexes(self._cache, self._on_file)
        self._named |= found.known
        self._report.faults += found.faults
        self._report.notes += found.notes
        self._report.num_files += found.num_files
        self._report.num_bytes += found.num_bytes

    # -- what nobody names

    def _check_orphans(self) -> None:
        leftovers = 0
        for path in self._paths:
            if path in self._named:
                continue
            if layout.is_garbage_name(path):
                leftovers += 1
            elif not self._is_older_record(path):
                self._fault(f"{path} is named by no record; if it is not yours, remove it")
        if leftovers:
            self._report.notes.append(
                f"{leftovers} files of unfinished commits are left over; a finished build removes them"
            )

    def _is_older_record(self, path: str) -> bool:
        """Say whether a file is a unit's record (another attempt's, too) or an arrays record."""
        folder, _, name = path.rpartition("/")
        is_commits = folder in {layout.commits_folder(t) for t in self._cache.teachers}
        is_unit = layout.parse_unit_record(name) is not None
        return is_commits and (is_unit or name.startswith("arrays-"))


def planned_rows(manifest: Manifest, modality: Modality) -> Any:
    """Return every row number of a modality that was planned, ascending, int64."""
    spans = [g.span(modality) for g in manifest.generations]
    return np.concatenate([np.empty(0, np.int64), *[np.arange(s.first, s.end) for s in spans]])


def _unit_files(teacher: str, unit: Unit) -> set[str]:
    """Return the files that a unit's record would name: no strays where it is damaged or to come."""
    shard = layout.shard(teacher, unit.modality, unit.number)
    if unit.modality == "text":
        return {shard}
    return {shard, layout.images_part(teacher, unit.number)}


def _remedy(path: str, owner: str) -> str:
    if path.startswith(layout.TEACHERS) and "/commits/" in owner and "/arrays-" not in owner:
        stem = owner.rsplit("/", 1)[1].split(".")[0]
        folder = owner.rsplit("/", 1)[0]
        return f"remove {folder}/{stem}*.json and run the same build again to make the unit anew"
    if path.endswith("zarr.json"):
        return "restore it from a backup, or write it anew from docs/format.md"
    return "restore it from a backup, or build the cache anew"
