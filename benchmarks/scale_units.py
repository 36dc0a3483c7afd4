"""What is done to a whole cache of many units, at two numbers of them: time and memory, a process each.

    python benchmarks/scale_units.py TASK FOLDER

is one of these processes (bench_scale.py starts them).
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

KIT = Path(__file__).resolve().parents[1] / "tests" / "kit"
sys.path.insert(0, str(KIT.parent))

from kit.fakes import FakeFactory, SilentProgress, config_of, write_folder_corpus  # noqa: E402
from kit.many_units import REJECTED_EVERY, grow  # noqa: E402
from kit.run_resume import peak_bytes  # noqa: E402
from make_checkpoint import make_checkpoint  # noqa: E402

from siglip2_cache import open_cache  # noqa: E402
from siglip2_cache.precompute.build import build  # noqa: E402
from siglip2_cache.precompute.config import BuildConfig  # noqa: E402
from siglip2_cache.precompute.planning.plan import make_plan  # noqa: E402
from siglip2_cache.progress import Display, TaskProgress  # noqa: E402
from siglip2_cache.store.describe import describe  # noqa: E402
from siglip2_cache.store.format.layout import IndexId  # noqa: E402
from siglip2_cache.store.io.local import LocalStorage  # noqa: E402
from siglip2_cache.store.search.index_build import build_index  # noqa: E402
from siglip2_cache.store.verify.verify import verify_cache  # noqa: E402

SIZES = (15_000, 61_000)
QUICK_SIZES = (100, 400)
SHARD_ROWS = 8
BLOCK_ROWS = 256
"""Of an index: as many blocks a unit as a unit of 16,384 rows has at SO400M's width, and a little less."""

_LINEAR = 1.3
"""Times the growth of the units that seconds may grow and still be called in proportion."""


def make(folder: Path, num_units: int) -> None:
    """Write a corpus of eight pictures, a checkpoint, and a cache that is whole."""
    make_checkpoint("tiny-patch16-64", folder / "checkpoint", dtype="float32")
    write_folder_corpus(folder / "corpus", SHARD_ROWS)
    build(_config(folder), progress=SilentProgress(), make_teacher=FakeFactory())
    grow(folder / "cache", num_units)


def info(folder: Path) -> None:
    """As ``siglip2-cache info``."""
    found = describe(open_cache(folder / "cache"))
    assert found["samples"] > 0


def verify(folder: Path) -> None:
    """As ``siglip2-cache verify``."""
    report = verify_cache(open_cache(folder / "cache"))
    assert report.is_sound, report.faults[:3]


def index(folder: Path) -> None:
    """As ``siglip2-cache index --kind flat``, of which adding is copying."""
    cache = open_cache(folder / "cache")
    place = IndexId(teacher=cache.teachers[0], modality="image")
    build_index(cache, place, progress=TaskProgress(Display()), kind="flat", block_rows=BLOCK_ROWS)


def retry(folder: Path) -> None:
    """As ``siglip2-cache build --retry-rejected``, with a teacher without a model."""
    num_units = open_cache(folder / "cache").num_samples // SHARD_ROWS
    config = _config(folder, retry_rejected=True)
    summary = build(config, progress=SilentProgress(), make_teacher=FakeFactory())
    assert summary.num_units == -(-num_units // REJECTED_EVERY), summary.num_units
    assert summary.num_rejected == 0


def append(folder: Path) -> None:
    """As the plan of a build that finds eight pictures more."""
    write_folder_corpus(folder / "corpus", SHARD_ROWS, first=SHARD_ROWS)
    found = make_plan(_config(folder).plan, LocalStorage(folder / "cache"))
    assert found.was_scanned
    assert found.findings.num_gone > 0


TASKS: dict[str, Callable[[Path], None]] = {
    "info": info,
    "verify": verify,
    "index": index,
    "retry": retry,
    "append": append,
}
"""In this order: the last two change the cache."""


def _config(folder: Path, **settings: Any) -> BuildConfig:
    paths = (folder / "corpus", folder / "cache", folder / "checkpoint")
    return config_of(*paths, shard_rows=SHARD_ROWS, batch_size=4, **settings)


def units(
    folder: Path, sizes: Sequence[int], run_json: Callable[[list[Any]], dict[str, Any]]
) -> dict[str, Any]:
    """Return seconds and bytes of each task at each number of units, and whether they are linear."""
    found: dict[str, list[dict[str, float]]] = {task: [] for task in TASKS}
    for size in sizes:
        here = folder / str(size)
        make(here, size)
        for task in TASKS:
            found[task].append(run_json([sys.executable, __file__, task, str(here)]))
    fewer, more = sizes
    print(
        f"\nunits: whole caches of {fewer:,} and {more:,} units of images and as many of texts, "
        f"{SHARD_ROWS} rows each; {more / fewer:.2f} times as many"
    )
    print(
        f"{'':<10}{'seconds of CPU':>18}{'':>10}{'times':>8}{'peak, MB':>13}{'':>9}{'B a unit':>10}"
    )
    result: dict[str, Any] = {"sizes": list(sizes), "tasks": found, "is_linear": {}}
    for task, (first, second) in found.items():
        times = second["cpu_s"] / first["cpu_s"]
        bytes_a_unit = (second["peak_bytes"] - first["peak_bytes"]) / (more - fewer)
        result["is_linear"][task] = is_linear = times <= _LINEAR * more / fewer
        verdict = "" if is_linear else "  more than in proportion"
        print(
            f"{task:<10}{first['cpu_s']:>18.2f}{second['cpu_s']:>10.2f}{times:>8.2f}"
            f"{first['peak_bytes'] / 1e6:>13.0f}{second['peak_bytes'] / 1e6:>9.0f}{bytes_a_unit:>10.0f}"
            f"{verdict}"
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="One task, in this process.")
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    begun = time.process_time()
    TASKS[args.task](args.folder)
    print(json.dumps({"cpu_s": time.process_time() - begun, "peak_bytes": peak_bytes()}))


if __name__ == "__main__":
    main()
