"""Builds on a Ray cluster that are killed on their way: an actor, a node, the driver, as a deck has it."""

import math
import queue
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from kit.clusters import RayCluster
from kit.patience import PATIENCE_S

Kill = Literal["actor", "machine", "raylet", "driver"]
"""``machine``: a node with all that runs on it; ``raylet``: that of a node alone, whose actors then find
themselves alone."""

_GAVE_UP = ("crashed 3 workers", "no worker is left")
"""How a build may end by itself that was killed too often; the same command goes on."""

_SHARE_EARLY = 0.4
"""Of the builds, while drivers are to be killed: killed as they plan and start their actors."""


@dataclass
class Toll:
    """What became of the builds so far."""

    kills: Counter[str] = field(default_factory=Counter[str])
    """Kills that struck, by what was killed and when."""

    builds: int = 0
    gave_up: int = 0
    """Builds that ended by themselves, with a line that says so, and were started again."""

    unit_s: list[float] = field(default_factory=list[float])
    """From the loss of a node to the next unit."""

    waited_s: list[float] = field(default_factory=list[float])
    """Times that a driver listened for longer than half a second."""

    actors_end_s: list[float] = field(default_factory=list[float])
    """From the death of a driver to that of its last actor."""

    @property
    def num_kills(self) -> int:
        return sum(self.kills.values())


def shuffled(numbers: Mapping[Kill, int], chance: random.Random) -> list[Kill]:
    """Return so many kills of each kind, in random order."""
    deck: list[Kill] = [kind for kind, number in numbers.items() for _ in range(number)]
    chance.shuffle(deck)
    return deck


def build_command(
    corpus: Path, cache: Path, checkpoint: Path, address: str, *, seconds: float
) -> list[str]:
    """Return a build by three actors, of two batches a unit that take so long each."""
    script = Path(__file__).with_name("run_build.py")
    command = [sys.executable, script, corpus, cache, checkpoint, "--address", address]
    fixed = ["--shard-rows", "2", "--views", "1", "--batch-size", "1", "--workers", "3"]
    return [*map(str, command), *fixed, "--seconds", str(seconds)]


def build_despite_kills(
    command: list[str],
    cluster: RayCluster,
    deck: list[Kill],
    chance: random.Random,
    toll: Toll,
    *,
    ends_at: float = math.inf,
) -> None:
    """Run a build again and again, killing what the deck says, until it ends well.

    Args:
        command: of build_command.
        cluster: on which it builds.
        deck: the kills to come, the last first; those that struck are taken off.
        chance: of the moments and of the actors.
        toll: to be added to.
        ends_at: by time.monotonic(); nothing is killed after it.

    Raises:
        AssertionError: a build failed for another reason, or actors outlived their driver.
    """
    status = -1
    while status != 0:
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
            toll.builds += 1
            try:
                is_killed = _Build(process, cluster, deck, chance, toll, ends_at).run()
                status = -1 if is_killed else process.wait(PATIENCE_S)
            finally:
                process.kill()
                process.wait()
            if status > 0:
                errors.seek(0)
                said = errors.read()
                assert any(line in said for line in _GAVE_UP), said[-3000:]
                toll.gave_up += 1


class _Build:
    """One process that builds."""

    def __init__(
        self,
        process: Any,
        cluster: RayCluster,
        deck: list[Kill],
        chance: random.Random,
        toll: Toll,
        ends_at: float,
    ) -> None:
        self._process, self._cluster = process, cluster
        self._deck, self._chance, self._toll = deck, chance, toll
        self._ends_at = ends_at
        self._node_lost_at: float | None = None
        """None once a unit was made after it."""

        self._lines: queue.SimpleQueue[tuple[float, str]] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def run(self) -> bool:
        """Follow it to its end, killing on the way; return whether it was the driver that was killed."""
        if self._next and "driver" in self._deck and self._chance.random() < _SHARE_EARLY:
            self._deck.remove("driver")
            self._deck.append("driver")
            time.sleep(self._chance.uniform(0.0, 20.0))
            return self._kill_driver("in its first 20 seconds")
        while (found := self._lines.get())[1]:
            came_at, line = found
            self._note(came_at, line)
            if line == "unit\n" and self._next is not None and self._chance.random() < 0.6:
                time.sleep(self._chance.uniform(0.0, 0.3))
                if self._strike():
                    return True
        return False

    @property
    def _next(self) -> Kill | None:
        return self._deck[-1] if self._deck and time.monotonic() < self._ends_at else None

    def _read(self) -> None:
        """Keep what it prints and when that came, also while nobody looks."""
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put((time.monotonic(), line))
        self._lines.put((time.monotonic(), ""))

    def _note(self, came_at: float, line: str) -> None:
        if line.startswith("waited "):
            self._toll.waited_s.append(float(line.split()[1]))
        lost_at = self._node_lost_at
        if line == "unit\n" and lost_at is not None and came_at > lost_at:
            self._toll.unit_s.append(came_at - lost_at)
            self._node_lost_at = None

    def _strike(self) -> bool:
        """Kill what is next; return whether that was the driver."""
        if self._process.poll() is not None:
            return False  # it ended meanwhile
        if self._cluster.num_nodes < 2:
            self._cluster.join_node()
        match kill := self._deck[-1]:
            case "actor":
                if not (actors := self._cluster.actors()):
                    return False
                self._chance.choice(actors).kill()
            case "driver":
                return self._kill_driver("while units are made")
            case "machine" | "raylet":
                self._cluster.lose_node(kill)
                self._node_lost_at = time.monotonic()
        self._toll.kills[kill] += 1
        self._deck.pop()
        return False

    def _kill_driver(self, when: str) -> bool:
        """Return whether it still ran."""
        actors = [actor for actor in self._cluster.actors_ever() if actor.is_running()]
        self._process.kill()
        if self._process.wait() != -signal.SIGKILL:
            return False
        killed_at = time.monotonic()
        self._deck.pop()
        self._toll.kills[f"driver, {when}"] += 1
        _, alive = psutil.wait_procs(actors, timeout=PATIENCE_S)
        assert alive == [], "actors outlive their driver"
        while self._cluster.actors():  # those that were just being started
            assert time.monotonic() < killed_at + PATIENCE_S, "actors outlive their driver"
            time.sleep(0.2)
        if actors:
            self._toll.actors_end_s.append(time.monotonic() - killed_at)
        return True
