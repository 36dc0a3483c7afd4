"""A Ray cluster of two nodes on this machine, in a process that outlives drivers; see clusters.py.

python run_cluster.py PARENT_PID

Prints the address, then an answer for each line of its input: ``lose machine`` kills the second node
with all that runs on it, ``lose raylet`` its raylet alone, ``join`` adds another in its place. Ends
when its input does.
"""

import os
import signal
import sys
from pathlib import Path

import psutil
from ray.cluster_utils import Cluster

NODE = {"num_cpus": 2, "object_store_memory": 80_000_000}


def lose(cluster: Cluster, *, with_all: bool) -> None:
    """Kill the newest node with SIGKILL, and see to it that it is no zombie: its workers would wait."""
    [node] = cluster.worker_nodes
    [raylet] = [info.process for info in node.all_processes["raylet"]]
    victims = [psutil.Process(raylet.pid)]
    if with_all:
        victims += victims[0].children(recursive=True)
    for victim in victims:
        try:
            os.kill(victim.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    raylet.wait()
    cluster.worker_nodes.discard(node)


def main() -> None:
    os.environ |= {
        "PYTHONPATH": str(Path(__file__).parents[1]),  # actors unpickle the fake teacher
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # else 15: actors would starve beside other tests
    }
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        cluster.add_node(**NODE)
        print(cluster.address, flush=True)
        for line in sys.stdin:
            match line.split():
                case ["lose", what]:
                    lose(cluster, with_all=what == "machine")
                case ["join"]:
                    cluster.add_node(**NODE)
                case _:
                    raise SystemExit(f"not understood: {line}")
            print("done", flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
