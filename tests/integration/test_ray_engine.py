"""Ray's actors build one cache: the same bytes as one process, though an actor and a node are lost."""

import importlib.util
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kit import clusters
from kit.cluster_kills import Toll, build_command, build_despite_kills, shuffled
from kit.commands import run
from kit.fakes import FakeFactory, SilentProgress, config_of, tree_of, write_folder_corpus
from kit.patience import PATIENCE_S

from siglip2_cache.errors import SettingError
from siglip2_cache.precompute.build import build
from siglip2_cache.precompute.executor import ray_cluster
from siglip2_cache.precompute.executor.messages import WorkOrder
from siglip2_cache.precompute.executor.ray_placement import place_workers
from siglip2_cache.siglip import resolve_checkpoint

RUN_RAY = Path(__file__).parents[1] / "kit" / "run_ray.py"

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed (extra ray)"
)


@pytest.mark.slow
@needs_ray
@pytest.mark.parametrize(
    ("losses", "num_deaths"),
    [((), 0), (("--kill-actor-at", "4", "--remove-node-at", "12"), 2)],
    ids=["undisturbed", "an actor is killed and a node removed"],
)
def test_actors_on_two_nodes_make_the_bytes_of_one_process(
    losses: Sequence[str], num_deaths: int, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 30, captions=2)
    config = config_of(corpus, tmp_path / "alone", tiny_checkpoint, shard_rows=2, batch_size=2)
    build(config, progress=SilentProgress(), make_teacher=FakeFactory())
    command = [sys.executable, RUN_RAY, corpus, tmp_path / "cache", tiny_checkpoint]
    result = subprocess.run(
        [*map(str, command), "--seconds", "0.1", *losses],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "starting 3 workers on a Ray cluster of 2 nodes, each with 1 CPU\n" in result.stdout
    died = [line for line in result.stdout.splitlines() if " died while making " in line]
    assert len(died) >= num_deaths
    assert bool(died) == bool(losses)
    assert all("starting another" in line for line in died)
    assert tree_of(tmp_path / "cache") == tree_of(tmp_path / "alone")


@pytest.mark.slow
@needs_ray
def test_twenty_random_kills_of_actors_nodes_and_drivers_leave_the_bytes_of_a_local_build(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 60, captions=2)
    config = config_of(corpus, tmp_path / "alone", tiny_checkpoint, shard_rows=2, batch_size=1)
    build(config, progress=SilentProgress(), make_teacher=FakeFactory())
    chance, toll, num_caches = random.Random(0), Toll(), 0
    deck = shuffled({"actor": 13, "machine": 2, "raylet": 2, "driver": 3}, chance)
    with clusters.started() as cluster:
        while deck:
            cache = tmp_path / f"cache{num_caches}"
            command = build_command(corpus, cache, tiny_checkpoint, cluster.address, seconds=0.2)
            build_despite_kills(command, cluster, deck, chance, toll)
            assert tree_of(cache) == tree_of(tmp_path / "alone")
            num_caches += 1
    assert toll.num_kills == 20
    assert len(toll.unit_s) >= 3
    # A call on an actor of a lost node hung 40 s when it was tried.
    assert max(toll.waited_s, default=0.0) < 20.0


def test_without_ray_the_extra_is_named(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    corpus = write_folder_corpus(tmp_path / "corpus", 2)
    config = config_of(corpus, tmp_path / "cache", tiny_checkpoint, engine="ray")
    with pytest.raises(SettingError, match=r"pip install 'siglip2-cache\[ray\]'$"):
        build(config, progress=SilentProgress(), make_teacher=FakeFactory())


@needs_ray
@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", pytest.param("127.0.0.1:99999", marks=pytest.mark.slow)]
)
def test_where_no_cluster_answers_that_is_said_at_once(
    address: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 2)
    arguments = ["build", corpus, tmp_path / "cache", "--teacher", tiny_checkpoint]
    result = run(*arguments, "--engine", "ray", "--address", address, "--device", "cpu")
    assert "error: there is no Ray cluster at 127.0.0.1:" in result.stderr
    assert result.stderr.endswith("with ray start --head, or name another with --address\n")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "spark"}, "engine 'spark' is not one of local, ray"),
        ({"address": "a:1"}, "--address and --gpus-per-worker go with --engine ray"),
        ({"engine": "ray", "gpus_per_worker": -1}, "gpus per worker must be 0 to 64, got -1"),
    ],
)
def test_settings_of_engines_are_checked(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match=message):
        config_of(tmp_path, tmp_path, "teacher", **settings)


# -- how many workers, and what each gets


def cluster(*nodes: dict[str, float]) -> Any:
    """What stands for Ray where it is only asked for its nodes."""
    alive = [{"Alive": True, "Resources": node} for node in nodes]
    return SimpleNamespace(nodes=lambda: [*alive, {"Alive": False, "Resources": {"CPU": 1.0}}])


@pytest.fixture
def order(tiny_checkpoint: Path, tmp_path: Path) -> WorkOrder:
    return WorkOrder(
        cache=tmp_path,
        corpus_roots={},
        teacher="tiny",
        checkpoint=resolve_checkpoint(str(tiny_checkpoint)),
        device="auto",
        compute_dtype="float32",
        image_batch=2,
        text_batch=2,
        decode="exact",
        num_decoders=None,
        sample_timeout_s=1.0,
        num_threads=None,
        targets_budget=0.001,
    )


GPU_NODES = ({"CPU": 64.0, "GPU": 8.0}, {"CPU": 32.0, "GPU": 8.0})


def test_each_gpu_gets_a_worker_and_the_worker_its_share_of_the_smallest_node(
    order: WorkOrder,
) -> None:
    placement = place_workers(cluster(*GPU_NODES), order, None, None)
    assert (placement.num_workers, placement.threads, placement.gpus) == (16, 4, 1.0)
    assert str(placement) == "16 workers on a Ray cluster of 2 nodes, each with 4 CPU and 1 GPU"


def test_without_gpus_each_node_gets_a_worker(order: WorkOrder) -> None:
    placement = place_workers(cluster({"CPU": 8.0}, {"CPU": 8.0}), order, None, None)
    assert (placement.num_workers, placement.threads, placement.gpus) == (2, 8, 0.0)


def test_what_was_asked_for_is_taken(order: WorkOrder) -> None:
    order = replace(order, num_threads=3)
    placement = place_workers(cluster(*GPU_NODES), order, 20, 0.5)
    assert (placement.num_workers, placement.threads, placement.gpus) == (20, 3, 0.5)


def test_a_worker_that_fits_no_node_is_refused(order: WorkOrder) -> None:
    with pytest.raises(SettingError, match="no node of the Ray cluster has 1 GPUs for a worker"):
        place_workers(cluster({"CPU": 8.0}), order, None, 1.0)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("The actor abc is unavailable: RpcError: recvmsg", "it cannot be reached: killed, or"),
        ("The actor died.\n its node was terminated unexpectedly", "its node is gone"),
        ("something new\nin many lines", "something new"),
    ],
)
def test_the_death_of_an_actor_is_told_in_a_few_words(said: str, words: str) -> None:
    assert ray_cluster.describe_death(RuntimeError(said)).startswith(words)
