"""How many cores this process may use, and how many decoding processes to start on them."""

import math
import os
from pathlib import Path

_MOST_DECODERS = 16


def num_cores(root: Path = Path("/")) -> int:
    """Return the number of cores in the process's affinity mask, at most its cgroup's quota.

    Args:
        root: folder of /proc and /sys; tests pass their own.
    """
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    quota = _quota(root)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cores_each(num_processes: int) -> int:
    """Return how many cores of this machine each of so many processes may use."""
    return max(1, num_cores() // num_processes)


def decoders_for(cores: int) -> int:
    """Return how many decoding processes to start on so many cores: one a core, at most 16."""
    return min(_MOST_DECODERS, cores)


def decoders_beside_training(num_ranks: int) -> int:
    """Return how many decoding processes each rank of this machine starts, at least 1.

    Two cores are left to the ranks themselves, which launch kernels and assemble batches.
    """
    return max(1, (num_cores() - 2) // num_ranks)


def _quota(root: Path) -> float | None:
    """Return the smallest quota, in cores, of the process's cgroup and its parents; None without one.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max) and, for version 1,
    https://docs.kernel.org/scheduler/sched-bwc.html.
    """
    found: list[float] = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / ("sys/fs/cgroup/cpu" if controllers else "sys/fs/cgroup")
        below = top / path.strip("/")
        # In a container the path may be the host's. Then only the top exists, and it is the container's.
        for folder in (below, *below.parents):
            if not folder.is_relative_to(top):
                break
            quota, period = _limit(folder, is_version_1=bool(controllers))
            if quota.isdecimal() and period.isdecimal() and int(period):
                found.append(int(quota) / int(period))
    return min(found, default=None)


def _limit(folder: Path, *, is_version_1: bool) -> tuple[str, str]:
    """Return quota and period in microseconds; the quota is ``max`` or -1 if there is none."""
    if is_version_1:
        files = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        quota, period = (_read(folder / name).strip() for name in files)
        return quota, period
    quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
    return quota, period


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""
