"""How a driver deals with its workers; the workers here are scripts."""

from collections import deque
from collections.abc import Iterable

import pytest
from kit.fakes import SilentProgress

from siglip2_cache.errors import BuildError, DiskFullError
from siglip2_cache.precompute.executor.driver import Driver
from siglip2_cache.precompute.executor.messages import (
    Advanced,
    Died,
    Ended,
    Failed,
    FinishedUnit,
    Message,
    Ready,
    Request,
)
from siglip2_cache.precompute.executor.totals import BuildTotals
from siglip2_cache.precompute.executor.unit import Job, StageTimes
from siglip2_cache.precompute.executor.work_queue import WorkQueue
from siglip2_cache.store.format.manifest import Span, Unit

READY = Ready({"device": "cpu"})
ENDED = Ended(StageTimes(forward_s=1.0), 2, 4, 4)


def job(number: int) -> Job:
    return Job(Unit(modality="image", number=number, rows=Span(first=4 * number, count=4)), 0, 2)


def finished(number: int, num_rejected: int = 0) -> FinishedUnit:
    return FinishedUnit(
        modality="image", number=number, is_ours=True, num_wanted=4, num_rejected=num_rejected
    )


class Script:
    """A pool whose workers say what stands in their lines, one message a round."""

    def __init__(self, *lines: Iterable[Message]) -> None:
        self._lines = [deque(line) for line in lines]
        self._running: dict[int, deque[Message]] = {}
        self._waiting: set[int] = set()
        self.given: list[tuple[int, int | None]] = []
        self.calls: list[str] = []

    def start(self, worker: int) -> None:
        self._running[worker] = self._lines[worker]

    def receive(self, timeout_s: float) -> list[tuple[int, Message]]:
        received: list[tuple[int, Message]] = []
        for worker, line in list(self._running.items()):
            if worker in self._waiting or not line:
                continue
            message = line.popleft()
            received.append((worker, message))
            if isinstance(message, Request):
                self._waiting.add(worker)
            if isinstance(message, Died):
                del self._running[worker]
        return received

    def assign(self, worker: int, job: Job | None) -> None:
        self._waiting.discard(worker)
        self.given.append((worker, None if job is None else job.unit.number))

    def request_stop(self, worker: int) -> None:
        self.calls.append(f"stop {worker}")
        self._waiting.discard(worker)
        self._running[worker] = deque([ENDED, Died("ended")])

    def kill(self, worker: int) -> None:
        self.calls.append(f"kill {worker}")
        self._running[worker] = deque([Died("killed")])

    def close(self) -> None:
        self.calls.append("close")


def drive(
    script: Script, work_queue: WorkQueue, *, num_workers: int = 1
) -> tuple[BuildTotals, SilentProgress]:
    progress = SilentProgress()
    totals = BuildTotals(progress, lambda _: progress.start({"image": 4, "text": 0}, {"image": 1}))
    Driver(script, num_workers, work_queue, totals).run()
    return totals, progress


def test_rows_of_a_unit_whose_worker_died_are_counted_once() -> None:
    first = [READY, Request(None), Advanced("image", 2, 1), Died("killed by SIGKILL")]
    second = [
        READY,
        Request(None),
        Advanced("image", 2, 1),
        Advanced("image", 2, 0),
        finished(0, num_rejected=1),
        Request(None),
        ENDED,
        Died("ended"),
    ]
    script = Script(first, second)
    totals, progress = drive(script, WorkQueue([job(0)]))
    assert progress.tally.done["image"] == 4
    assert progress.tally.num_rejected == {"image": 1, "text": 0}
    assert (totals.num_units, totals.num_rows["image"]) == (1, 4)
    assert totals.num_rejected == {"image": 1, "text": 0}
    assert script.given == [(0, 0), (1, 0), (1, None)]
    assert progress.said == [
        "warning: worker 0 died while making image unit 0 (rows 0..3) (killed by SIGKILL); "
        "starting another"
    ]


