"""Scans that are kept: a killed plan goes on where it was, and no kept file is ever believed blindly."""

import hashlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from kit.fakes import tree_of
from kit.patience import PATIENCE_S
from kit.pieces import PieceSource, plan_pieces

from siglip2_cache import open_cache
from siglip2_cache.precompute.planning import scan
from siglip2_cache.precompute.planning.scan import Scanner
from siglip2_cache.precompute.sources import Problem
from siglip2_cache.store.io.local import LocalStorage
from siglip2_cache.store.verify.verify import verify_cache

PIECES = Path(__file__).parents[3] / "kit" / "pieces.py"
NAMES = ["0.list", "1.list", "2.list", "3.list"]
SAMPLES = 10


@pytest.fixture
def source(tmp_path: Path) -> PieceSource:
    """Four pieces of ten samples, of which the third has problems; the fourth is longer."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i, name in enumerate(NAMES):
        lines = [f"k{i}{j:02d}" for j in range(SAMPLES + i)]
        (folder / name).write_text("\n".join([*lines, "!odd"] if i == 2 else lines))
    return PieceSource(folder)


@pytest.fixture
def small_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "SCAN_ROWS", 4)


def in_a_process(source: PieceSource, cache: Path, *kill_at: int) -> int:
    command = [sys.executable, str(PIECES), str(source.location), str(cache), *map(str, kill_at)]
    return subprocess.run(command, stderr=subprocess.DEVNULL, timeout=PATIENCE_S).returncode


def kept(cache: Path) -> list[Path]:
    return sorted((cache / "catalog").glob("scan-*"))


def scan_all(source: PieceSource, cache: Path, *, keeps: bool = True) -> pl.DataFrame:
    return pl.concat(Scanner(LocalStorage(cache), keeps=keeps).frames(source))


def test_a_killed_plan_goes_on_with_the_piece_it_was_at(
    source: PieceSource, tmp_path: Path
) -> None:
    assert in_a_process(source, tmp_path / "cache", 3) == -9
    assert source.scanned == NAMES[:3]
    assert len(kept(tmp_path / "cache")) == 2
    assert not (tmp_path / "cache" / "cache.json").exists()
    plan_pieces(source, tmp_path / "cache")
    assert source.scanned == [*NAMES[:3], *NAMES[2:]]
    plan_pieces(source, tmp_path / "undisturbed")
    assert tree_of(tmp_path / "cache") == tree_of(tmp_path / "undisturbed")
    assert open_cache(tmp_path / "cache").num_samples == 4 * SAMPLES + 6


def test_keeping_a_scan_syncs_nothing(
    source: PieceSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache/catalog").mkdir(parents=True)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    scan_all(source, tmp_path / "cache")
    assert len(kept(tmp_path / "cache")) == len(NAMES)
    assert synced == []


def test_kept_scans_are_gone_after_the_commit(source: PieceSource, tmp_path: Path) -> None:
    plan_pieces(source, tmp_path / "cache")
    assert kept(tmp_path / "cache") == []
    assert source.scanned == NAMES


def test_two_plans_in_two_processes_give_equal_bytes(source: PieceSource, tmp_path: Path) -> None:
    for cache in ("one", "other"):
        assert in_a_process(source, tmp_path / cache) == 0
    assert tree_of(tmp_path / "one") == tree_of(tmp_path / "other")


def test_two_plans_of_one_cache_at_once_give_the_bytes_of_one(
    source: PieceSource, tmp_path: Path
) -> None:
    command = [sys.executable, str(PIECES), str(source.location), str(tmp_path / "cache")]
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    plan_pieces(source, tmp_path / "alone")
    assert tree_of(tmp_path / "cache") == tree_of(tmp_path / "alone")


def test_readers_and_verify_pass_over_kept_scans_and_the_next_build_removes_them(
    source: PieceSource, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    plan_pieces(source, cache)
    before = open_cache(cache).samples().collect()
    scan_all(source, cache)
    assert len(kept(cache)) == 4
    assert open_cache(cache).samples().collect().equals(before)
    report = verify_cache(open_cache(cache))
    assert [fault for fault in report.faults if "scan-" in fault] == []
    [note] = report.notes
    assert note.startswith("4 temporary files of interrupted commits; a finished build removes")
    plan_pieces(source, cache)
    assert kept(cache) == []


def test_a_dry_run_writes_nothing_and_uses_what_a_killed_plan_kept(
    source: PieceSource, tmp_path: Path
) -> None:
    plan_pieces(source, tmp_path / "cache", is_dry_run=True)
    assert not (tmp_path / "cache").exists()
    assert in_a_process(source, tmp_path / "killed", len(NAMES) + 3) == -9
    before, scanned = tree_of(tmp_path / "killed"), source.scanned
    found = plan_pieces(source, tmp_path / "killed", is_dry_run=True)
    assert found.findings.num_samples == 4 * SAMPLES + 6
    assert tree_of(tmp_path / "killed") == before
    assert source.scanned == [*scanned, *NAMES[2:]]


def test_a_piece_with_another_fingerprint_is_scanned_again(
    source: PieceSource, tmp_path: Path
) -> None:
    scan_all(source, tmp_path)
    (source.location / NAMES[1]).write_text("new")
    found = scan_all(source, tmp_path)
    assert source.scanned == [*NAMES, NAMES[1]]
    assert found["key"].to_list()[SAMPLES : SAMPLES + 2] == ["new", "k200"]


def flip(at: int) -> Callable[[Path], Any]:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(data)

    return damage


def hold(body: bytes) -> Callable[[Path], Any]:
    """Make a kept scan with a checksum that fits, as somebody else could."""

    def damage(path: Path) -> None:
        mark = path.read_bytes()[32:33]
        path.write_bytes(hashlib.sha256(mark + body).digest() + mark + body)

    return damage


def arrow(frame: pl.DataFrame) -> bytes:
    sink = io.BytesIO()
    frame.write_ipc(sink)
    return sink.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(hold(b"no Arrow file"), id="no frame"),
        pytest.param(hold(arrow(pl.DataFrame({"key": [1]}))), id="a frame of other columns"),
        pytest.param(flip(5), id="a bit of the hash"),
        pytest.param(flip(32), id="the mark of the last frame"),
        pytest.param(flip(60), id="a bit of the frame"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-9]), id="torn"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.unlink(), id="missing"),
        pytest.param(lambda path: (path.unlink(), path.mkdir()), id="a folder"),
    ],
)
@pytest.mark.usefixtures("small_frames")
def test_a_damaged_frame_of_any_number_is_scanned_again_with_equal_result(
    source: PieceSource, tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    expected = scan_all(source, tmp_path / "whole")
    frames = kept(tmp_path / "whole")
    assert len(frames) == 3 + 3 + 4 + 4  # of 10, 11, 12 + 1 and 13 lines in fours
    for i, frame in enumerate(frames):
        copy = shutil.copytree(tmp_path / "whole", tmp_path / str(i))
        damage(copy / "catalog" / frame.name)
        before = source.scanned
        assert scan_all(source, copy, keeps=False).equals(expected)
        assert len(source.scanned) == len(before) + 1


@pytest.mark.usefixtures("small_frames")
def test_a_piece_of_several_frames_of_which_the_last_was_not_kept_is_scanned_again(
    source: PieceSource, tmp_path: Path
) -> None:
    frames = iter(Scanner(LocalStorage(tmp_path), keeps=True).frames(source))
    taken = [next(frames) for _ in range(5)]  # three of the first piece, two of the second
    del frames
    found = scan_all(source, tmp_path)
    assert source.scanned == [*NAMES[:2], *NAMES[1:]]
    assert found[: 10 + 8].equals(pl.concat(taken))
    assert found.equals(scan_all(source, tmp_path / "other"))


@pytest.mark.usefixtures("small_frames")
def test_kept_scans_that_another_plan_clears_meanwhile_are_scanned_again(
    source: PieceSource, tmp_path: Path
) -> None:
    expected = scan_all(source, tmp_path)
    for num_before in range(14):
        found: list[pl.DataFrame] = []
        for frame in Scanner(LocalStorage(tmp_path), keeps=True).frames(source):
            found.append(frame)
            if len(found) == num_before + 1:
                Scanner(LocalStorage(tmp_path), keeps=True).clear()
        assert pl.concat(found).equals(expected)
        scan_all(source, tmp_path)


def test_frames_kept_at_another_size_are_not_mixed_with_those_of_today(
    source: PieceSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = scan_all(source, tmp_path / "other")
    monkeypatch.setattr(scan, "SCAN_ROWS", 4)
    scan_all(source, tmp_path)
    monkeypatch.setattr(scan, "SCAN_ROWS", 5)
    for frame in kept(tmp_path):
        if frame.name.endswith("-00001.partial"):
            flip(60)(frame)
    assert scan_all(source, tmp_path).equals(expected)


def test_odd_bytes_of_a_folder_are_shown_in_every_text_of_a_problem() -> None:
    odd = os.fsdecode(b"/corpus/\xff")
    problem = Problem(place=f"{odd}/a.tar", reason=f"touch {odd}/a_stats.json", key=odd)
    [frame] = scan._frames([problem])
    shown = "/corpus/\\udcff"
    assert frame.select("place", "reason", "key").row(0) == (
        f"{shown}/a.tar",
        f"touch {shown}/a_stats.json",
        shown,
    )
