"""Folders that ``datasets`` saved (save_to_disk): Arrow files, in which each image is a range of bytes.

The files are streams of uncompressed Arrow batches, so reading an image needs neither Arrow nor any other
row. ``datasets`` itself is not needed.
"""

# pyarrow has no types, so that everything it returns is unknown to a strict checker.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeGuard, cast

from upath import UPath

from ...errors import SourceError
from ...store.io.location import Location
from .base import CorpusPart, Source
from .fields.caption_endings import CaptionChoice
from .fields.columns import TableColumns
from .fields.image_column import PackedColumns, packed_columns
from .fields.unread_columns import unread_columns
from .listing import scan_folder, size_and_time
from .packed_rows import PackedFile
from .readers.arrow_file import ArrowFile, Span, follow
from .readers.parquet_rows import batch_rows, has_repeats
from .samples import Problem, Sample

_SPLITS = "dataset_dict.json"
_STATE = "state.json"
_SLICE_ROWS = 1024
_MAX_JSON = 1 << 26


@dataclass(frozen=True, slots=True)
class _Split:
    """The Arrow files of one Dataset, and the number of rows before each."""

    name: str | None
    files: tuple[Path, ...]
    _ends: list[int] = field(default_factory=lambda: [0])
    """Rows up to the end of each file counted so far. A file is opened once to count its rows."""

    def first_row(self, number: int) -> int:
        """Return the number, in the split, of the first row of a file.

        Raises:
            SourceError: a file before it cannot be read.
        """
        while len(self._ends) <= number:
            with ArrowFile(self.files[len(self._ends) - 1]) as opened:
                self._ends.append(self._ends[-1] + opened.count_rows())
        return self._ends[number]


@dataclass(frozen=True, slots=True)
class SavedDatasetSource(Source):
    """A Dataset or a DatasetDict as save_to_disk wrote it, splits and files in their order."""

    kind: ClassVar[str] = "datasets"

    location: Path

    def fingerprint(self) -> str:
        """Return a hash that changes with the name, size or time of any Arrow file, or the columns."""
        digest = hashlib.sha256(f"datasets\n{self.choice.columns!r}\n".encode())
        for split in self._splits():
            for path in split.files:
                facts = hashlib.sha256(_facts(path)).hexdigest()
                digest.update(f"{split.name}\0{facts}\n".encode())
        return digest.hexdigest()

    def _own_parts(self) -> Iterator[CorpusPart]:
        """Yield a part for each Arrow file.

        Raises:
            SourceError: the description of the dataset cannot be read.
        """
        for split in self._splits():
            digest = hashlib.sha256()  # of all files so far, which decide the numbers of the rows
            for number, path in enumerate(split.files):
                digest.update(_facts(path))
                name = path.relative_to(self.location).as_posix()
                yield CorpusPart(name, partial(self._scan, split, number), digest.hexdigest())

    def _splits(self) -> list[_Split]:
        if not (self.location / _SPLITS).exists():
            return [_Split(None, _files_of(self.location))]
        splits = _read_json(self.location / _SPLITS).get("splits")
        if not _is_names(splits):
            raise SourceError(f"{self.location / _SPLITS} names no splits; save the dataset again")
        return [_Split(split, _files_of(self.location / split)) for split in splits]

    def _scan(self, split: _Split, number: int) -> Iterator[Sample | Problem]:
        """Yield the samples of a file.

        Raises:
            SourceError: it cannot be read or holds no images, so that later rows cannot be numbered.
        """
        first = split.first_row(number)
        path = split.files[number]
        prefix = f"{split.name}/" if split.name is not None else ""
        with ArrowFile(path) as opened:
            columns = packed_columns(opened.schema, self.choice.columns, path, takes_paths=True)
            scan = _FileScan(self.location, path, columns, opened, prefix)
            yield from scan.run(first)


