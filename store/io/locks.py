"""Locks between processes: a file that is held by one at a time, freed by the system when it dies.

On a file system without locks every process is told that it is alone; what is done under a lock must
then be harmless, if wasteful, when two do it.
"""

import contextlib
import errno
import os
from collections.abc import Generator
from pathlib import Path

_HELD = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES}


@contextlib.contextmanager
def lock_file(path: Path, *, waits: bool = True) -> Generator[bool]:
    """Open a file, made if missing, alone; say whether this process is.

    Where another process has it this one waits, or where ``waits`` is False is told no. Who holds it
    may remove it at the end: a process that had it open by then makes it anew.
    """
    while True:
        # For writing: NFS locks no file that is open for reading alone.
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(path, flags, 0o644)
        try:
            is_alone = try_lock(descriptor)
            if not is_alone and waits:
                _wait_for_lock(descriptor)
                is_alone = True
            if not is_alone or _is_still_named(descriptor, path):
                yield is_alone
                return
        finally:
            os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Say whether this process alone has an open file now, or the file system has no locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _HELD
    return True


def _wait_for_lock(descriptor: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    with contextlib.suppress(OSError):  # a filesystem without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _is_still_named(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
