"""Paths of a corpus: as the catalog keeps them, as a message shows them, what lies there."""

import os
import re
import stat
from pathlib import Path

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def path_below(root: Path, written: str) -> str:
    """The path relative to root, with forward slashes; ``..`` stays where it leads outside.

    ``..`` is not folded away: behind a symbolic link ``link/../a.jpg`` is another file than
    ``a.jpg``.

    Raises:
        ValueError: it names no file; the message is a reason.
    """
    if not written.strip():
        raise ValueError("the image path is empty")
    if "\0" in written:
        raise ValueError(f"the image path holds a NUL byte: {written[:40]!r}")
    if _URL.match(written):
        raise ValueError(f"the image is a URL, expected a file: {written[:80]!r}")
    relative = _relative(root, written) if os.path.isabs(written) else written
    parts = [part for part in relative.split("/") if part not in ("", ".")]
    if not parts or parts[-1] == "..":
        raise ValueError(f"the image path names no file: {written[:40]!r}")
    return "/".join(parts)


def size_and_time(path: str) -> tuple[int | None, int | None]:
    """Bytes and modification time in nanoseconds of a file; None, None where there is none."""
    try:
        status = os.stat(path)
    except OSError:  # missing, a broken or looping link, a name too long: the build will say which
        return None, None
    if not stat.S_ISREG(status.st_mode):
        return None, None
    return status.st_size, status.st_mtime_ns


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Say whether an entry is a folder or leads to one; a link to itself does not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def printable(path: str) -> str:
    """The path for a message; bytes of a name that are not UTF-8 appear as ``\\xff``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _relative(root: Path, absolute: str) -> str:
    prefix = f"{root}/"
    if absolute.startswith(prefix):
        return absolute.removeprefix(prefix)
    # From the real root: the system follows ".." from where a linked root really lies.
    return os.path.relpath(absolute, os.path.realpath(root))
