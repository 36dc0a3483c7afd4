"""Random SIGKILLs of actors, nodes and drivers of builds on a Ray cluster: rows lost, rows doubled.

    python benchmarks/bench_cluster_kills.py [--kills 100] [--minutes M] [--seed 0] [--json] [--quick]

A cluster of two nodes runs on this machine, in a process of its own; a build by three actors, with a
teacher without a model, in another. Of 100 kills 73 strike an actor, 8 a node with all that runs on it,
7 a node's raylet alone, whose actors find themselves alone, and 12 the driver, at random moments and in
random order; another node joins for one that was lost, and a driver that was killed is started again. A
cache that is done is compared with one that a local build made undisturbed, byte for byte, and read back
row by row. Expected: zero everywhere. Actors that outlive their driver end the benchmark.
"""

import json
import os
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from arguments import benchmark_parser
from bench_kills import Count, Reference, compare, keys_of
from hardware import machine
from make_checkpoint import make_checkpoint

from siglip2_cache.precompute.build import build

KIT = Path(__file__).resolve().parents[1] / "tests" / "kit"
sys.path.insert(0, str(KIT.parent))

from kit import clusters  # noqa: E402
from kit.cluster_kills import (  # noqa: E402
    Kill,
    Toll,
    build_command,
    build_despite_kills,
    shuffled,
)
from kit.fakes import (  # noqa: E402
    FakeFactory,
    SilentProgress,
    config_of,
    tree_of,
    write_folder_corpus,
)

NUM_IMAGES = 60
SECONDS_A_BATCH = 0.2


@dataclass
class Found:
    """What a run came to."""

    count: Count = field(default_factory=Count)
    toll: Toll = field(default_factory=Toll)
    num_left: int = 0
    """Kills that there was no time for."""


def main() -> None:
    parser = benchmark_parser(__doc__, quick="6 kills")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument(
        "--minutes", type=float, help="kill no more after so long, and finish the cache at hand"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    num_kills = 6 if args.quick else args.kills
    print(machine("ray", "torch", "zarr", "polars", "pyarrow"))
    print(f"load averages {', '.join(f'{load:.1f}' for load in os.getloadavg())}")
    with tempfile.TemporaryDirectory(prefix="bench-cluster-kills-") as folder:
        found = run(Path(folder), num_kills, args.minutes, random.Random(args.seed))
    count, toll = found.count, found.toll
    rows = {
        "kills": toll.num_kills,
        "kills there was no time for": found.num_left,
        "builds started": toll.builds,
        "builds that gave up and were started again": toll.gave_up,
        "caches": count.caches,
        "rows lost": count.lost,
        "rows doubled": count.doubled,
        "files differing": count.differing,
        "faults found by verify": count.faults,
    }
    by_kind = dict(sorted(toll.kills.items()))
    times = {
        "from the loss of a node to the next unit": toll.unit_s,
        "driver listening for more than 0.5 s at a time": toll.waited_s,
        "from the death of a driver to that of its last actor": toll.actors_end_s,
    }
    for name, number in {**rows, **by_kind}.items():
        print(f"{name:<56}{number:>8,}")
    for name, seconds in times.items():
        print(f"{name:<56}{say(seconds):>8}")
    if args.json:
        found_rows = {name.replace(" ", "_"): number for name, number in rows.items()}
        print(json.dumps({**found_rows, "kills_by_kind": by_kind, "seconds": times}))
    if count.lost or count.doubled or count.differing or count.faults:
        raise SystemExit(1)


def say(seconds: list[float]) -> str:
    if not seconds:
        return "never"
    middle = statistics.median(seconds)
    return f"{len(seconds)} times, median {middle:.1f} s, longest {max(seconds):.1f} s"


def share_out(num_kills: int) -> dict[Kill, int]:
    """Return how many kills there are to be of each kind: of few ones, at least one."""
    driver, node, raylet = (max(1, num_kills * share // 100) for share in (12, 8, 7))
    actor = max(0, num_kills - driver - node - raylet)
    return {"actor": actor, "machine": node, "raylet": raylet, "driver": driver}


def run(folder: Path, num_kills: int, minutes: float | None, chance: random.Random) -> Found:
    checkpoint = make_checkpoint("tiny-patch16-64", folder / "checkpoint", dtype="float32")
    corpus = write_folder_corpus(folder / "corpus", NUM_IMAGES, captions=2)
    reference = undisturbed(folder / "alone", corpus, checkpoint)
    found = Found()
    deck = shuffled(share_out(num_kills), chance)
    ends_at = time.monotonic() + 60 * (minutes or float("inf"))
    with clusters.started() as cluster:
        while deck:
            cache = folder / f"cache{found.count.caches}"
            command = build_command(
                corpus, cache, checkpoint, cluster.address, seconds=SECONDS_A_BATCH
            )
            build_despite_kills(command, cluster, deck, chance, found.toll, ends_at=ends_at)
            compare(cache, reference, found.count)
            found.count.caches += 1
            if time.monotonic() > ends_at:
                break
    found.num_left = len(deck)
    return found


def undisturbed(cache: Path, corpus: Path, checkpoint: Path) -> Reference:
    """Build on this machine, in this process."""
    config = config_of(corpus, cache, checkpoint, shard_rows=2, batch_size=1)
    build(config, progress=SilentProgress(), make_teacher=FakeFactory())
    return Reference(tree_of(cache), [], [], sorted(keys_of(cache)))


if __name__ == "__main__":
    main()
