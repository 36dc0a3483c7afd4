"""The planner and the resume at a billion samples, and what is done to a cache of many units.

    python benchmarks/bench_scale.py [--units 61036] [--samples 4000000] [--only PART] [--json] [--quick]

``--only units`` is the last of these three alone; it writes 400,000 small files (2 GB of a disk) and takes
some fifteen minutes on two cores that do nothing else.

Resume: a small cache is enlarged by as many committed units of images and of texts (tests/kit/large_cache.py:
records and catalog as a build writes them, empty files for shards). One image unit and one text unit are
missing, and the same build is run again in a process of its own, with a teacher without a model, three
times. Bounds: 10 s and 1 GB until the first unit is handed out.

Planner: samples that a generator makes, with a caption each, are scanned, kept and frozen, in a process of
its own for each number of samples; a real tar is scanned beside it. What a billion would take is
extrapolated.

Units: info, verify, an index, --retry-rejected and an append over whole caches of 15,000 and of 61,000 tiny
units (scale_units.py): what grows faster than the units is named.
"""

import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from arguments import benchmark_parser
from hardware import machine
from make_checkpoint import make_checkpoint
from scale_units import QUICK_SIZES, SIZES, units

from siglip2_cache.precompute.build import build
from siglip2_cache.precompute.planning.freeze import Freezer
from siglip2_cache.precompute.planning.scan import Scanner
from siglip2_cache.precompute.planning.spill import Scratch
from siglip2_cache.precompute.sources import CorpusPart, Sample, open_source
from siglip2_cache.precompute.sources.samples import Caption
from siglip2_cache.store.format import layout
from siglip2_cache.store.format.transaction import Transaction
from siglip2_cache.store.format.views import ViewPolicy
from siglip2_cache.store.io.local import LocalStorage

KIT = Path(__file__).resolve().parents[1] / "tests" / "kit"
sys.path.insert(0, str(KIT.parent))

from kit.fakes import FakeFactory, SilentProgress, config_of, write_folder_corpus  # noqa: E402
from kit.large_cache import add_shards, enlarge  # noqa: E402
from kit.run_resume import peak_bytes  # noqa: E402

SHARD_ROWS, TAR_SAMPLES = 16_384, 10_000
BILLION = 10**9
RESUME_BOUND_S, RESUME_BOUND_BYTES = 10.0, 1e9

_WORDS = [
    *("a", "photo", "of", "the", "small", "big", "red", "blue", "old", "new", "cat", "dog", "bird"),
    *("man", "woman", "child", "car", "tree", "house", "street", "table", "river", "mountain"),
    *("market", "bottle", "chair", "window", "in", "on", "at", "near", "under", "behind", "with"),
]


def main() -> None:
    parser = benchmark_parser(__doc__, quick="1,000 units, 40,000 samples")
    parser.add_argument("--units", type=int, default=61_036, help="of images, and of texts")
    parser.add_argument("--samples", type=int, default=4_000_000, help="of the largest plan")
    parser.add_argument("--only", choices=["resume", "planner", "units"])
    parser.add_argument("--folder", type=Path, help="where to put the data")
    parser.add_argument("--plan", nargs=2, type=int, metavar=("SAMPLES", "VIEWS"), help="one plan")
    args = parser.parse_args()
    if args.quick:
        args.units, args.samples = 1000, 40_000
    folder = Path(tempfile.mkdtemp(dir=args.folder, prefix="bench-scale-"))
    try:
        if args.plan:
            print(json.dumps(plan(folder, *args.plan)))
            return
        print(f"{machine('polars', 'pyarrow', 'numpy')}; load {os.getloadavg()[0]:.1f}")
        found: dict[str, Any] = {}
        if args.only in (None, "resume"):
            found["resume"] = resume(folder / "resume", args.units)
        if args.only in (None, "planner"):
            found["planner"] = planner(folder, args.samples)
        if args.only in (None, "units"):
            sizes = QUICK_SIZES if args.quick else SIZES
            found["units"] = units(folder / "units", sizes, run_json)
    finally:
        shutil.rmtree(folder)
    if args.json:
        print(json.dumps(found))


