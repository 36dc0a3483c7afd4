"""Writing a folder whole or not at all, in place of an earlier one of the same name."""

import os
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ...errors import DiskFullError, SettingError
from ...store.io.foreign_files import is_stray
from ...store.io.local import FULL_DISK, sync_file, sync_folder

MARK = "siglip2_cache.json"
"""File in every exported folder; a folder without it is not replaced."""


@contextmanager
def replaced_atomically(out: Path, *, mark: str = MARK) -> Generator[Path]:
    """Yield an empty folder that replaces ``out`` when the block ends without an error.

    An earlier ``out`` is removed only after the new one has its name. A process killed between the two
    renames leaves the earlier one beside it; the next call restores it.

    Args:
        out: the folder.
        mark: name of a file that identifies folders of this kind; others are not replaced.

    Raises:
        SettingError: ``out`` exists and has no such file.
        DiskFullError: the disk is full; what was written is removed, ``out`` is unchanged.
    """
    out = Path(os.path.realpath(out))
    partial, old = (out.with_name(out.name + end) for end in (".partial", ".earlier.partial"))
    if old.is_dir() and not out.exists():
        old.rename(out)
    _check_replaceable(out, mark)
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        _sync(partial)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if _is_full_disk(error):
            raise DiskFullError(
                f"no space left on the disk of {out.parent} while writing {out.name}; free some and "
                "run the same command again"
            ) from error
        raise
    if out.is_dir() and any(out.iterdir()):
        out.rename(old)
    partial.rename(out)  # an empty folder is replaced by this
    sync_folder(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _check_replaceable(out: Path, mark: str) -> None:
    if not out.exists() or (out.is_dir() and (_is_empty(out) or (out / mark).is_file())):
        return
    raise SettingError(
        f"{out} exists without {mark}, so it is no earlier export and is not replaced; name another "
        "folder, or remove it"
    )


def _is_empty(folder: Path) -> bool:
    return all(is_stray(path.name) for path in folder.iterdir())


def _is_full_disk(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in FULL_DISK
    found = re.search(r"os error (\d+)", str(error)) if isinstance(error, SafetensorError) else None
    return found is not None and int(found[1]) in FULL_DISK


def _sync(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            _sync(path)
            continue
        with path.open("rb") as file:
            sync_file(file.fileno())
    sync_folder(folder)
