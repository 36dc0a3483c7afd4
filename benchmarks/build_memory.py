"""How much memory a build takes, its decoding processes included."""

import subprocess
import sys
import time
from pathlib import Path

import psutil

_INTERVAL_S = 0.05


def peak_of_builds(table: Path, cache: Path, teacher: Path) -> int:
    """Return the largest anonymous memory in bytes of the processes of one build, sampled."""
    command = [sys.executable, "-m", "siglip2_cache.cli", "build", str(table), str(cache)]
    options = ["--teacher", str(teacher), "--shard-rows", "1024", "--device", "cpu"]
    peak = 0
    with subprocess.Popen(
        [*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as build:
        process = psutil.Process(build.pid)
        while build.poll() is None:
            peak = max(peak, anonymous_bytes(process))
            time.sleep(_INTERVAL_S)
    if build.returncode != 0:
        raise SystemExit(f"error: {' '.join([*command, *options])} failed: {build.returncode}")
    return peak


def anonymous_bytes(process: psutil.Process) -> int:
    """Return the anonymous memory of a process and its descendants: no mapped files, no pixels
    shared between them, which a build holds in a block of fixed size."""
    total = 0
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for each in family:
        try:
            lines = Path(f"/proc/{each.pid}/status").read_text().splitlines()
        except OSError:  # it has ended
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))
    return total
