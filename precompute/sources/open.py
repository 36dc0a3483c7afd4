"""From what the user named to the source that reads it."""

import os
from pathlib import Path

from ...errors import SettingError, SourceError
from .base import Source
from .columns import TableColumns
from .folder import FolderSource
from .rows import TABLE_ENDINGS
from .table import TableSource


def open_source(location: str | Path, *, columns: TableColumns | None = None) -> Source:
    """The source at a location: a folder of images or a table. Nothing of it is read yet.

    Args:
        location: path of a folder or a file; ``~`` is the home folder.
        columns: columns of a table, where their names are not the usual ones.

    Raises:
        SourceError: there is nothing, or nothing of a kind that can be read.
        SettingError: columns were given for something that has none.
    """
    path = Path(os.path.abspath(Path(location).expanduser()))
    if path.is_dir():
        if columns is not None:
            raise SettingError(f"columns are for tables, and {path} is a folder; leave them out")
        return FolderSource(path)
    if not path.exists():
        raise SourceError(f"there is no {path}; expected {_accepted()}")
    if path.suffix.lower() in TABLE_ENDINGS:
        return TableSource(path, columns or TableColumns())
    raise SourceError(f"{path} is no corpus that can be read; expected {_accepted()}")


def _accepted() -> str:
    return f"a folder of images, or a table ({', '.join(TABLE_ENDINGS)})"
