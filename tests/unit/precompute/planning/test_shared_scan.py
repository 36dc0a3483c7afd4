"""Scans that others make for the planner: shares that wait, and processes of its own."""

import io
import tarfile
import threading
from pathlib import Path

import polars as pl
import pytest

from siglip2_cache.precompute.planning import shared_scan
from siglip2_cache.precompute.planning.config import PlanConfig
from siglip2_cache.precompute.planning.plan import make_plan
from siglip2_cache.precompute.planning.scan import Scanner
from siglip2_cache.precompute.planning.shared_scan import (
    scan_in_processes,
    scan_in_thread,
    scan_slice,
)
from siglip2_cache.precompute.planning.source_names import name_sources
from siglip2_cache.precompute.ranks import ProcessRank
from siglip2_cache.precompute.sources import CorpusPart
from siglip2_cache.store.io.local import LocalStorage

NUM_SHARDS = 6


@pytest.fixture
def config(tmp_path: Path) -> PlanConfig:
    """Six tars of two pictures on a disk."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for shard in range(NUM_SHARDS):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for name in (f"{shard}a.jpg", f"{shard}b.jpg"):
                member = tarfile.TarInfo(name)
                member.size = 3
                tar.addfile(member, io.BytesIO(b"jpg"))
    return PlanConfig(sources=(str(folder),))


@pytest.fixture
def files(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "cache")


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the pieces that this process scans."""
    names: list[str] = []
    real = Scanner._scan_and_keep

    def scan_and_keep(self: Scanner, piece: CorpusPart, digest: str) -> object:
        names.append(piece.name)
        return real(self, piece, digest)

    monkeypatch.setattr(Scanner, "_scan_and_keep", scan_and_keep)
    return names


def keys(config: PlanConfig, files: LocalStorage) -> list[str]:
    [(_, source)] = name_sources(config, None)
    return pl.concat(Scanner(files, keeps=True).frames(source))["key"].to_list()


def test_shares_that_wait_scan_what_lies_on_a_disk_too(
    config: PlanConfig, files: LocalStorage, scanned: list[str]
) -> None:
    for index in (1, 2):
        scan_slice(config, files, index, 3)
    assert scanned == ["1.tar", "4.tar", "2.tar", "5.tar"]
    scanned.clear()
    assert keys(config, files) == [f"{i}{which}" for i in range(NUM_SHARDS) for which in "ab"]
    assert scanned == ["0.tar", "3.tar"]
    scanned.clear()
    scan_slice(config, files, 0, 1)
    assert scanned == []


def test_a_share_that_need_not_wait_any_longer_stops_behind_its_piece(
    config: PlanConfig, files: LocalStorage, scanned: list[str]
) -> None:
    scan_slice(config, files, 0, 1, is_over=lambda: len(scanned) == 2)
    assert scanned == ["0.tar", "1.tar"]
    with scan_in_thread(config, files, ProcessRank(rank=1, world_size=2)):
        pass
    assert "share-scans" not in [thread.name for thread in threading.enumerate()]


def test_processes_scan_what_the_planner_then_finds(
    config: PlanConfig, files: LocalStorage, scanned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_scan, "_PARTS_EACH", 3)
    monkeypatch.setattr(shared_scan, "num_cores", lambda: 3)
    with scan_in_processes(config, files) as processes:
        for process in processes:
            process.join(300)
        assert [process.exitcode for process in processes] == [0, 0]
        assert len(keys(config, files)) == 2 * NUM_SHARDS
    assert scanned == ["0.tar", "3.tar"]


def test_processes_end_with_the_plan(
    config: PlanConfig, files: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_scan, "_PARTS_EACH", 3)
    monkeypatch.setattr(shared_scan, "num_cores", lambda: 3)
    plan = make_plan(config, files, scan_ahead=lambda: scan_in_processes(config, files))
    assert plan.findings.num_samples == 2 * NUM_SHARDS
    assert not [name for name in files.names("catalog") if name.startswith("scan-")]
    with scan_in_processes(config, files) as processes:
        pass
    assert not any(process.is_alive() for process in processes)


@pytest.mark.parametrize(("num_cores", "pieces_each"), [(1, 1), (8, NUM_SHARDS + 1)])
def test_no_process_is_started_for_few_pieces_or_without_a_spare_core(
    config: PlanConfig,
    files: LocalStorage,
    monkeypatch: pytest.MonkeyPatch,
    num_cores: int,
    pieces_each: int,
) -> None:
    monkeypatch.setattr(shared_scan, "_PARTS_EACH", pieces_each)
    monkeypatch.setattr(shared_scan, "num_cores", lambda: num_cores)
    with scan_in_processes(config, files) as processes:
        assert processes == []
