"""How a driver listens to processes. What stands for a process is a pair of pipes."""

import multiprocessing
import signal
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import pytest
from kit.fakes import SilentProgress

from siglip2_cache.errors import DiskFullError
from siglip2_cache.precompute.executor.driver import Driver
from siglip2_cache.precompute.executor.local import _ProcessPool, _WorkerProcess
from siglip2_cache.precompute.executor.messages import Died, Failed, Message, Ready
from siglip2_cache.precompute.executor.totals import BuildTotals
from siglip2_cache.precompute.executor.unit import Job
from siglip2_cache.precompute.executor.work_queue import WorkQueue
from siglip2_cache.store.format.manifest import Span, Unit


@dataclass
class FakeProcess:
    """Lives until its end of a pipe is closed."""

    exitcode: int = 0
    ends: tuple[Connection, Connection] = field(default_factory=multiprocessing.Pipe)

    @property
    def sentinel(self) -> int:
        return self.ends[0].fileno()

    def kill(self) -> None:
        self.exitcode = -signal.SIGKILL
        self.ends[1].close()

    def join(self, timeout_s: float | None = None) -> None:
        self.ends[1].close()


class ScriptedPool(_ProcessPool):
    """The real pool, whose workers send Ready, and then all at once what the script says."""

    def __init__(self, *lines: Message) -> None:
        orders: list[Any] = [None] * len(lines)
        super().__init__(orders, lambda *_: orders[0])
        self._lines = lines
        self._is_second = False

    def start(self, worker: int) -> None:
        ours, theirs = multiprocessing.Pipe()
        process = FakeProcess()
        self._workers[worker] = _WorkerProcess(self._free_slots.pop(0), process, ours)
        theirs.send(Ready({}))
        process.said = theirs  # pyright: ignore[reportAttributeAccessIssue]

    def receive(self, timeout_s: float) -> list[tuple[int, Message]]:
        if self._is_second:
            for worker, line in enumerate(self._lines):
                if not isinstance(line, Died):
                    self._workers[worker].process.said.send(line)
                self._workers[worker].process.kill()
        received = super().receive(timeout_s)
        self._is_second = not self._is_second
        return received


def test_a_failure_is_not_hidden_by_others_that_die_as_it_is_heard() -> None:
    pool = ScriptedPool(Died(""), Failed(DiskFullError("no space left")), Died(""))
    unit = Unit(modality="image", number=0, rows=Span(first=0, count=4))
    totals = BuildTotals(SilentProgress(), lambda _: None)
    with pytest.raises(DiskFullError, match="no space left"):
        Driver(pool, 3, WorkQueue([Job(unit, 0, 2)]), totals).run()


def test_a_process_that_is_gone_may_be_told_anything() -> None:
    pool = ScriptedPool(Died(""))
    pool.start(0)
    pool._workers[0].process.kill()
    assert pool.receive(0.2) == [(0, Ready({})), (0, Died("killed by SIGKILL"))]
    pool.request_stop(0)
    pool.assign(0, None)
    pool.kill(0)
