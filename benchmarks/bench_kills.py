"""Random SIGKILLs of real builds, each started again until its cache is done: rows lost, rows doubled.

    python benchmarks/bench_kills.py [--kills 200] [--workers 1] [--seed 0] [--json] [--quick]

A build runs in a process of its own, with two decoding processes and a teacher without a model,
over a corpus that grows by an append. It is killed either at an instant drawn uniformly from the
time that an undisturbed build takes (imports, planning and the end included), or at one of its file
operations, drawn uniformly from those of an undisturbed build, a write halfway through. Then it is
started again, perhaps to be killed again, until it ends by itself. With --workers above 1 half of
the kills strike a worker instead, at an instant drawn likewise, and the build has to go on. A cache
that is done is compared with one that was never disturbed, byte for byte, and read back row by row.
Expected: zero everywhere.
"""

import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from arguments import benchmark_parser
from hardware import machine
from make_checkpoint import make_checkpoint

from siglip2_cache import open_cache
from siglip2_cache.store.verify.verify import verify_cache

KIT = Path(__file__).resolve().parents[1] / "tests" / "kit"
sys.path.insert(0, str(KIT.parent))

from kit.fakes import tree_of, write_folder_corpus  # noqa: E402

NUM_IMAGES, NUM_APPENDED = 24, 10
PATIENCE_S = 300.0


@dataclass
class Count:
    """What became of the builds so far."""

    kills: Counter[str] = field(default_factory=Counter[str])
    """Kills that struck, by the build's stage and by how the instant was drawn."""

    missed: int = 0
    """Builds that ended before their kill."""

    runs: int = 0
    caches: int = 0
    lost: int = 0
    doubled: int = 0
    differing: int = 0
    """Files with other bytes than the undisturbed build's, or that only one of the two has."""

    faults: int = 0
    """Of siglip2-cache verify."""

    @property
    def num_kills(self) -> int:
        return sum(self.kills.values())


@dataclass(frozen=True)
class Reference:
    """The build that nobody disturbed."""

    tree: dict[str, bytes]
    seconds: list[float]
    """Of the first build and of the append."""

    num_ops: list[int]
    keys: list[str]


def main() -> None:
    parser = benchmark_parser(__doc__, quick="10 kills")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.quick:
        args.kills = 10
    print(machine("torch", "zarr", "polars", "pyarrow"))
    with tempfile.TemporaryDirectory(prefix="bench-kills-") as folder:
        count = run(Path(folder), args.kills, args.workers, random.Random(args.seed))
    rows = {
        "kills": count.num_kills,
        "kills that came too late": count.missed,
        "builds started": count.runs,
        "caches": count.caches,
        "rows lost": count.lost,
        "rows doubled": count.doubled,
        "files differing": count.differing,
        "faults found by verify": count.faults,
    }
    by_kind = dict(sorted(count.kills.items()))
    for name, number in {**rows, **by_kind}.items():
        print(f"{name:<52}{number:>8,}")
    if args.json:
        found = {name.replace(" ", "_"): number for name, number in rows.items()}
        print(json.dumps({**found, "kills_by_kind": by_kind}))
    if count.lost or count.doubled or count.differing or count.faults:
        raise SystemExit(1)


def run(folder: Path, num_kills: int, num_workers: int, chance: random.Random) -> Count:
    checkpoint = make_checkpoint("tiny-patch16-64", folder / "checkpoint", dtype="float32")
    corpora = [folder / "first" / "corpus", folder / "appended" / "corpus"]
    write_folder_corpus(corpora[0], NUM_IMAGES, captions=2)
    shutil.copytree(corpora[0], corpora[1])
    write_folder_corpus(corpora[1], NUM_APPENDED, captions=2, first=NUM_IMAGES)
    corpus = folder / "corpus"  # one path for both states, for it stands in the cache
    cache = folder / "cache"
    build = command(corpus, cache, checkpoint, num_workers)
    reference = undisturbed(cache, build, corpus, corpora)
    count = Count()
    while count.num_kills < num_kills:
        for i, state in enumerate(corpora):
            point_to(corpus, state)
            build_despite_kills(build, reference, i, num_kills, num_workers, chance, count)
        compare(cache, reference, count)
        count.caches += 1
        shutil.rmtree(cache)
    return count


