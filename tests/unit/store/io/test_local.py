"""File operations on file systems that lack some, or lose an answer."""

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from siglip2_cache.store.io import local
from siglip2_cache.store.io.local import LocalStorage, sync_file


@pytest.fixture
def files(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_is_created_once_on_a_file_system_without_links(
    files: LocalStorage, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def link(source: Any, target: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(local.os, "link", link)
    assert files.create("a", b"1", token="0")
    assert not files.create("a", b"2", token="1")
    assert (files.read("a"), files.names("")) == (b"1", ["a"])


def test_a_file_that_cannot_be_written_whole_is_not_left_where_there_are_no_links(
    files: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: Any, target: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    write = local._write_all

    def write_a_part(descriptor: int, data: bytes) -> None:
        if len(os.listdir(files.local_path(""))) == 1:  # the partial file
            write(descriptor, data)
        else:
            write(descriptor, data[:1])
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(local.os, "link", link)
    monkeypatch.setattr(local, "_write_all", write_a_part)
    with pytest.raises(OSError, match="Input/output"):
        files.create("a", b"123", token="0")
    assert not files.exists("a")


def test_a_link_that_was_made_though_its_answer_was_lost_is_ours(
    files: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS asks again, and is told that the name is taken: by the link that it has just made."""
    link = os.link

    def of_nfs(source: Any, target: Any) -> None:
        link(source, target)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)

    monkeypatch.setattr(local.os, "link", of_nfs)
    assert files.create("a", b"1", token="0")
    monkeypatch.setattr(local.os, "link", link)
    assert not files.create("a", b"1", token="1")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_folder_that_cannot_be_synced_is_let_be(
    files: LocalStorage, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    files.write("a/b", b"1")

    def fsync(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(local.os, "fsync", fsync)
    files.sync_folders(["a/b"])
    with pytest.raises(OSError, match=os.strerror(number)):
        files.write("a/c", b"1")  # bytes that cannot be synced are not durable


def test_macos_is_asked_to_empty_the_memory_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda *arguments: asked.append(arguments))
    monkeypatch.setattr(local.os, "fsync", lambda descriptor: asked.append("fsync"))
    sync_file(7)
    assert asked == [(7, 51)]

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOTSUP, "")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    sync_file(7)
    assert asked == [(7, 51), "fsync"]
