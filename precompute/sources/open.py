"""Opening a source by its location."""

from collections.abc import Sequence

from ...errors import SettingError, SourceError
from ...store.io.location import Location, parse_location
from ...store.io.requests import kind_of
from .base import Source
from .fields.caption_endings import CaptionChoice
from .fields.columns import TableColumns
from .folder import FolderSource
from .globs import expand, is_pattern
from .img2dataset import find_img2dataset_files
from .parquet import find_parquet, find_parquet_files
from .readers.table_rows import TABLE_ENDINGS
from .readers.tar_names import is_tar
from .saved_dataset import find_saved_dataset
from .table import TableSource
from .webdataset import find_webdataset, make_webdataset


def open_source(
    location: str | Location,
    *,
    columns: TableColumns | None = None,
    caption_endings: tuple[str, ...] | None = None,
) -> Source:
    """Return the source at a location, whose contents decide its kind. Reads no image.

    Args:
        location: path or URL of a folder or a file, or a pattern of files (globs.py); ``~`` is the
            home folder.
        columns: columns of a table with unusual names; those of captions, languages and labels also apply
            to the .json files beside images.
        caption_endings: endings of caption files beside images, from parse_endings; None: the usual ones.

    Raises:
        SourceError: nothing is there, or nothing that can be read.
        SettingError: columns of images or keys were given for something that has none.
    """
    if not str(location):
        raise SettingError("the name of a source is empty; give a folder or a table of images")
    path = parse_location(location)
    choice = CaptionChoice(caption_endings=caption_endings, columns=columns or TableColumns())
    try:
        kind = kind_of(path)
    except PermissionError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror})") from error
    if kind == "folder":
        return _open_folder(path, columns, choice)
    if is_pattern(path):
        return _open_files(path, expand(path), columns, choice)
    if kind is None:
        raise SourceError(f"there is no {path}; expected {_accepted()}")
    return _open_files(path, [path], columns, choice)


def _open_folder(path: Location, columns: TableColumns | None, choice: CaptionChoice) -> Source:
    packed = find_saved_dataset(path, columns or TableColumns()) or find_parquet(
        path, columns or TableColumns()
    )
    if packed is not None:
        return packed
    _refuse_columns(columns, f"{path} is a folder without any")
    webdataset = find_webdataset(path, choice)
    files = None if webdataset is not None else find_img2dataset_files(path, choice)
    if files is not None and columns is not None:
        raise SettingError(
            f"columns are for tables, and {path} was written by img2dataset, whose names are known; leave "
            "them out"
        )
    return webdataset or files or FolderSource(path, choice)


def _open_files(
    location: Location,
    files: Sequence[Location],
    columns: TableColumns | None,
    choice: CaptionChoice,
) -> Source:
    """Return the source of files of one kind."""
    if all(is_tar(file.name) for file in files):
        _refuse_columns(columns, f"{location} is a tar")
        return make_webdataset(location, files, choice=choice)
    endings = {file.suffix.lower() for file in files}
    if len(endings) > 1:
        raise SourceError(
            f"{location} names files of several kinds ({', '.join(sorted(endings))}); "
            "give the files of each kind as a separate source"
        )
    [ending] = endings
    if ending == ".parquet":
        packed = find_parquet_files(location, files, columns or TableColumns())
        if packed is not None:
            return packed
    if ending in TABLE_ENDINGS:
        if len(files) > 1:
            raise SourceError(
                f"{location} names {len(files)} tables; give each as a separate source, NAME=PATH"
            )
        return TableSource(files[0], CaptionChoice(columns=columns or TableColumns()))
    raise SourceError(f"{location} is not a corpus; expected {_accepted()}")


def _refuse_columns(columns: TableColumns | None, what: str) -> None:
    """Refuse columns that only a table can have. Those of captions also apply to .json files."""
    if columns is not None and (columns.image, columns.key) != (None, None):
        raise SettingError(
            f"columns are for tables, and {what}; only columns of captions, languages "
            "and labels apply to its .json files; leave the others out"
        )


def _accepted() -> str:
    return (
        "a folder of images or of shards, a folder that datasets saved, tar archives, or a table "
        f"({', '.join(TABLE_ENDINGS)})"
    )
