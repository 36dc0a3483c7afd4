"""Who makes which unit, and what becomes of the units of a worker that died."""

import pytest

from siglip2_cache.errors import BuildError
from siglip2_cache.precompute.executor.unit import Job
from siglip2_cache.precompute.executor.work_queue import WorkQueue
from siglip2_cache.store.format.layout import Modality
from siglip2_cache.store.format.manifest import Span, Unit


def job(number: int, modality: Modality = "image") -> Job:
    return Job(Unit(modality=modality, number=number, rows=Span(first=4 * number, count=4)), 0, 2)


def number_of(taken: Job | None) -> tuple[str, int] | None:
    return None if taken is None else (taken.unit.modality, taken.unit.number)


def test_units_are_handed_out_once_images_first() -> None:
    work_queue = WorkQueue([job(0, "text"), job(0), job(1)])
    taken = [number_of(work_queue.take(i % 2, None)) for i in range(4)]
    assert taken == [("image", 0), ("image", 1), ("text", 0), None]


def test_a_worker_that_streams_images_gets_no_texts() -> None:
    work_queue = WorkQueue([job(0), job(0, "text")])
    assert number_of(work_queue.take(0, "image")) == ("image", 0)
    assert work_queue.take(0, "image") is None
    assert number_of(work_queue.take(0, None)) == ("text", 0)


def test_it_is_done_when_what_was_handed_out_stands() -> None:
    work_queue = WorkQueue([job(0)])
    work_queue.take(0, None)
    assert work_queue.num_waiting == 0
    assert not work_queue.is_done
    work_queue.finish(0, ("image", 0))
    assert work_queue.is_done


def test_the_units_of_a_dead_worker_are_made_last_and_each_alone() -> None:
    work_queue = WorkQueue([job(i) for i in range(4)])
    for _ in range(2):
        work_queue.take(0, None)
    assert [j.unit.number for j in work_queue.fail(0, "killed")] == [0, 1]
    assert [number_of(work_queue.take(1, None)) for _ in range(2)] == [("image", 2), ("image", 3)]
    assert number_of(work_queue.take(1, None)) == ("image", 0)
    assert work_queue.take(1, "image") is None  # while it makes one that may be deadly
    assert work_queue.take(1, None) is None
    work_queue.finish(1, ("image", 0))
    assert number_of(work_queue.take(1, None)) == ("image", 1)


def test_a_unit_that_three_workers_died_over_ends_the_build_and_is_named() -> None:
    work_queue = WorkQueue([job(7, "text"), job(8, "text")])
    for worker in (0, 1):
        while (taken := work_queue.take(worker, None)) is not None and taken.unit.number != 7:
            work_queue.finish(worker, ("text", 8))
        work_queue.fail(worker, "killed by SIGKILL")
    # One of the two deaths was blamed on both; only the unit that is there each time reaches three.
    work_queue.take(2, None)
    with pytest.raises(
        BuildError,
        match=r"text unit 7 \(rows 28\.\.31\) crashed 3 workers \(last: killed by SIGKILL\)",
    ):
        work_queue.fail(2, "killed by SIGKILL")


def test_a_unit_blamed_once_for_anothers_death_is_not_blamed_again() -> None:
    work_queue = WorkQueue([job(0), job(1)])
    work_queue.take(0, None)
    work_queue.take(0, None)
    work_queue.fail(0, "killed")  # over either
    for worker in (1, 2):  # unit 0 is alone with each of its workers
        assert number_of(work_queue.take(worker, None)) == ("image", worker - 1)
        work_queue.finish(worker, ("image", worker - 1))
    assert work_queue.is_done


def test_what_a_worker_gave_back_is_handed_out_again_without_blame() -> None:
    work_queue = WorkQueue([job(0)])
    for worker in range(5):
        assert number_of(work_queue.take(worker, None)) == ("image", 0)
        work_queue.release(worker)
    assert not work_queue.is_done


def test_more_units_are_requested_when_none_waits_given_those_in_work() -> None:
    in_work: list[set[tuple[Modality, int]]] = []

    def more(units: set[tuple[Modality, int]]) -> list[Job]:
        in_work.append(units)
        return [job(5)] if len(in_work) == 1 else []

    work_queue = WorkQueue([job(0)], more)
    assert number_of(work_queue.take(0, None)) == ("image", 0)
    assert number_of(work_queue.take(1, None)) == ("image", 5)
    assert work_queue.take(1, None) is None
    assert in_work == [{("image", 0)}, {("image", 0), ("image", 5)}]


def test_it_is_not_done_before_there_are_no_more() -> None:
    work_queue = WorkQueue([], lambda _: [])
    assert not work_queue.is_done
    assert work_queue.take(0, None) is None
    assert work_queue.is_done