def undisturbed(cache: Path, build: list[str], corpus: Path, corpora: list[Path]) -> Reference:
    seconds, num_ops = [], []
    for state in corpora:
        point_to(corpus, state)
        started = time.monotonic()
        lines = subprocess.check_output(build, text=True)
        seconds.append(time.monotonic() - started)
        num_ops.append(int(lines.split("ops ")[1]))
    tree, keys = tree_of(cache), sorted(keys_of(cache))
    shutil.rmtree(cache)
    return Reference(tree, seconds, num_ops, keys)


def point_to(corpus: Path, state: Path) -> None:
    """Let the corpus be what it was at first, or after the append."""
    corpus.unlink(missing_ok=True)
    corpus.symlink_to(state)


def command(corpus: Path, cache: Path, checkpoint: Path, num_workers: int) -> list[str]:
    script = [sys.executable, str(KIT / "run_build.py"), str(corpus), str(cache), str(checkpoint)]
    workers = ["--workers", str(num_workers)]
    return [*script, *workers, "--decode-workers", "2", "--seconds", "0.02"]


def build_despite_kills(
    build: list[str],
    reference: Reference,
    state: int,
    num_kills: int,
    num_workers: int,
    chance: random.Random,
    count: Count,
) -> None:
    """Run a build until it ends by itself, killing it on the way while kills are left."""
    for _ in range(20):
        count.runs += 1
        if count.num_kills >= num_kills or chance.random() < 0.15:  # the last builds go undisturbed
            subprocess.run(build, check=True, capture_output=True, timeout=PATIENCE_S)
            return
        if num_workers > 1 and chance.random() < 0.5:
            kill_worker(build, chance.uniform(0, reference.seconds[state]), chance, count)
            return
        if chance.random() < 0.5:
            how, at, delay = "file operation", chance.randint(1, reference.num_ops[state]), None
        else:
            how, at, delay = "instant", -1, chance.uniform(0, reference.seconds[state])
        process = subprocess.Popen(
            [*build, "--kill-at", str(at)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            output, errors = process.communicate(timeout=delay or PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
        if process.returncode == 0:
            count.missed += 1
            return
        if process.returncode != -signal.SIGKILL:
            raise SystemExit(f"error: a build failed by itself: {errors[-2000:]}")
        stage = "while making units" if "unit" in output else "before the first unit"
        count.kills[f"at a random {how}, {stage}"] += 1
    subprocess.run(build, check=True, capture_output=True, timeout=PATIENCE_S)


def kill_worker(build: list[str], delay: float, chance: random.Random, count: Count) -> None:
    """Run a build to its end and kill one of its workers on the way."""
    process = subprocess.Popen(build, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(delay)
    workers: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):  # it has ended
        children = psutil.Process(process.pid).children()
        workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        if workers:
            chance.choice(workers).kill()
    _, errors = process.communicate(timeout=PATIENCE_S)
    if process.returncode != 0:
        raise SystemExit(f"error: a build failed by itself: {errors[-2000:]}")
    if workers:
        count.kills["of a worker, at a random instant"] += 1
    else:
        count.missed += 1


def compare(cache: Path, reference: Reference, count: Count) -> None:
    tree = tree_of(cache)
    for path in {*tree, *reference.tree}:
        if tree.get(path) != reference.tree.get(path):
            count.differing += 1
            print(f"differs: {path}")
    found = Counter(keys_of(cache))
    count.lost += sum(1 for key in reference.keys if not found[key])
    count.doubled += sum(number - 1 for number in found.values() if number > 1)
    count.faults += len(verify_cache(open_cache(cache)).faults)


def keys_of(cache: Path) -> list[str]:
    """Return the key of every sample that has a target, image and captions both."""
    opened = open_cache(cache)
    captions = opened.table("captions").collect()
    has_texts = set(opened.text_targets().available_rows().tolist())
    textless = {r for r, t in captions.select("row", "text_row").iter_rows() if t not in has_texts}
    has_image = set(opened.image_targets().available_rows().tolist())
    samples = opened.samples().select("row", "key").collect()
    return [key for row, key in samples.iter_rows() if row in has_image and row not in textless]


if __name__ == "__main__":
    main()
