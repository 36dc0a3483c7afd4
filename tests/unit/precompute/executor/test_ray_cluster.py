"""How a driver listens to actors: to any, to none in particular. Ray is a stand-in with scripted answers."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from kit.fakes import SilentProgress

from siglip2_cache.errors import DiskFullError, SettingError
from siglip2_cache.precompute.executor import ray_cluster
from siglip2_cache.precompute.executor.driver import Driver
from siglip2_cache.precompute.executor.messages import Died, Failed, Message, Ready, Request
from siglip2_cache.precompute.executor.ray_cluster import _ActorPool
from siglip2_cache.precompute.executor.ray_placement import Placement, place_workers
from siglip2_cache.precompute.executor.totals import BuildTotals
from siglip2_cache.precompute.executor.unit import Job
from siglip2_cache.precompute.executor.work_queue import WorkQueue
from siglip2_cache.store.format.manifest import Span, Unit


class ActorError(Exception):
    """Stands for what Ray raises of an actor that is gone."""


@dataclass
class FakeRay:
    """References are numbers, and actors too."""

    answers: dict[int, list[Message] | Exception] = field(default_factory=dict)
    """By reference; one that is missing never comes."""

    waits: list[tuple[list[int], int]] = field(default_factory=list)
    """References that were waited for, and how many of them were wanted."""

    asked: list[int] = field(default_factory=list)
    """The actor behind each reference."""

    killed: list[int] = field(default_factory=list)
    exceptions: Any = field(default_factory=lambda: SimpleNamespace(RayError=ActorError))
    num_actors: int = 0

    def remote(self, **_: Any) -> Any:
        return lambda _: SimpleNamespace(remote=self._start)

    def _start(self, *_: Any) -> Any:
        number = self.num_actors
        self.num_actors += 1

        def poll(*_: Any) -> int:
            self.asked.append(number)
            return len(self.asked) - 1

        return SimpleNamespace(number=number, poll=SimpleNamespace(remote=poll))

    def wait(
        self, references: list[int], *, num_returns: int, timeout: float
    ) -> tuple[list[int], list[int]]:
        self.waits.append((references, num_returns))
        ready = [reference for reference in references if reference in self.answers]
        return ready[:num_returns], []

    def get(self, reference: int, *, timeout: float) -> list[Message]:
        assert reference in self.answers, "the driver waits for one actor"
        answer = self.answers[reference]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(self, actor: Any, *, no_restart: bool) -> None:
        self.killed.append(actor.number)


@pytest.fixture
def ray() -> FakeRay:
    return FakeRay()


@pytest.fixture
def pool(ray: FakeRay) -> _ActorPool:
    """Three actors, numbered as they are for the driver; the first has been asked as reference 0, ..."""
    placement = Placement(num_workers=3, threads=1, gpus=0.0, num_nodes=2)
    order: Any = None
    pool = _ActorPool(ray, order, lambda *_: order, placement, lambda _: None)
    for worker in range(3):
        pool.start(worker)
    return pool


def test_whoever_speaks_is_heard_though_another_never_answers(
    ray: FakeRay, pool: _ActorPool
) -> None:
    ray.answers = {1: [Ready({})], 2: [Ready({}), Request(None)]}
    assert pool.receive(0.2) == [(1, Ready({})), (2, Ready({})), (2, Request(None))]
    assert ray.waits[0] == ([0, 1, 2], 1)  # any
    ray.answers = {3: [Request("image")]}
    assert pool.receive(0.2) == [(1, Request("image"))]
    assert ray.waits[2] == ([0, 3, 4], 1)
    assert ray.asked == [0, 1, 2, 1, 2]  # who has not answered is not asked again


def test_an_actor_that_is_gone_is_removed_and_the_others_are_heard(
    ray: FakeRay, pool: _ActorPool
) -> None:
    ray.answers = {0: ActorError("its node was terminated unexpectedly"), 1: [Ready({})]}
    assert pool.receive(0.2) == [(1, Ready({}))]
    assert pool.receive(0.2) == [(0, Died("its node is gone"))]
    assert ray.killed == [0]
    assert 0 not in ray.waits[-1][0]


def test_an_actor_that_spoke_and_falls_silent_is_given_up(
    ray: FakeRay, pool: _ActorPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray.answers = {0: [Ready({})]}
    pool.receive(0.2)
    monkeypatch.setattr(ray_cluster, "_SILENCE_S", -1.0)
    pool.receive(0.2)
    [(worker, message)] = pool.receive(0.2)
    assert worker == 0  # the others have yet to start
    assert isinstance(message, Died)
    assert message.reason.startswith("silent for ")
    assert ray.killed == [0]


def test_a_failure_is_not_hidden_by_others_that_die_as_it_is_heard(ray: FakeRay) -> None:
    placement, order = Placement(num_workers=3, threads=1, gpus=0.0, num_nodes=2), None
    pool = _ActorPool(ray, order, lambda *_: order, placement, lambda _: None)  # pyright: ignore[reportArgumentType]
    gone = ActorError("its node was terminated unexpectedly")
    ray.answers = {0: [Ready({})], 1: [Ready({})], 2: [Ready({})]}
    ray.answers |= {3: gone, 4: [Failed(DiskFullError("no space left"))], 5: gone}
    unit = Unit(modality="image", number=0, rows=Span(first=0, count=4))
    totals = BuildTotals(SilentProgress(), lambda _: None)
    with pytest.raises(DiskFullError, match="no space left"):
        Driver(pool, 3, WorkQueue([Job(unit, 0, 2)]), totals).run()
    assert sorted(ray.killed) == [0, 1, 2]


def test_an_actor_that_is_gone_may_be_told_anything(ray: FakeRay, pool: _ActorPool) -> None:
    ray.answers = {1: ActorError("its node was terminated unexpectedly")}
    pool.receive(0.2)
    pool.request_stop(1)
    pool.assign(1, None)
    pool.kill(1)
    assert ray.killed == [1]


def test_a_cluster_that_is_lost_does_not_hide_why_the_build_ends(
    ray: FakeRay, pool: _ActorPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(actor: Any, *, no_restart: bool) -> None:
        raise ConnectionError("the head is gone")

    monkeypatch.setattr(ray, "kill", kill)
    pool.close()


@dataclass
class Cluster:
    """What Ray says of its nodes."""

    resources: list[dict[str, float]]

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": each} for each in self.resources]


ORDER: Any = SimpleNamespace(device="auto", num_threads=None)
HEAD: dict[str, float] = {"memory": 1e9}


@pytest.mark.parametrize(
    ("nodes", "asked", "expected"),
    [
        ([HEAD, {"CPU": 8.0}], None, (1, 8)),
        ([{"CPU": 0.0}, {"CPU": 8.0}], 2, (2, 4)),
        ([HEAD, {"CPU": 8.0}, {"CPU": 4.0}], None, (2, 4)),
        ([{"CPU": 16.0}, {"CPU": 8.0, "GPU": 2.0}], None, (2, 4)),  # both on the one that has GPUs
    ],
)
def test_workers_ask_for_no_more_than_the_nodes_that_can_hold_them_have(
    nodes: list[dict[str, float]], asked: int | None, expected: tuple[int, int]
) -> None:
    placement = place_workers(Cluster(nodes), ORDER, asked, None)
    assert (placement.num_workers, placement.threads) == expected


def test_a_cluster_without_cpus_is_refused() -> None:
    with pytest.raises(SettingError, match=r"no node of the Ray cluster has a CPU .*\(2 nodes\)"):
        place_workers(Cluster([HEAD, HEAD]), ORDER, None, None)
