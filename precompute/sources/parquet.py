"""Parquet files that hold the images themselves: one, a folder of them, a pattern."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any, ClassVar

from ...errors import SourceError
from ...store.format.layout import CACHE_RECORD, CATALOG
from ...store.io.location import Location, relative_to
from ...store.io.requests import is_folder
from .base import CorpusPart, Source, hash_parts
from .fields.caption_endings import CaptionChoice
from .fields.columns import TableColumns
from .fields.image_column import PackedColumns, holds_images, packed_columns
from .fields.unread_columns import unread_columns
from .globs import expand, is_pattern, root_of
from .image_files import IMAGE_ENDINGS, is_system_folder
from .img2dataset_records import (
    HASH_COLUMN,
    STATUS_COLUMNS,
    Downloads,
    RecordedFolder,
    ShardRecords,
)
from .listing import (
    as_location,
    may_be_read,
    printable,
    scan_folder,
    sizes_and_times,
    walk_folder,
)
from .packed_rows import PackedFile
from .readers.parquet_footers import NullCounts
from .readers.parquet_rows import (
    image_sums,
    open_parquet,
    row_group_rows,
)
from .samples import Problem, Sample

_ENDING = ".parquet"
_MAX_LOOKED_AT = 16  # footers read to tell what a folder holds
_MAX_NAMES = 10_000  # names looked at: a folder of a billion images is not listed for this


@dataclass(frozen=True, slots=True)
class ParquetSource(Source):
    """The rows of Parquet files, files in order of their names, each row an image."""

    kind: ClassVar[str] = "parquet"

    @property
    def root(self) -> Location:
        return root_of(self.location)

    def fingerprint(self) -> str:
        """Changes with the name, size or time of any file, or with the columns asked for."""
        return hash_parts(f"parquet\n{self.choice.columns!r}\n", self._file_parts())

    def _own_parts(self) -> Iterator[CorpusPart]:
        """Yield a part for each file."""
        yield from self._file_parts()
        if is_folder(self.location) and (num_images := _count_images(self.location)):
            reason = (
                f"{num_images:,} image files beside the Parquet files are not read; name their folder "
                "as a source of its own"
            )
            place = printable(str(self.location))
            yield CorpusPart("", lambda: iter([Problem(place=place, reason=reason)]))

    def _file_parts(self) -> Iterator[CorpusPart]:
        files, root = self._files(), self.root
        is_only = len(files) == 1
        recorded: tuple[Location, RecordedFolder] | None = None
        told = sizes_and_times([str(file) for file in files])
        for file, facts in zip(files, told, strict=True):
            if recorded is None or recorded[0] != file.parent:
                recorded = file.parent, RecordedFolder(str(file.parent))
            records = recorded[1].of_images(file.stem)
            is_unfinished = records is not None and records.unfinished is not None
            name = relative_to(file, root)
            if name is None:  # a pattern with ".." in it
                name = os.path.relpath(str(file), str(root))
            # A file that may not be read looks the same when it may: its size and time stay.
            state = f"{facts} {may_be_read(str(file))} {is_unfinished}"
            yield CorpusPart(name, partial(self._scan, file, name, is_only, records), state)

    def _files(self) -> Sequence[Location]:
        if is_pattern(self.location):
            return expand(self.location)
        return list(_walk(self.location)) if is_folder(self.location) else [self.location]

    def _scan(
        self, file: Location, name: str, is_only: bool, records: ShardRecords | None
    ) -> Iterator[Sample | Problem]:
        """Yield the samples of a file.

        Raises:
            SourceError: it is the only one, and cannot be read or holds no images.
        """
        place = printable(str(file))
        if records is not None and records.unfinished is not None:
            yield records.skipped(str(file))
            return
        try:
            opened = open_parquet(file)
            columns = packed_columns(opened.schema_arrow, self.choice.columns, file)
        except SourceError as error:
            if is_only:
                raise
            reason = str(error).removeprefix(str(file)).lstrip(": ")
            yield Problem(place=place, reason=reason)
            return
        with opened:
            if is_only and not opened.metadata.num_rows:
                raise SourceError(f"{file} has no rows")
            yield from _FileScan(opened, file, name, columns).run()


class _FileScan:
    """One file on its way to samples."""

    def __init__(self, opened: Any, file: Location, name: str, columns: PackedColumns) -> None:
        self._opened, self._file, self._columns = opened, file, columns
        self._metadata: Any = opened.metadata
        root = as_location(str(file).removesuffix(name).rstrip("/") or "/")
        self._packed = PackedFile(root, name, columns)
        self._stem = name.removesuffix(PurePosixPath(name).suffix)
        self._downloads = Downloads()
        self._null_counts: NullCounts | None = None

    def run(self) -> Iterator[Sample | Problem]:
        columns = self._columns
        names = [name for name in columns.fields.names() if name != columns.image[0]]
        if columns.is_img2dataset:
            present = self._opened.schema_arrow.names
            names += [n for n in (*STATUS_COLUMNS, HASH_COLUMN) if n in present and n not in names]
        has_repeats = not columns.is_img2dataset and self._has_repeats()
        first = 0
        for group in range(self._metadata.num_row_groups):
            count = self._metadata.row_group(group).num_rows
            index = 0
            try:
                without_bytes = self._without_bytes(group)
                paths = self._paths(group) if without_bytes or has_repeats else {}
                sums = image_sums(self._opened, columns.member, group) if has_repeats else {}
                for index, values in enumerate(row_group_rows(self._opened, group, names)):
                    if columns.is_img2dataset and not self._is_downloaded(values):
                        continue
                    address = {"member": columns.member, "row_group": group, "index": index}
                    yield from self._packed.row(
                        values,
                        index=str(first + index),
                        key=f"{self._stem}/{first + index}",
                        address=None if index in without_bytes else address,
                        path=paths.get(index),
                        image_sha256=sums.get(index),
                        source_sha256=self._source_sha256(values),
                    )
            except ValueError as error:
                where = f"rows {first + index:,} to {first + count - 1:,} (row group {group})"
                reason = f"{where} cannot be read ({error}); copy the file again"
                yield Problem(place=self._packed.place, reason=reason)
            first += count
        yield from self._downloads.problems(self._packed.place)
        if not columns.is_img2dataset:
            yield from unread_columns(
                dict.fromkeys(columns.unread, first), self._packed.place, columns.fields
            )


def find_parquet(folder: Location, columns: TableColumns) -> ParquetSource | None:
    """Return the source of a folder of Parquet files with images; None for any other folder.

    Raises:
        SourceError: it has Parquet files, none of which can be read, and no image file.
    """
    reason: SourceError | None = None
    num_opened = 0
    has_images = False
    for path in _first_names(folder):
        has_images = has_images or path.suffix.lower() in IMAGE_ENDINGS
        if path.suffix.lower() != _ENDING or num_opened == _MAX_LOOKED_AT:
            continue
        num_opened += 1
        try:
            with open_parquet(path) as opened:
                if holds_images(opened.schema_arrow, columns):
                    return ParquetSource(folder, CaptionChoice(columns=columns))
        except SourceError as error:
            reason = error
            num_opened -= 1
    if reason is not None and not num_opened and not has_images:
        raise reason
    return None


def find_parquet_files(
    location: Location, files: Sequence[Location], columns: TableColumns
) -> ParquetSource | None:
    """Return the source of files with images inside; None where the first that can be read has none."""
    for file in files:
        try:
            with open_parquet(file) as opened:
                is_packed = holds_images(opened.schema_arrow, columns)
                return (
                    ParquetSource(location, CaptionChoice(columns=columns)) if is_packed else None
                )
        except SourceError:
            continue
    return None


def _inner(values: dict[str, object]) -> object:
    """Return the one value inside nested structs of which one field was read."""
    found: object = values
    while isinstance(found, dict):
        found = next(iter(found.values()), None)  # pyright: ignore[reportUnknownArgumentType]
    return found  # pyright: ignore[reportUnknownVariableType]


def _walk(folder: Location) -> Iterator[Location]:
    """Yield the Parquet files below a folder, those of a folder before those of its sub-folders."""
    for path in _all_names(folder):
        if path.lower().endswith(_ENDING):
            yield as_location(path)


def _count_images(folder: Location) -> int:
    return sum(path.lower().endswith(IMAGE_ENDINGS) for path in _all_names(folder))


def _all_names(folder: Location) -> Iterator[str]:
    for root, folders, names in walk_folder(str(folder)):
        if root != str(folder) and _is_cache([*folders, *names]):
            folders.clear()
            continue
        folders[:] = sorted(
            name for name in folders if not (name.startswith(".") or is_system_folder(name))
        )
        for name in sorted(names):
            if not name.startswith("."):
                yield f"{root.rstrip('/')}/{name}"


def _first_names(folder: Location) -> Iterator[Location]:
    """Yield some thousand names of files, the nearest to the folder first."""
    pending = deque([str(folder)])
    num_names = 0
    while pending and num_names < _MAX_NAMES:
        below = pending.popleft()
        try:
            with scan_folder(below) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError:
            continue
        if below != str(folder) and _is_cache([entry.name for entry in entries]):
            continue
        num_names += len(entries)
        for entry in entries:
            if entry.name.startswith(".") or is_system_folder(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
            else:
                yield as_location(entry.path)


def _is_cache(names: Sequence[str]) -> bool:
    """Say whether a folder is a cache by what lies in it. Its tables are Parquet, but no corpus."""
    return CACHE_RECORD in names and CATALOG in names
