"""A build with the fake teacher in a process of its own, for tests that kill it.

python run_build.py CORPUS CACHE CHECKPOINT [--kill-at N] [--noise SEED]
    [--seconds S] [--quick N] [--hold-at N]
    [--decode-workers N] [--workers N] [--batch-size N] [--share I/N] [--say-start]
    [--address HOST:PORT] [--keep-pixels N] [--targets float16|int8]
    [--patch-targets GRID]

Each batch takes --seconds, but for the first --quick of every process; after unit --hold-at it goes no
further: so that a test which kills it knows where it is.

With --address it runs on that Ray cluster, one thread to an actor, and prints what is said and
``waited S`` where the driver was longer in listening to its actors than it means to.
"""

import argparse
import itertools
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from kit.crashes import Killer, spying
from kit.fakes import FakeFactory, SilentProgress, config_of
from kit.patience import PATIENCE_S
from siglip2_cache.commands.options import given_location
from siglip2_cache.precompute.build import build
from siglip2_cache.precompute.executor import ray_cluster
from siglip2_cache.precompute.ranks import find_rank

_LONG_WAIT_S = 0.5


def tell_waits(pool: Any) -> None:
    """Let a pool print how long it listened, where that was long."""
    receive = pool.receive

    def timed(self: Any, timeout_s: float) -> Any:
        started = time.monotonic()
        received = receive(self, timeout_s)
        if (seconds := time.monotonic() - started) > _LONG_WAIT_S:
            print(f"waited {seconds:.2f}", flush=True)
        return received

    pool.receive = timed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("corpus")
    parser.add_argument("cache", type=given_location)
    parser.add_argument("checkpoint")
    parser.add_argument("--kill-at", type=int, default=-1)
    parser.add_argument("--noise", type=int)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--quick", type=int, default=0)
    parser.add_argument("--hold-at", type=int)
    parser.add_argument("--shard-rows", type=int, default=4)
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--targets")
    parser.add_argument("--patch-targets", type=int)
    parser.add_argument("--decode-workers", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--share")
    parser.add_argument("--say-start", action="store_true")
    parser.add_argument("--address")
    parser.add_argument("--keep-pixels", type=int)
    args = parser.parse_args()
    on_ray: dict[str, Any] = {}
    if args.address is not None:
        on_ray = {"engine": "ray", "address": args.address, "threads": 1}
    config = config_of(
        args.corpus,
        args.cache,
        args.checkpoint,
        shard_rows=args.shard_rows,
        num_views=args.views,
        decode_workers=args.decode_workers,
        workers=args.workers,
        batch_size=args.batch_size,
        rank=find_rank(args.share, {}),
        plan_timeout_s=PATIENCE_S,
        keep_pixels=args.keep_pixels,
        targets=args.targets,
        patch_targets=args.patch_targets,
        targets_budget=0.01,  # of vectors of 64 values
        **on_ray,
    )
    make_teacher = FakeFactory(
        noise_seed=args.noise, seconds_a_batch=args.seconds, num_quick=args.quick
    )
    numbers = itertools.count(1)

    def on_unit() -> None:
        print("unit", flush=True)
        if next(numbers) == args.hold_at:
            time.sleep(PATIENCE_S)

    progress = SilentProgress(on_unit)
    if args.say_start:
        progress.start = lambda *_: print("started", flush=True)  # type: ignore[method-assign]
    if args.address is not None:
        tell_waits(ray_cluster._ActorPool)
        progress.say = lambda message: print(message, flush=True)  # type: ignore[method-assign]
    with spying(Killer(args.kill_at)) as killer:
        build(config, progress=progress, make_teacher=make_teacher)
    print(f"ops {killer.num_ops}", flush=True)


if __name__ == "__main__":
    main()
