"""Writing a cache again with its targets stored in another way. No teacher and no corpus are needed.

Each generation, teacher and unit is a commit, in the order of docs/reference/format.md, so a conversion
may be killed at any time. Run again it adds what is missing: after an interruption, or when the source has
grown.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DamagedCacheError, SettingError
from ..formatting import format_bytes, format_count
from ..progress import Display, TaskProgress
from .cache import Cache, refuse_foreign_folder
from .format import layout
from .format.layout import MODALITIES
from .format.manifest import Unit
from .format.record_fields import read_fields
from .format.row_encoding import FLOAT16, RowCodec, RowEncoding, make_codec, parse_encoding
from .format.shard import encode_shard
from .format.teacher_files import commit_teacher, grow_arrays
from .format.teacher_record import Distortion, TeacherRecord
from .format.transaction import Transaction, clear_garbage, roll_forward
from .format.unit_records import UnitRecord
from .io.location import Location, lies_in
from .io.storage import Storage, open_storage
from .pairs import choose_pairs
from .targets.distortion import (
    BUDGET,
    check_budget,
    distortion_line,
    measure_distortion,
    refuse_distorted_rows,
    refuse_distortion,
    squared_error,
)

_OF_ENCODING = ("format_version", "distortion", "patches", "files", "checksum")
"""Fields of a teacher's record that are written anew, besides ``dtype``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """The result of a conversion."""

    num_units: int
    """Units that this run wrote."""

    num_bytes_before: int
    """Bytes of the units of all teachers in the source."""

    num_bytes: int
    """The same in the new cache."""

    distortions: dict[str, Distortion]
    """By teacher with int8 targets."""


def convert_cache(
    cache: Cache,
    out: Location,
    *,
    targets: str,
    budget: float = BUDGET,
    progress: TaskProgress | None = None,
) -> Converted:
    """Write a cache again with other targets; catalog, kept pixels and records are copied, indexes are not.

    Safe to kill at any time and to run again.

    Args:
        cache: the source, which is only read.
        out: folder or URL of the new cache, or of an earlier conversion of the same one.
        targets: ``float16`` or ``int8``.
        budget: largest change of the soft targets by int8, as a share of their entropy.
        progress: shows the units.

    Raises:
        SettingError: ``out`` holds something else, or the change is above the budget, or the budget is none.
        DamagedCacheError: a file of the source does not match its record.
    """
    check_budget(budget)
    return _Conversion(cache, out, parse_encoding(targets), budget, progress).run()


def converted_lines(found: Converted) -> list[str]:
    """Return the result of a conversion for people."""
    before, after = found.num_bytes_before, found.num_bytes
    return [
        f"converted  {format_count(found.num_units, 'unit')}; targets take {format_bytes(after)}, "
        f"{after / max(1, before):.2f} of {format_bytes(before)}",
        *(
            f"{name:<10} {distortion_line(each, 'int8')}"
            for name, each in found.distortions.items()
        ),
    ]


