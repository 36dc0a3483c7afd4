"""Connecting to a Ray cluster, and how many workers it has room for."""

import math
import re
import socket
from dataclasses import dataclass
from typing import Any

from ...errors import SettingError
from ...formatting import first_line, format_count
from .messages import WorkOrder

_CONNECT_TIMEOUT_S = 10.0


def import_ray() -> Any:
    """Return the ray module.

    Raises:
        SettingError: it is not installed.
    """
    try:
        import ray
    except ImportError:
        raise SettingError(
            "engine ray needs Ray, which is not installed: pip install 'siglip2-cache[ray]'"
        ) from None
    return ray


def connect(ray: Any, address: str | None) -> None:
    """Connect this process to a cluster; None: RAY_ADDRESS, a local one, or a new one here.

    Raises:
        SettingError: there is no cluster at the address.
    """
    try:
        if address is not None and (found := re.fullmatch(r"([^/:]+):([0-9]{1,5})", address)):
            # Ray itself retries for many minutes.
            socket.create_connection((found[1], int(found[2])), _CONNECT_TIMEOUT_S).close()
        ray.init(address=address, log_to_driver=False, logging_level="warning")
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        raise SettingError(
            f"there is no Ray cluster at {address or 'RAY_ADDRESS'} ({first_line(error)}); start one "
            "with ray start --head, or name another with --address"
        ) from error


@dataclass(frozen=True, slots=True)
class Placement:
    """How many workers to start, and the resources of each."""

    num_workers: int
    threads: int
    gpus: float
    num_nodes: int

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        return (
            f"{format_count(self.num_workers, 'worker')} on a Ray cluster of "
            f"{format_count(self.num_nodes, 'node')}, each with {self.threads} CPU{gpus}"
        )


def place_workers(
    ray: Any, order: WorkOrder, num_workers: int | None, gpus_per_worker: float | None
) -> Placement:
    """Return the workers that were asked for, else those that the cluster has room for.

    Raises:
        SettingError: no node has a CPU, or enough GPUs for one worker.
    """
    alive: list[dict[str, float]] = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    num_gpus = sum(node.get("GPU", 0.0) for node in alive)
    if gpus_per_worker is None:
        gpus_per_worker = 1.0 if num_gpus and order.device != "cpu" else 0.0
    # A head node is often started without CPUs, so that it gets no work.
    nodes = [node for node in alive if node.get("CPU", 0.0) >= 1]
    if not nodes:
        raise SettingError(
            f"no node of the Ray cluster has a CPU for workers ({format_count(len(alive), 'node')}); start "
            "one with ray start --address HEAD --num-cpus N"
        )
    nodes = [node for node in nodes if node.get("GPU", 0.0) >= gpus_per_worker]
    if not nodes:
        raise SettingError(
            f"no node of the Ray cluster has {gpus_per_worker:g} GPUs for a worker "
            f"({num_gpus:g} in {format_count(len(alive), 'node')}); lower --gpus-per-worker"
        )
    if num_workers is None:
        num_workers = len(nodes)
        if gpus_per_worker:
            num_workers = sum(int(node["GPU"] / gpus_per_worker) for node in nodes)
    workers_per_node = math.ceil(num_workers / len(nodes))
    fewest_cpus = min(node["CPU"] for node in nodes)
    threads = order.num_threads or max(1, int(fewest_cpus // workers_per_node))
    return Placement(num_workers, threads, gpus_per_worker, len(nodes))
