"""Patterns of files: what they stand for, in which order."""

from pathlib import Path

import pytest

from siglip2_cache.errors import SourceError
from siglip2_cache.precompute.sources.globs import expand, is_pattern, matches_any, pattern_root


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for name in ("a/000.tar", "a/001.tar", "b/010.tar", "b/002.tar", "b/[x].tar", "b/note.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a/*.tar", ["a/000.tar", "a/001.tar"]),
        ("b/{002..003}.tar", ["b/002.tar", "b/003.tar"]),  # one is missing: it will be missed
        ("{b,a}/0*.tar", ["b/002.tar", "b/010.tar", "a/000.tar", "a/001.tar"]),
        ("a/{0..1}.tar", ["a/0.tar", "a/1.tar"]),
        ("a/{8..11}.tar", ["a/8.tar", "a/9.tar", "a/10.tar", "a/11.tar"]),
        ("**/00?.tar", ["a/000.tar", "a/001.tar", "b/002.tar"]),
        ("a/{000,000}.tar", ["a/000.tar"]),
    ],
)
def test_a_pattern_stands_for_files_in_order(shards: Path, pattern: str, names: list[str]) -> None:
    assert is_pattern(shards / pattern)
    assert expand(shards / pattern) == [shards / name for name in names]


def test_a_file_with_odd_characters_is_no_pattern(shards: Path) -> None:
    assert not is_pattern(shards / "b/[x].tar")
    assert not is_pattern(shards / "b/gone.tar")


def test_a_glob_that_nothing_fits_is_refused_by_name(shards: Path) -> None:
    with pytest.raises(SourceError, match=rf"no file matches {shards}/c/\*\.tar"):
        expand(shards / "{a,c}/*.tar")


def test_braces_that_count_backwards_are_refused(shards: Path) -> None:
    with pytest.raises(SourceError, match="counts from 5 to 2; write the smaller number first"):
        expand(shards / "{5..2}.tar")


@pytest.mark.parametrize("braces", ["{0..99999999999}", "{000..999}{000..999}{a,b}", "{a,b}" * 30])
def test_braces_that_count_too_far_are_refused_at_once(shards: Path, braces: str) -> None:
    with pytest.raises(SourceError, match="names more than 1,000,000 files; write fewer braces"):
        expand(shards / f"{braces}.tar")


def test_the_root_is_the_folder_above_the_pattern() -> None:
    assert pattern_root(Path("/data/{a,b}/x.tar")) == Path("/data")
    assert pattern_root(Path("/data/a/x-{0..3}.tar")) == Path("/data/a")
    assert pattern_root(Path("/data/a/x.tar")) == Path("/data/a")


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("a", True),
        ("a/*.tar", True),
        ("b/{000..003}.tar", True),
        ("b/{003..005}.tar", False),
        ("c", False),
        ("c/*", False),
    ],
)
def test_a_location_matches_any_or_not(shards: Path, location: str, expected: bool) -> None:
    assert matches_any(shards / location) == expected