# -- resume


def resume(folder: Path, num_units: int, repeats: int = 3) -> dict[str, Any]:
    """Return seconds and bytes of going on with a build of which two units are missing."""
    checkpoint = make_checkpoint("tiny-patch16-64", folder / "checkpoint", dtype="float32")
    corpus = write_folder_corpus(folder / "corpus", 8)
    cache = folder / "cache"
    settings = config_of(corpus, cache, checkpoint, shard_rows=SHARD_ROWS)
    build(settings, progress=SilentProgress(), make_teacher=FakeFactory())
    enlarge(cache, num_units)
    add_shards(cache, num_units)
    command = [sys.executable, KIT / "run_resume.py", corpus, cache, checkpoint]
    runs = []
    for _ in range(repeats):
        uncommit(cache, num_units)
        runs.append(run_json([*command, "--shard-rows", str(SHARD_ROWS)]))
        assert runs[-1]["num_units"] == 2, runs[-1]
    rows = num_units * SHARD_ROWS
    print(f"\nresume of {rows:,} images and as many texts, {2 * num_units:,} records, 2 missing")
    print(f"{'':<44}{'median':>10}   each")
    found: dict[str, Any] = {"records": 2 * num_units, "load": [run["load"] for run in runs]}
    for stage, what in (("first_unit", "until the first unit"), ("whole", "until it has ended")):
        for key, unit, scale in (
            ("wall_s", "s", 1),
            ("cpu_s", "s of CPU", 1),
            ("peak_bytes", "MB", 1e6),
        ):
            each = [run[stage][key] for run in runs]
            found[f"{stage}_{key}"] = statistics.median(each)
            shown = ", ".join(f"{value / scale:.1f}" for value in each)
            median = statistics.median(each) / scale
            print(f"{what + ', ' + unit:<44}{median:>10.1f}   {shown}")
    print(f"load of the machine meanwhile: {', '.join(f'{load:.1f}' for load in found['load'])}")
    found["is_within_bounds"] = (
        found["first_unit_wall_s"] < RESUME_BOUND_S
        and found["whole_peak_bytes"] < RESUME_BOUND_BYTES
    )
    return found


def uncommit(cache: Path, unit: int) -> None:
    """Let the last units be missing."""
    [folder] = (cache / layout.TEACHERS).glob("*/commits")
    for modality in layout.MODALITIES:
        (folder / f"{modality}-{unit:05d}.json").unlink(missing_ok=True)


def run_json(command: list[Any]) -> dict[str, Any]:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"error: {' '.join(map(str, command))} failed")
    return json.loads(done.stdout.splitlines()[-1])


# -- planner


class GeneratedTars:
    """A source of tars that are not there: what scanning them would give."""

    kind = "webdataset"
    location = root = Path("/generated")
    settings: dict[str, Any] = {}  # noqa: RUF012 - of the protocol

    def __init__(self, num_samples: int) -> None:
        self._num_samples = num_samples

    def fingerprint(self) -> str:
        return str(self._num_samples)

    def parts(self) -> Iterator[CorpusPart]:
        for first in range(0, self._num_samples, TAR_SAMPLES):
            name = f"{first // TAR_SAMPLES:06d}"
            yield CorpusPart(
                f"{name}.tar", lambda name=name, first=first: self._scan(name, first), name
            )

    def _scan(self, name: str, first: int) -> Iterator[Sample]:
        offset = 0
        for i in range(first, first + TAR_SAMPLES):
            mixed = i * 2_654_435_761 % 2**40
            length = 50_000 + mixed % 100_000
            words = [_WORDS[(mixed >> shift) % len(_WORDS)] for shift in range(0, 36, 4)]
            yield Sample(
                key=f"{name}/{i:09d}",
                path=f"{name}.tar",
                member=f"{i:09d}.jpg",
                offset=offset + 512,
                length=length,
                captions=(Caption(f"{' '.join(words)} {i}"),),
                num_bytes=10**9,
                mtime_ns=10**18,
                place=f"/generated/{name}.tar member {i:09d}.jpg",
            )
            offset += length // 512 * 512 + 2048


