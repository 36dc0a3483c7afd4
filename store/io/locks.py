"""Locks between processes: files that one process holds at a time, released when it dies.

On a file system without locks every process gets the lock. So what is done under a lock must be
harmless, if wasteful, when two processes do it.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Generator
from pathlib import Path

_HELD = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES}


@contextlib.contextmanager
def lock_file(path: Path, *, waits: bool = True) -> Generator[bool]:
    """Lock a file, creating it if needed. Yields whether this process has the lock.

    If another process has it, this one waits, or gets False if ``waits`` is False. The holder may
    remove the file at the end; a process that waited for it then creates a new one.
    """
    while True:
        # For writing: NFS does not lock files that are open for reading only.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
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
    """Lock an open file. Return False if another process has the lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _HELD
    return True


def _wait_for_lock(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _is_still_named(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