class _Conversion:
    def __init__(
        self,
        cache: Cache,
        out: Location,
        encoding: RowEncoding,
        budget: float,
        progress: TaskProgress | None,
    ) -> None:
        self._cache, self._encoding, self._budget = cache, encoding, budget
        self._out: Storage = open_storage(out)
        self._progress = progress or TaskProgress(Display())

    def run(self) -> Converted:
        self._refuse_other_folder()
        for path in [path for path in self._out.walk() if path.endswith(".intent")]:
            roll_forward(self._out, path.removesuffix(".intent"))
        for generation in self._cache.manifest.generations:
            self._copy_generation(generation.number, generation.digest)
        for record in self._cache.teacher_records.values():
            self._add_teacher(record)
        new = Cache(self._out.root, corpus_roots={})
        num_units = sum(self._convert_teacher(new, name) for name in self._cache.teachers)
        self._copy_pixels()
        clear_garbage(self._out)
        new = new.renewed()
        return Converted(
            num_units=num_units,
            num_bytes_before=_bytes_of_units(self._cache),
            num_bytes=_bytes_of_units(new),
            distortions={
                name: each.distortion
                for name, each in new.teacher_records.items()
                if each.distortion is not None
            },
        )

    def _refuse_other_folder(self) -> None:
        """Refuse to write into the source, a file, or a folder that holds something else."""
        out, source = self._out.root, self._cache.root
        if lies_in(out, source) and lies_in(source, out):
            raise SettingError(f"{out} is the cache itself; name another folder")
        if lies_in(out, source) or lies_in(source, out):
            raise SettingError(
                f"{out} and {source} lie in one another; name a folder beside the cache"
            )
        if not self._out.exists(layout.CACHE_RECORD):
            refuse_foreign_folder(self._out)
            self._out.check_exclusive()

    def _copy_generation(self, number: int, digest: str) -> None:
        path = layout.generation_record(number)
        if not self._out.exists(path):
            self._copy(path)
        found = read_fields(self._out.read(path), where=self._out.where(path)).text("digest")
        if found != digest:
            raise SettingError(
                f"{self._out.root} holds another corpus than {self._cache.root} ({path} has another "
                "digest); name another folder"
            )

    def _copy(self, record: str) -> None:
        """Copy a record with its files, streamed, each checked against it."""
        files, out = self._cache.files, self._out
        fields = read_fields(files.read(record), where=files.where(record))
        transaction = Transaction(out, record)
        for path, description in fields.files().items():
            try:
                with transaction.adding(
                    path, **_without(description, "num_bytes", "sha256")
                ) as append:
                    for piece in files.pieces(path):
                        append(piece)
            except FileNotFoundError:
                raise _damaged(files, path, record) from None
            if transaction.descriptions[path] != description:
                transaction.abandon()
                raise _damaged(files, path, record)
        transaction.commit(_without(fields.values, "files", "checksum"))

    def _add_teacher(self, record: TeacherRecord) -> None:
        path, cache = layout.teacher_record(record.name), self._cache
        if not self._out.exists(path):
            fields = read_fields(cache.files.read(path), where=cache.files.where(path)).values
            if record.encoding == self._encoding:
                codec, distortion = cache.codec(record.name), record.distortion
            else:
                codec = make_codec(self._encoding, record.embed_dim)
                distortion = self._measure(record, codec)
            # The dtype keeps its place: a float16 teacher has the bytes that a build writes.
            fields = {**fields, "dtype": codec.encoding.name}
            commit_teacher(
                self._out,
                cache.manifest,
                _without(fields, *_OF_ENCODING),
                codec,
                distortion,
                cache.patch_map(record.name),
            )
        new = Cache(self._out.root, corpus_roots={})
        found = new.teacher(record.name)
        if found.identity != record.identity or found.encoding != self._encoding:
            raise SettingError(
                f"teacher {record.name} of {self._out.root} is another one, or has {found.encoding.name} "
                "targets; name another folder"
            )
        grow_arrays(self._out, cache.manifest, found)

    def _measure(self, record: TeacherRecord, codec: RowCodec) -> Distortion | None:
        if codec.encoding == FLOAT16:
            return None
        rows, text_rows = choose_pairs(self._cache, record.name)
        found = measure_distortion(
            codec,
            self._cache.image_targets(record.name).read(rows),
            self._cache.text_targets(record.name).read(text_rows),
            scale=math.exp(record.logit_scale),
            bias=record.logit_bias,
        )
        refuse_distortion(found, self._budget, codec.encoding.name)
        self._progress.say(f"{record.name}: {distortion_line(found, codec.encoding.name)}")
        return found

    def _convert_teacher(self, new: Cache, teacher: str) -> int:
        """Convert the units that the new cache lacks, or of which the source has a later attempt."""
        done = new.commits(teacher).units
        wanted: list[tuple[Unit, UnitRecord]] = []
        commits = self._cache.commits(teacher)
        for message in commits.damaged:
            self._progress.say(f"warning: {message}; the unit is left out")
        for modality in MODALITIES:
            for unit in self._cache.manifest.units(modality):
                commit = commits.units.get((modality, unit.number))
                earlier = done.get((modality, unit.number))
                if commit and (earlier is None or earlier.attempt < commit.attempt):
                    wanted.append((unit, commit))
        self._progress.start(f"converting {teacher}", sum(u.rows.count for u, _ in wanted))
        for unit, commit in wanted:
            self._convert_unit(new, teacher, unit, commit)
            self._progress.advance(unit.rows.count)
        return len(wanted)

    def _convert_unit(self, new: Cache, teacher: str, unit: Unit, commit: UnitRecord) -> None:
        files, modality = self._cache.files, unit.modality
        path = layout.unit_record(teacher, modality, unit.number, commit.attempt)
        shard = layout.shard(teacher, modality, unit.number)
        for each, description in commit.files.items():  # else the new checksums would hide damage
            if not _is_intact(files, each, description):
                raise _damaged(files, each, path)
        stored = self._encode(new, teacher, unit, commit)
        transaction = Transaction(self._out, path)
        array = new.array_layout(modality, teacher)
        transaction.add(shard, encode_shard(array, stored))
        rest = commit.files.keys() - {shard}
        patches = layout.shard(teacher, "patch", unit.number)
        if patches in rest:  # perhaps compressed: the new array has raw rows
            transaction.add(patches, self._encode_patches(teacher, unit))
        for other in rest - {patches}:
            transaction.add(other, files.read(other))
        fields = read_fields(files.read(path), where=files.where(path)).values
        provenance = dict(commit.provenance)
        if self._cache.teacher(teacher).encoding != self._encoding:
            provenance["converted_from"] = self._cache.teacher(teacher).encoding.name
        transaction.commit(
            {**_without(fields, "format_version", "files", "checksum"), "provenance": provenance}
        )

    def _encode(self, new: Cache, teacher: str, unit: Unit, commit: UnitRecord) -> NDArray[Any]:
        """Return the stored rows of a unit. Rows that an earlier attempt has converted keep their bytes."""
        source, number = self._cache.targets(unit.modality, teacher), unit.number
        array, codec = new.array_layout(unit.modality, teacher), new.codec(teacher)
        stored = codec.encoding.empty_rows((unit.rows.count, *array.row_shape))
        if self._cache.teacher(teacher).encoding == self._encoding:
            source.read_stored(number, 0, stored)
            return stored
        values = np.empty((unit.rows.count, *array.value_shape[1:]), np.float16)
        source.read_part(number, 0, values)
        stored[:] = codec.encode(values)
        rejected = np.array(sorted(commit.rejected), np.int64) - unit.rows.first
        is_row = np.ones(unit.rows.count, np.bool_)
        is_row[rejected] = False
        if codec.rotation is not None:
            refuse_distorted_rows(
                new.teacher(teacher),
                f"{unit.modality} unit {number}",
                squared_error(values[is_row], codec.decode(stored[is_row])),
                int(np.prod(values[is_row].shape[:-1])),
                self._budget,
            )
        earlier = new.commits(teacher).units.get((unit.modality, number))
        shard = layout.shard(teacher, unit.modality, number)
        # Rows of a shard that is damaged are encoded again: a new checksum would hide it.
        if earlier is not None and _is_intact(self._out, shard, earlier.files[shard]):
            before = np.empty_like(stored)
            new.targets(unit.modality, teacher).read_stored(number, 0, before)
            had = np.ones(unit.rows.count, np.bool_)
            had[np.array(sorted(earlier.rejected), np.int64) - unit.rows.first] = False
            stored[had] = before[had]
        return stored

    def _encode_patches(self, teacher: str, unit: Unit) -> bytearray:
        settings = self._cache.teacher(teacher).patches
        assert settings is not None
        array = self._cache.manifest.patch_layout(settings)
        stored = array.encoding.empty_rows((unit.rows.count, *array.row_shape))
        self._cache.patch_targets(teacher).read_stored(unit.number, 0, stored)
        return encode_shard(array, stored)

    def _copy_pixels(self) -> None:
        kept = self._cache.kept_pixels()
        if kept is None:
            return
        if not self._out.exists(layout.PIXELS_RECORD):
            self._copy(layout.PIXELS_RECORD)
        for (_, number), commit in sorted(kept.commits.units.items()):
            record = layout.pixels_unit_record(number, commit.attempt)
            if not self._out.exists(record):
                self._copy(record)


def _bytes_of_units(cache: Cache) -> int:
    units = [unit for name in cache.teachers for unit in cache.commits(name).units.values()]
    return sum(file["num_bytes"] for unit in units for file in unit.files.values())


def _is_intact(files: Storage, path: str, description: Mapping[str, Any]) -> bool:
    try:
        found = files.describe(path)
    except FileNotFoundError:
        return False
    return found == {name: description[name] for name in ("num_bytes", "sha256")}


def _without(fields: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


def _damaged(files: Storage, path: str, record: str) -> DamagedCacheError:
    return DamagedCacheError(
        f"{files.where(path)} is missing or does not match {record}; siglip2-cache verify says what to do"
    )
