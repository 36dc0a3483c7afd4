"""Files that are nobody's are passed by, in a cache and in folders that are to be empty."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from siglip2_cache.precompute.teacher.identity import finish_interrupted_teachers
from siglip2_cache.store.cache import open_cache
from siglip2_cache.store.io.foreign_files import is_stray
from siglip2_cache.store.io.local import LocalStorage
from siglip2_cache.store.verify.verify import verify_cache
from siglip2_cache.student.training.run_folder import RunFolder

if TYPE_CHECKING:
    from tests.foreign_cache import ForeignCache

STRAYS = (".DS_Store", "Thumbs.db", "desktop.ini", ".nfs000000000123abcd", "._cache.json")


@pytest.mark.parametrize(
    "path", [*STRAYS, "a/@eaDir/b.jpg", ".fuse_hidden0001", "teachers_$folder$", "teachers/"]
)
def test_what_desktops_and_file_systems_leave_is_a_stray(path: str) -> None:
    assert is_stray(path)


@pytest.mark.parametrize(
    "path", ["notes.txt", "cache.json", ".nfsworld", "a.DS_Store.b", ".hidden"]
)
def test_other_files_are_none(path: str) -> None:
    assert not is_stray(path)


@pytest.mark.parametrize("stray", STRAYS)
@pytest.mark.parametrize(
    "folder", ["", "teachers", "teachers/tiny", "teachers/tiny/commits", "catalog"]
)
def test_a_stray_in_any_folder_is_a_note(
    foreign: "ForeignCache", tmp_path: Path, stray: str, folder: str
) -> None:
    root = shutil.copytree(foreign.root, tmp_path / "cache")
    (root / folder / stray).write_bytes(b"x")
    finish_interrupted_teachers(LocalStorage(root))
    report = verify_cache(open_cache(root))
    assert report.faults == []
    where = f"{folder}/{stray}".removeprefix("/")
    assert report.notes == [f"ignored: 1 file of the desktop or the file system, the first {where}"]


def test_a_run_begins_in_a_folder_that_holds_strays_alone(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").write_bytes(b"x")
    RunFolder(tmp_path).close()
