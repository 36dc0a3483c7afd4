"""A build with the fake teacher on a Ray cluster of two nodes of this machine, one of which goes.

python run_ray.py CORPUS CACHE CHECKPOINT [--kill-actor-at N] [--remove-node-at N] [--seconds S]

After N units an actor is killed with SIGKILL, a node is removed. Prints what was said.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil
from ray.cluster_utils import Cluster

from kit.fakes import FakeFactory, SilentProgress, config_of
from siglip2_cache.commands.options import given_location
from siglip2_cache.precompute.build import build


def actors() -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::_Actor"):
                found.append(process)
        except psutil.Error:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("corpus")
    parser.add_argument("cache", type=given_location)
    parser.add_argument("checkpoint")
    parser.add_argument("--kill-actor-at", type=int, default=-1)
    parser.add_argument("--remove-node-at", type=int, default=-1)
    parser.add_argument("--seconds", type=float, default=0.0)
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])  # actors unpickle the fake teacher
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    started = time.monotonic()
    node_args = {"num_cpus": 2, "object_store_memory": 80_000_000}
    cluster = Cluster(
        initialize_head=True, head_node_args={**node_args, "include_dashboard": False}
    )
    second = cluster.add_node(**node_args)
    num_units = 0

    def kill_actor() -> None:
        [*_, victim] = actors()
        os.kill(victim.pid, signal.SIGKILL)

    acts: dict[int, Callable[[], None]] = {
        args.kill_actor_at: kill_actor,
        args.remove_node_at: lambda: cluster.remove_node(second, allow_graceful=False),
    }

    def on_unit() -> None:
        nonlocal num_units
        num_units += 1
        if num_units in acts:
            acts[num_units]()

    progress = SilentProgress(on_unit)
    progress.say = lambda message: print(  # type: ignore[method-assign]
        f"{time.monotonic() - started:5.1f} {message}", flush=True
    )
    config = config_of(
        args.corpus,
        args.cache,
        args.checkpoint,
        shard_rows=2,
        batch_size=2,
        engine="ray",
        address=cluster.address,
        workers=3,
        threads=1,
    )
    try:
        build(config, progress=progress, make_teacher=FakeFactory(seconds_a_batch=args.seconds))
        assert progress.tally.done == progress.tally.totals
        print(f"{time.monotonic() - started:5.1f} built")
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