class _FileScan:
    """One file on its way to samples."""

    def __init__(
        self, root: Path, path: Path, columns: PackedColumns, opened: ArrowFile, prefix: str
    ) -> None:
        """``prefix`` comes before the number of a row."""
        self._columns, self._opened, self._prefix = columns, opened, prefix
        self._packed = PackedFile(root, path.relative_to(root).as_posix(), columns)
        wanted = [name for name in columns.fields.names() if name != columns.image[0]]
        self._indices = [opened.schema.get_field_index(name) for name in wanted]

    def run(self, first: int) -> Iterator[Sample | Problem]:
        """Yield the samples of the file. ``first`` is the number of its first row in its split."""
        batches: list[Any] = []  # mapped, not read
        for batch in self._opened.batches():
            if not batches:
                self._spans(batch.slice(0, 1))  # refuses a compressed file
            batches.append(batch)
        has_repeats = any(map(self._has_repeats, batches))
        number = first
        for batch in batches:
            for start in range(0, len(batch), _SLICE_ROWS):
                part = batch.slice(start, _SLICE_ROWS)
                yield from self._rows(part, number, has_repeats=has_repeats)
                number += len(part)
        counts = dict.fromkeys(self._columns.unread, number - first)
        yield from unread_columns(counts, self._packed.place, self._columns.fields)

    def _rows(self, batch: Any, first: int, *, has_repeats: bool) -> Iterator[Sample | Problem]:
        columns = self._columns
        spans = self._spans(batch)
        paths = None if columns.path is None else follow(batch, columns.path)
        rows = batch_rows(batch.select(self._indices)) if self._indices else ({} for _ in spans)
        for i, (values, span) in enumerate(zip(rows, spans, strict=True)):
            number = f"{self._prefix}{first + i}"
            is_read = isinstance(span, tuple)
            yield from self._packed.row(
                span if isinstance(span, str) else values,
                index=number,
                key=number,
                address={"offset": span[0], "length": span[1]} if is_read else None,
                path=None if paths is None else _as_text(paths[i]),
                image_sha256=self._opened.sha256(span) if has_repeats and is_read else None,
            )

    def _spans(self, batch: Any) -> Sequence[Span | str | None]:
        if not self._columns.has_bytes:
            return [None] * len(batch)
        return self._opened.image_spans(follow(batch, self._columns.image))

    def _has_repeats(self, batch: Any) -> bool:
        """Return whether two rows have one key, or one path beside their bytes."""
        key, path = self._columns.fields.key, self._columns.path
        names = [name for name in ((key,) if key else None, path) if name]
        return self._columns.has_bytes and any(has_repeats(follow(batch, name)) for name in names)


def find_saved_dataset(folder: Location, columns: TableColumns) -> SavedDatasetSource | None:
    """Return the source of a folder that save_to_disk wrote, or None."""
    if isinstance(folder, UPath):
        _refuse_remote(folder)
        return None
    if (folder / _SPLITS).is_file():
        return SavedDatasetSource(folder, CaptionChoice(columns=columns))
    if not (folder / _STATE).is_file():
        return None
    try:
        is_saved = "_data_files" in _read_json(folder / _STATE)
    except SourceError:
        is_saved = any(folder.glob("*.arrow"))
    return SavedDatasetSource(folder, CaptionChoice(columns=columns)) if is_saved else None


def _refuse_remote(folder: UPath) -> None:
    """Refuse a saved dataset in an object store, because finding its images means reading all of it.

    Raises:
        SourceError: the folder is a saved dataset.
    """
    try:
        with scan_folder(str(folder)) as entries:
            names = {entry.name for entry in entries if entry.is_file()}
    except OSError:
        return
    if _SPLITS in names or (_STATE in names and any(name.endswith(".arrow") for name in names)):
        raise SourceError(
            f"{folder} was saved by datasets (save_to_disk), whose Arrow files can only be read on this "
            "machine; copy it here, or write it as Parquet (Dataset.to_parquet)"
        )


def _files_of(folder: Path) -> tuple[Path, ...]:
    """Return the files that a Dataset lists.

    Raises:
        SourceError: it lists none, or it is a selection of the rows in its files.
    """
    state = _read_json(folder / _STATE)
    files = state.get("_data_files")
    names = [_file_name(file) for file in cast(list[Any], files)] if isinstance(files, list) else []
    if not _is_names(names):
        raise SourceError(f"{folder / _STATE} does not list its files; save the dataset again")
    # datasets before 2.0 saved a selection as all rows, with the numbers of the selected ones.
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise SourceError(
            f"{folder} is a selection of the rows in its files, as datasets before 2.0 saved it; load it, "
            "call flatten_indices() and save it again"
        )
    return tuple(folder / name for name in names)


def _file_name(file: object) -> object:
    return cast(dict[str, object], file).get("filename") if isinstance(file, dict) else None


def _is_names(names: object) -> TypeGuard[list[str]]:
    """Return whether these are names of files or folders, without any path."""
    return isinstance(names, list) and all(
        isinstance(name, str)
        and name not in ("", ".", "..")
        and "/" not in name
        and "\0" not in name
        for name in cast(list[object], names)
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            found: object = json.loads(file.read(_MAX_JSON))
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path} is not JSON; save the dataset again") from error
    if not isinstance(found, dict):
        raise SourceError(f"{path} holds no object; save the dataset again")
    return cast(dict[str, Any], found)


def _facts(path: Path) -> bytes:
    return f"{os.fsencode(path.name)!r} {size_and_time(str(path))}\n".encode()


def _as_text(value: Any) -> object:
    """Return a path; bytes that are not UTF-8 unchanged, which image_file refuses."""
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return value.as_buffer().to_pybytes()
