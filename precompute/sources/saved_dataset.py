"""Folders that ``datasets`` saved (save_to_disk): Arrow files, each image addressed by its bytes in one.

The files are streams of uncompressed Arrow batches, so an image is a part of a file, and reading one
needs neither Arrow nor any other row. ``datasets`` itself is not needed.
"""

# pyarrow has no types, so that everything it returns is unknown to a strict checker.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, TypeGuard, cast

from upath import UPath

from ...errors import SourceError
from ...store.io.location import Location
from .base import CorpusPart, Source
from .fields.caption_endings import CaptionChoice
from .fields.columns import TableColumns
from .fields.image_column import PackedColumns, image_file, packed_columns
from .fields.row_fields import read_fields
from .fields.unread_columns import unread_columns
from .listing import printable, scan_folder, size_and_time
from .readers.arrow_file import ArrowFile, follow
from .readers.parquet_rows import batch_rows
from .samples import Problem, Sample

_SPLITS = "dataset_dict.json"
_STATE = "state.json"
_SLICE_ROWS = 1024
_MAX_JSON = 1 << 26


@dataclass(frozen=True, slots=True)
class _Split:
    """The Arrow files of one Dataset, and how many rows come before each."""

    name: str | None
    files: tuple[Path, ...]
    _ends: list[int] = field(default_factory=lambda: [0])
    """Rows up to the end of the files counted so far, each opened once for it."""

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
        """Changes with the name, size or time of any Arrow file, or with the columns asked for."""
        digest = hashlib.sha256(f"datasets\n{self.choice.columns!r}\n".encode())
        for split in self._splits():
            for path in split.files:
                told = hashlib.sha256(_facts(path)).hexdigest()
                digest.update(f"{split.name}\0{told}\n".encode())
        return digest.hexdigest()

    def _own_parts(self) -> Iterator[CorpusPart]:
        """Yield a part for each Arrow file.

        Raises:
            SourceError: what the folder says of itself cannot be read or followed.
        """
        for split in self._splits():
            digest = hashlib.sha256()  # of all files so far: the earlier ones give the numbers
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
            SourceError: it cannot be read or holds no images. The rows behind it could not be numbered.
        """
        first = split.first_row(number)
        path = split.files[number]
        with ArrowFile(path) as opened:
            columns = packed_columns(opened.schema, self.choice.columns, path)
            scan = _FileScan(self.location, path, split.name, columns, opened)
            for batch in opened.batches():
                yield from scan.batch(batch, first)
                first += len(batch)
            num_rows = first - split.first_row(number)
            counts = dict.fromkeys(columns.unread, num_rows)
            yield from unread_columns(counts, printable(str(path)), columns.fields)


class _FileScan:
    """One file on its way to samples."""

    def __init__(
        self, root: Path, path: Path, split: str | None, columns: PackedColumns, opened: ArrowFile
    ) -> None:
        self._root, self._columns, self._opened = root, columns, opened
        self._name = path.relative_to(root).as_posix()
        self._place = printable(str(path))
        self._prefix = f"{split}/" if split is not None else ""
        self._size_and_time = size_and_time(str(path))
        wanted = [name for name in columns.fields.names() if name != columns.image[0]]
        self._indices = [opened.schema.get_field_index(name) for name in wanted]

    def batch(self, batch: Any, first: int) -> Iterator[Sample | Problem]:
        """Yield the samples of a batch whose first row has a number in its split."""
        for start in range(0, len(batch), _SLICE_ROWS):
            part = batch.slice(start, _SLICE_ROWS)
            images = self._opened.places(follow(part, self._columns.image))
            path = self._columns.path
            paths = None if path is None else follow(part, path)
            rows = batch_rows(part.select(self._indices)) if self._indices else ({} for _ in images)
            for i, values in enumerate(rows):
                beside = None if paths is None else paths[i]
                yield from self._row(first + start + i, values, images[i], beside)

    def _row(
        self,
        number: int,
        values: dict[str, object] | str,
        image: tuple[int, int] | None,
        path: Any,
    ) -> Iterator[Sample | Problem]:
        place = f"{self._place}, index {self._prefix}{number}"
        if isinstance(values, str):
            yield Problem(place=place, reason=values)
            return
        columns = self._columns
        instead = None
        try:
            fields = read_fields(values, columns.fields, class_names=columns.class_names)
            if image is None:
                written = None if path is None else _as_text(path)
                instead = image_file(self._root, PurePosixPath(self._name).parent, written)
        except ValueError as error:
            yield Problem(place=place, reason=str(error))
            return
        size, time = size_and_time(f"{self._root}/{instead}") if instead else self._size_and_time
        key = fields.key or f"{self._prefix}{number}"
        yield Sample(
            key=key,
            path=instead or self._name,
            captions=fields.captions,
            label=fields.label,
            offset=image[0] if image else None,
            length=image[1] if image else None,
            num_bytes=size,
            mtime_ns=time,
            place=place,
        )
        for reason in fields.reasons:
            yield Problem(place=place, reason=reason, key=key)


def find_saved_dataset(folder: Location, columns: TableColumns) -> SavedDatasetSource | None:
    """Return the source of a folder that save_to_disk wrote; None for any other folder."""
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
    """Refuse a saved dataset in an object store: its images are found by reading all of it.

    Raises:
        SourceError: it is one.
    """
    try:
        with scan_folder(str(folder)) as entries:
            names = {entry.name for entry in entries if entry.is_file()}
    except OSError:
        return
    if _SPLITS in names or (_STATE in names and any(name.endswith(".arrow") for name in names)):
        raise SourceError(
            f"{folder} was saved by datasets (save_to_disk), whose Arrow files are read on this machine "
            "only; copy it here, or write it as Parquet (Dataset.to_parquet)"
        )


def _files_of(folder: Path) -> tuple[Path, ...]:
    """Return the files of one Dataset, those that it says and no others.

    Raises:
        SourceError: it says none, or that other rows are meant than those of the files.
    """
    state = _read_json(folder / _STATE)
    files = state.get("_data_files")
    names = [_file_name(file) for file in cast(list[Any], files)] if isinstance(files, list) else []
    if not _is_names(names):
        raise SourceError(
            f"{folder / _STATE} does not say which files it is; save the dataset again"
        )
    # datasets before 2.0 saved a selection as the whole and the numbers of the rows that are meant.
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise SourceError(
            f"{folder} is a selection of rows of its files, as datasets before 2.0 saved it; load it, "
            "call flatten_indices() and save it again"
        )
    return tuple(folder / name for name in names)


def _file_name(file: object) -> object:
    return cast(dict[str, object], file).get("filename") if isinstance(file, dict) else None


def _is_names(names: object) -> TypeGuard[list[str]]:
    """Say whether these are names of files or folders, none of which leads elsewhere."""
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
    try:
        return value.as_py()
    except UnicodeDecodeError:
        raise ValueError("the image path is not UTF-8") from None
