"""A build of a large cache (large_cache.py), gone on with in a process of its own; prints JSON.

python run_resume.py CORPUS CACHE CHECKPOINT [--views N] [--shard-rows N]

The teacher is a fake: neither torch nor a model is loaded, and nothing but the build itself is measured.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from kit.fakes import FakeFactory, SilentProgress, config_of
from siglip2_cache.precompute.build import build


class _Watch(SilentProgress):
    """Notes when the first unit is about to be made."""

    def __init__(self) -> None:
        super().__init__()
        self.begun_s = time.monotonic()
        self.first_unit: dict[str, float] = {}

    def start(self, totals: Any, units: Any) -> None:
        super().start(totals, units)
        self.first_unit = self.passed()

    def passed(self) -> dict[str, float]:
        return {
            "wall_s": time.monotonic() - self.begun_s,
            "cpu_s": time.process_time() - CPU_OF_IMPORTS_S,
            "peak_bytes": peak_bytes(),
        }


CPU_OF_IMPORTS_S = time.process_time()


def peak_bytes() -> int:
    """Return the largest resident memory of this process so far (of Linux). That of getrusage counts the
    process that started this one in."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("corpus")
    parser.add_argument("cache", type=Path)
    parser.add_argument("checkpoint")
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--shard-rows", type=int, default=16_384)
    args = parser.parse_args()
    config = config_of(
        args.corpus,
        args.cache,
        args.checkpoint,
        num_views=args.views,
        shard_rows=args.shard_rows,
    )
    watch = _Watch()
    summary = build(config, progress=watch, make_teacher=FakeFactory())
    print(
        json.dumps(
            {
                "first_unit": watch.first_unit,
                "whole": watch.passed(),
                "num_units": summary.num_units,
                "num_images": summary.num_images,
                "num_texts": summary.num_texts,
                "load": os.getloadavg()[0],
            }
        )
    )


if __name__ == "__main__":
    main()
