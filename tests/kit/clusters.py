"""A Ray cluster of this machine whose actors and nodes are killed, while it outlives its drivers.

run_cluster.py is the cluster, in a process of its own: ``with started() as cluster: ...``.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import psutil

from kit.patience import PATIENCE_S


class RayCluster:
    """The cluster as a test sees it."""

    def __init__(self, process: Any, address: str) -> None:
        self.address = address
        """Host and port, for a build's --address."""

        self.num_nodes = 2
        self._process = process
        self._num_unanswered = 0
        self._seen: set[psutil.Process] = set()

    def actors(self) -> list[psutil.Process]:
        """Return the processes of the actors that run, on all nodes that stand."""
        found: list[psutil.Process] = []
        for process in psutil.Process(self._process.pid).children(recursive=True):
            try:
                if "".join(process.cmdline()[:1]).startswith("ray::_Actor"):
                    found.append(process)
            except psutil.Error:
                continue
        self._seen.update(found)
        return found

    def actors_ever(self) -> list[psutil.Process]:
        """Return the processes of all actors that were ever seen, those of lost nodes among them."""
        self.actors()
        return list(self._seen)

    def lose_node(self, what: Literal["machine", "raylet"]) -> None:
        """Kill the second node with SIGKILL: all its processes at once, or its raylet alone."""
        self.actors()  # to know of them later
        self._tell(f"lose {what}")
        self._await_answers()
        self.num_nodes -= 1

    def join_node(self) -> None:
        """Let another node take the place of the one that was lost; it is there in some seconds."""
        self._tell("join")
        self.num_nodes += 1

    def _tell(self, command: str) -> None:
        self._await_answers()
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        self._num_unanswered += 1

    def _await_answers(self) -> None:
        while self._num_unanswered:
            answer = self._process.stdout.readline()
            assert answer == "done\n", f"run_cluster.py said {answer!r}"
            self._num_unanswered -= 1


@contextmanager
def started() -> Iterator[RayCluster]:
    """Start a cluster of two nodes of 2 CPUs each; drivers connect to the first, which stays."""
    script = Path(__file__).with_name("run_cluster.py")
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": ""},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        assert address, f"run_cluster.py did not start: exit status {process.wait(10)}"
        yield RayCluster(process, address)
    finally:
        process.stdin.close()
        try:
            process.wait(PATIENCE_S)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
