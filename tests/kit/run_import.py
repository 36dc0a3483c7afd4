"""An import in a process of its own, which may kill itself.

python run_import.py SOURCE CACHE [--corpus CORPUS] [--fit] [--kill-at N]
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from kit.crashes import Killer, spying
from kit.fakes import SilentProgress
from siglip2_cache.commands.options import given_location
from siglip2_cache.precompute.importing.config import ImportConfig
from siglip2_cache.precompute.importing.run import import_targets
from siglip2_cache.precompute.planning.config import PlanConfig


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=given_location)
    parser.add_argument("cache", type=given_location)
    parser.add_argument("--corpus")
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--kill-at", type=int, default=-1)
    args = parser.parse_args()
    config = ImportConfig(
        source=args.source,
        cache=args.cache,
        teacher_name="other",
        plan=PlanConfig(sources=(args.corpus,), shard_rows=4) if args.corpus else None,
        shard_rows=4,
        decode_workers=0,
        logit_scale=None if args.fit else 3.0,
        logit_bias=None if args.fit else -10.0,
    )
    with spying(Killer(args.kill_at)):
        import_targets(config, progress=SilentProgress())


if __name__ == "__main__":
    main()
