"""Parquet files that hold the images themselves: one, a folder of them, a pattern."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from ...errors import SourceError
from ...store.format.layout import CACHE_RECORD, CATALOG
from ...store.io.location import Location, relative_to
from ...store.io.requests import is_folder
from .base import CorpusPart, Source, hash_parts
from .fields.caption_endings import CaptionChoice
from .fields.columns import TableColumns
from .fields.image_column import holds_images, packed_columns
from .globs import expand, is_pattern, root_of
from .image_files import IMAGE_ENDINGS, is_system_folder
from .img2dataset_records import (
    RecordedFolder,
    ShardRecords,
)
from .listing import (
    TWO_SLASHES,
    as_location,
    is_readable,
    printable,
    scan_folder,
    sizes_and_times,
    walk_folder,
)
from .parquet_file import ParquetFile
from .readers.parquet_rows import (
    open_parquet,
)
from .samples import Problem, Sample

_ENDING = ".parquet"
_MAX_LOOKED_AT = 16  # footers read to recognise what a folder holds
_MAX_NAMES = 10_000  # names listed to recognise a folder, which may hold a billion images


@dataclass(frozen=True, slots=True)
class ParquetSource(Source):
    """The rows of Parquet files, files in order of their names, each row an image."""

    kind: ClassVar[str] = "parquet"

    @property
    def root(self) -> Location:
        """Folder that holds the files."""
        return root_of(self.location)

    def fingerprint(self) -> str:
        """Return a hash that changes with the name, size or time of any file, or with the chosen columns."""
        return hash_parts(f"parquet\n{self.choice.columns!r}\n", self._file_parts())

    def _own_parts(self) -> Iterator[CorpusPart]:
        """Yield one part per file."""
        yield from self._file_parts()
        if is_folder(self.location) and (unread := list(_unread(self.location))):
            yield CorpusPart("", partial(iter, unread))

    def _file_parts(self) -> Iterator[CorpusPart]:
        files, root = self._files(), self.root
        is_only = len(files) == 1
        recorded: tuple[Location, RecordedFolder] | None = None
        all_facts = sizes_and_times([str(file) for file in files])
        for file, facts in zip(files, all_facts, strict=True):
            if recorded is None or recorded[0] != file.parent:
                recorded = file.parent, RecordedFolder(str(file.parent))
            records = recorded[1].find_parquet_records(file.stem)
            is_unfinished = records is not None and records.unfinished is not None
            name = relative_to(file, root)
            if name is None:  # a pattern with ".." in it
                name = os.path.relpath(str(file), str(root))
            # Size and time of a file stay the same when it becomes readable.
            state = f"{facts} {is_readable(str(file))} {is_unfinished}"
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
            SourceError: it is the only file, and cannot be read or holds no images.
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
            yield from ParquetFile(opened, file, name, columns).scan()


def find_parquet(folder: Location, columns: TableColumns) -> ParquetSource | None:
    """Return the source of a folder of Parquet files with images, or None.

    Raises:
        SourceError: none of its Parquet files can be read, and it has no image file.
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
    """Return the source of files with images inside; None if the first readable file has none."""
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


def _walk(folder: Location) -> Iterator[Location]:
    """Yield the Parquet files below a folder, those of a folder before those of its sub-folders."""
    for path in _all_names(folder):
        if path.lower().endswith(_ENDING):
            yield as_location(path)


def _unread(folder: Location) -> Iterator[Problem]:
    """Yield problems for files beside the Parquet files that are not read."""
    num_images = 0
    for path in _all_names(folder):
        num_images += path.lower().endswith(IMAGE_ENDINGS)
        if path.endswith("//"):
            yield Problem(place=printable(path), reason=TWO_SLASHES)
    if num_images:
        reason = (
            f"{num_images:,} image files beside the Parquet files are not read; name their folder "
            "as a source of its own"
        )
        yield Problem(place=printable(str(folder)), reason=reason)


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
    """Yield at most some thousand names of files, those at the top first."""
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
    """Return whether a folder is a cache, whose Parquet tables are no corpus."""
    return CACHE_RECORD in names and CATALOG in names
