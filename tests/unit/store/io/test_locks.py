"""Locks: one process at a time, on file systems that have locks of different kinds."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from siglip2_cache.store.io.local import LocalStorage
from siglip2_cache.store.io.locks import lock_file


def test_one_is_alone_and_another_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock_file(path) as first, lock_file(path, waits=False) as second:
        assert (first, second) == (True, False)
    with lock_file(path, waits=False) as third:
        assert third


def test_the_lock_of_a_file_that_was_removed_is_worth_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened while another process had it, locked when that one had removed it and let it go."""
    path, flock, num_tries = tmp_path / "lock", fcntl.flock, 0

    def late(descriptor: int, operation: int) -> None:
        nonlocal num_tries
        num_tries += 1
        if num_tries == 1:
            path.unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with lock_file(path) as is_alone, lock_file(path, waits=False) as other:
        assert is_alone
        assert not other
    assert num_tries == 3


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_lets_everybody_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock_file(tmp_path / "lock") as first, lock_file(tmp_path / "lock") as second:
        assert first
        assert second


def test_a_folder_is_locked_where_only_files_open_for_writing_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS: there flock becomes a lock of bytes, which a descriptor for reading cannot have."""
    flock = fcntl.flock

    def of_nfs(descriptor: int, operation: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", of_nfs)
    files = LocalStorage(tmp_path)
    with files.locked("indexes/t") as first, files.locked("indexes/t") as second:
        assert (first, second) == (True, False)
    assert files.names("indexes/t") == []