def plan(folder: Path, num_samples: int, num_views: int) -> dict[str, float]:
    """Scan, keep and freeze generated samples; return seconds, bytes a sample and the peak of memory."""
    files = LocalStorage(folder)
    transaction = Transaction(files, layout.CACHE_RECORD)
    with Scratch(folder=folder) as scratch:
        freezer = Freezer(
            cache=None, views=ViewPolicy(num_views=num_views), sink=transaction, scratch=scratch
        )
        started = time.process_time()
        freezer.scan([("", GeneratedTars(num_samples))], Scanner(files, keeps=True))
        scanned = time.process_time()
        freezer.freeze()
        frozen = time.process_time()
        scratch_bytes = size_of(folder, "*.arrow")
    return {
        "samples": num_samples,
        "views": num_views,
        "scan_s": scanned - started,
        "freeze_s": frozen - scanned,
        "peak_bytes": peak_bytes(),
        "kept_bytes": size_of(folder, "scan-*"),
        "scratch_bytes": scratch_bytes,
        "catalog_bytes": sum(each["num_bytes"] for each in transaction.descriptions.values()),
    }


def planner(folder: Path, most_samples: int) -> dict[str, Any]:
    """Return what plans of three sizes took, one with views, and the rate at which a tar is scanned."""
    sizes = [most_samples // 4, most_samples // 2, most_samples]
    command = [sys.executable, __file__, "--folder", str(folder), "--plan"]
    plans = [run_json([*command, str(size), "1"]) for size in sizes]
    plans.append(run_json([*command, str(sizes[0]), "5"]))
    print(
        "\nplanner: generated samples, a caption each, tars of 10,000; seconds of CPU, one process"
    )
    print(
        f"{'samples':>12}{'views':>7}{'scan, s':>10}{'freeze, s':>11}{'peak, MB':>10}{'B a sample:':>13}"
        f"{'kept':>7}{'scratch':>9}{'catalog':>9}"
    )
    for each in plans:
        n = each["samples"]
        print(
            f"{n:>12,}{each['views']:>7}{each['scan_s']:>10.1f}{each['freeze_s']:>11.1f}"
            f"{each['peak_bytes'] / 1e6:>10.0f}{'':>13}{each['kept_bytes'] / n:>7.1f}"
            f"{each['scratch_bytes'] / n:>9.1f}{each['catalog_bytes'] / n:>9.1f}"
        )
    rate = tar_rate(folder / "tars", min(20_000, most_samples))
    whole = plans[2]
    freeze_h = whole["freeze_s"] / whole["samples"] * BILLION / 3600
    print(f"a real tar of small images and captions: {rate:,.0f} samples a second of CPU")
    print(
        f"a billion, extrapolated from {whole['samples']:,}: scan {BILLION / rate / 3600:.1f} h of one core, "
        f"freeze {freeze_h:.1f} h, kept scans {whole['kept_bytes'] / whole['samples']:.0f} GB"
    )
    return {"plans": plans, "tar_samples_per_s": rate}


def tar_rate(folder: Path, num_samples: int) -> float:
    """Return how many samples of a tar are scanned a second of CPU."""
    folder.mkdir()
    with tarfile.open(folder / "00000.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for i in range(num_samples):
            for suffix, data in (("jpg", bytes(3000)), ("txt", f"picture {i} of many".encode())):
                member = tarfile.TarInfo(f"{i:09d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    source = open_source(folder)
    assert sum(1 for _ in source.scan()) == num_samples  # the page cache is warm
    started = time.process_time()
    for _ in Scanner(LocalStorage(folder / "none"), keeps=False).frames(source):
        pass
    return num_samples / (time.process_time() - started)


def size_of(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.rglob(pattern) if path.is_file())


if __name__ == "__main__":
    main()