def test_who_would_take_any_unit_waits_while_another_may_yet_die_over_its_own() -> None:
    idle = [READY, Request(None), finished(0), Request(None), ENDED, Died("ended")]
    busy = [READY, Request(None), *[Advanced("image", 1, 0)] * 3, Died("killed")]
    script = Script(busy, idle, [])  # and a successor, which comes too late
    totals, _ = drive(script, WorkQueue([job(0)]), num_workers=2)
    assert script.given == [(0, 0), (1, 0), (1, None)]
    assert totals.num_units == 1


def test_a_build_does_not_wait_for_a_worker_that_comes_too_late() -> None:
    only = [READY, Request(None), finished(0), Request(None), ENDED, Died("ended")]
    never: list[Message] = []
    script = Script(only, never)
    drive(script, WorkQueue([job(0)]), num_workers=2)
    assert script.calls == ["close"]


def test_the_failure_of_one_worker_stops_the_others_and_is_the_builds() -> None:
    error = DiskFullError("no space left")
    failing = [READY, Request(None), Failed(error), Died("ended")]
    script = Script(failing, [READY, Request("image")], [])
    with pytest.raises(DiskFullError, match="no space left"):
        drive(script, WorkQueue([job(0), job(1)]), num_workers=3)
    assert sorted(script.calls) == ["close", "kill 2", "stop 1"]


DIES: list[Message] = [Died("killed")]


def test_after_three_failed_starts_in_a_row_no_more_workers_are_started() -> None:
    script = Script(*[[*DIES] for _ in range(6)])
    progress = SilentProgress()
    totals = BuildTotals(progress, lambda _: None)
    with pytest.raises(BuildError, match="no worker is left"):
        Driver(script, 2, WorkQueue([job(0)]), totals).run()
    assert progress.said[-1].endswith(
        "continuing with 0 workers (is there enough memory for so many teachers?)"
    )


def test_workers_that_were_loading_at_one_time_fail_once() -> None:
    """Three actors are loading on a node that is lost: their successors are started all the same."""
    units = [READY, Request(None), finished(0), Request(None), ENDED, Died("ended")]
    never: list[Message] = []
    script = Script(*[[*DIES] for _ in range(3)], units, never, never)
    totals, progress = drive(script, WorkQueue([job(0)]), num_workers=3)
    assert totals.num_units == 1
    assert [said.endswith("; starting another") for said in progress.said] == [True] * 3


def test_those_who_work_go_on_without_the_workers_that_cannot_start() -> None:
    units = [
        each for i in range(4) for each in (Request(None), Advanced("image", 4, 0), finished(i))
    ]
    works = [READY, *units, Request(None), ENDED, Died("ended")]
    totals, progress = drive(
        Script(works, *[[*DIES] for _ in range(3)]),
        WorkQueue([job(i) for i in range(4)]),
        num_workers=2,
    )
    assert totals.num_units == 4
    assert "continuing with 1 worker " in progress.said[-1]


def test_workers_that_differ_are_warned_of() -> None:
    progress = SilentProgress()
    totals = BuildTotals(progress, lambda _: None)
    totals.add_provenance({"device_name": "A100"})
    totals.add_provenance({"device_name": "A100"})
    totals.add_provenance({"device_name": "H100"})
    assert progress.said == [
        "warning: workers differ, so embeddings may differ in rounding: device_name was A100 and is H100"
    ]


def test_times_are_summed_and_the_smallest_batches_kept() -> None:
    totals = BuildTotals(SilentProgress(), lambda _: None)
    totals.add_worker(Ended(StageTimes(forward_s=1.0, wait_s=2.0), 2, 8, 8))
    totals.add_worker(Ended(StageTimes(forward_s=3.0), 2, 4, 16))
    assert (totals.times.forward_s, totals.times.wait_s, totals.num_ended) == (4.0, 2.0, 2)
    assert (totals.image_batch, totals.text_batch, totals.num_decoders) == (4, 8, 2)
