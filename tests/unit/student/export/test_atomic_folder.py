"""A folder that appears whole or not at all."""

from pathlib import Path

import pytest

from siglip2_cache.errors import SettingError
from siglip2_cache.student.export.atomic_folder import MARK, replaced_atomically


def write(out: Path, text: str) -> None:
    with replaced_atomically(out) as folder:
        (folder / MARK).write_text(text)
        (folder / f"of {text}").write_text("")


def tree(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_an_earlier_one_is_replaced_whole(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    write(out, "first")
    write(out, "second")
    assert tree(tmp_path) == {f"new/out/{MARK}", "new/out/of second"}
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_the_earlier_one_stands_until_the_new_one_is_whole(tmp_path: Path) -> None:
    write(tmp_path / "out", "first")
    with replaced_atomically(tmp_path / "out") as folder:
        (folder / MARK).write_text("second")
        assert (tmp_path / "out" / MARK).read_text() == "first"
    assert (tmp_path / "out" / MARK).read_text() == "second"


@pytest.mark.parametrize("is_empty", [True, False], ids=["empty", "of somebody else"])
def test_only_an_empty_folder_is_taken_from_somebody_else(tmp_path: Path, is_empty: bool) -> None:
    out = tmp_path / "photographs"
    out.mkdir()
    if is_empty:
        write(out, "mine")
        assert tree(out) == {MARK, "of mine"}
        return
    (out / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(SettingError, match=r"photographs exists without siglip2_cache\.js"):
        write(out, "mine")
    assert tree(tmp_path) == {"photographs/cat.jpg"}


def test_a_file_of_that_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(SettingError, match=r"out exists without siglip2_cache\.json"):
        write(tmp_path / "out", "mine")
    assert (tmp_path / "out").read_text() == "a file"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_earlier_one_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    write(tmp_path / "out", "first")

    def fail() -> None:
        with replaced_atomically(tmp_path / "out") as folder:
            (folder / "half").write_text("")
            raise error

    with pytest.raises(error):
        fail()
    assert tree(tmp_path) == {f"out/{MARK}", "out/of first"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_process_left_is_put_right(tmp_path: Path) -> None:
    write(tmp_path / "out", "first")
    (tmp_path / "out").rename(tmp_path / "out.earlier.partial")  # killed between its renames
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "half").write_text("")
    with pytest.raises(ValueError, match="again"), replaced_atomically(tmp_path / "out"):
        raise ValueError("again")
    assert tree(tmp_path) == {f"out/{MARK}", "out/of first"}
    write(tmp_path / "out", "second")
    assert tree(tmp_path) == {f"out/{MARK}", "out/of second"}


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    write(tmp_path / "real", "first")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link", "second")
    assert (tmp_path / "link").is_symlink()
    assert tree(tmp_path / "real") == {MARK, "of second"}
