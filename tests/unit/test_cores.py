"""The cores of a process: its affinity, and the quota of its cgroup where that is less."""

import os
from pathlib import Path

import pytest

from siglip2_cache import cores
from siglip2_cache.cores import decoders_beside_training, num_cores


@pytest.fixture(autouse=True)
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, 8, id="no cgroups: the affinity"),
        pytest.param(
            {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"},
            8,
            id="no quota",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "350000 100000\n"},
            4,
            id="3.5 cores",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "200000 100000\n"},
            2,
            id="of a group above",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/host/x\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"},
            1,
            id="in a container that sees its own group as the top",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "6400000 100000\n"},
            8,
            id="a quota above the affinity",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "3:memory:/m\n2:cpu,cpuacct:/job\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            3,
            id="version 1",
        ),
        pytest.param(
            {"proc/self/cgroup": "nonsense\n0::/a\n", "sys/fs/cgroup/a/cpu.max": "soon 0\n"},
            8,
            id="what cannot be read is no quota",
        ),
    ],
)
def test_the_cores_are_those_that_the_process_may_use(
    tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    assert num_cores(machine(tmp_path, files)) == expected


def test_without_affinity_there_are_as_many_as_the_machine_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert num_cores(tmp_path) == 64


@pytest.mark.parametrize(
    ("num_here", "num_ranks", "expected"), [(64, 8, 7), (16, 1, 14), (2, 1, 1), (8, 8, 1)]
)
def test_ranks_share_the_cores_less_two_for_decoding(
    monkeypatch: pytest.MonkeyPatch, num_here: int, num_ranks: int, expected: int
) -> None:
    monkeypatch.setattr(cores, "num_cores", lambda: num_here)
    assert decoders_beside_training(num_ranks) == expected
