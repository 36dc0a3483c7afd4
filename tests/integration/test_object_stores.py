"""A cache in an object store: built through faults and deaths, trained from, equal to a local one."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pytest
from kit.fakes import (
    FakeFactory,
    FakeTeacher,
    SilentProgress,
    config_of,
    tree_of,
    write_folder_corpus,
)
from kit.patience import PATIENCE_S
from kit.students import write_student
from safetensors.torch import load_file

from siglip2_cache import open_cache
from siglip2_cache.precompute.build import build
from siglip2_cache.store.io import requests
from siglip2_cache.store.io.download_cache import LocalCopies
from siglip2_cache.store.io.location import parse_location
from siglip2_cache.store.io.remote import RemoteStorage
from siglip2_cache.store.verify.verify import verify_cache

if TYPE_CHECKING:
    from kit.s3 import S3

KIT = Path(__file__).parents[1] / "kit"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder_corpus(tmp_path_factory.mktemp("corpus"), 14, captions=2)


@pytest.fixture(scope="module")
def local(corpus: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of that corpus on this machine; read it, do not change it."""
    return build_into(tmp_path_factory.mktemp("local") / "cache", corpus, tiny_checkpoint)


@pytest.fixture
def memory() -> Iterator[str]:
    """An empty place in fsspec's store in memory."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    yield "memory://bucket"
    store.store.clear()


@pytest.fixture(autouse=True)
def own_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGLIP2_CACHE_DIR", str(tmp_path / "copies"))


def build_into(cache: Any, corpus: Any, checkpoint: Path, **settings: Any) -> Any:
    settings = {"shard_rows": 4, "num_views": 2, **settings}
    config = config_of(corpus, cache, checkpoint, **settings)
    build(config, progress=SilentProgress(), make_teacher=lambda *_: FakeTeacher())
    return cache


def objects_of(files: RemoteStorage) -> dict[str, bytes]:
    return {path: files.read(path) for path in files.walk()}


def test_a_store_that_fails_often_holds_the_bytes_of_a_local_cache(
    s3: "S3",
    corpus: Path,
    local: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    from kit.s3 import KEY_ID, SECRET, Fault

    monkeypatch.setattr(requests, "_WAITS_S", (0.01,) * 8)
    s3.inject(
        Fault(what="slow-down", share=0.02, seed=1),
        Fault(what="cut-answer", kinds=("get", "get-range"), share=0.05, seed=2),
        Fault(what="lose-answer", kinds=("put", "put-new", "copy", "delete"), share=0.05, seed=3),
    )
    url = parse_location(f"{s3.url}/deep/cache")
    build_into(url, corpus, tiny_checkpoint)
    assert len([request for request in s3.requests() if request.fault]) > 5
    s3.inject()
    files = RemoteStorage(url)
    assert objects_of(files) == tree_of(local)
    assert verify_cache(open_cache(url)).faults == []
    said = "".join([*capfd.readouterr(), caplog.text])
    kept = b"".join([*objects_of(files).values(), *tree_of(tmp_path).values()])
    for secret in (KEY_ID, SECRET):
        assert secret not in said
        assert secret.encode() not in kept


def test_patch_targets_in_a_store_are_those_of_a_local_cache(
    s3: "S3", corpus: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    url = parse_location(f"{s3.url}/cache")
    for where in (url, tmp_path / "local"):
        build_into(where, corpus, tiny_checkpoint, patch_targets=2, patch_dims=8)
    assert objects_of(RemoteStorage(url)) == tree_of(tmp_path / "local")
    cache, local = open_cache(url), open_cache(tmp_path / "local")
    assert verify_cache(cache).faults == []
    rows = cache.image_targets().available_rows()
    found, expected = (each.patch_targets().read(rows, 1) for each in (cache, local))
    np.testing.assert_array_equal(found.values_VCP, expected.values_VCP)


def test_a_finished_build_asks_little(s3: "S3", corpus: Path, tiny_checkpoint: Path) -> None:
    url = build_into(parse_location(f"{s3.url}/cache"), corpus, tiny_checkpoint)
    s3.forget()
    build_into(url, corpus, tiny_checkpoint)
    counts = s3.counts()
    assert counts["list"] < 30
    assert counts["copy"] == counts["put"] == 0
    assert not [request for request in s3.requests("get") if "/c/" in request.key], (
        "a shard was read"
    )


class Still(SilentProgress):
    """Says nothing of a training."""

    def start(self, done: int, steps: int) -> None:  # type: ignore[override]
        pass

    def step(self, metrics: Any) -> None:
        pass


class _DeadError(BaseException):
    """Nothing of a process goes on behind it."""


class Mortal:
    """Lets a process die at one of the requests that change a store, before or after it is carried out."""

    CHANGING = ("write", "rename", "create", "remove")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_requests, self.dies_at, self.is_dead = 0, -1, False
        for name in self.CHANGING:
            monkeypatch.setattr(RemoteStorage, name, self._mortal(getattr(RemoteStorage, name)))

    def live(self, dies_at: int) -> None:
        self.num_requests, self.dies_at, self.is_dead = 0, dies_at, False

    def _mortal(self, act: Callable[..., Any]) -> Callable[..., Any]:
        def acted(*args: Any, **options: Any) -> Any:
            self.num_requests += 1
            if self.is_dead:
                raise _DeadError
            if self.num_requests != self.dies_at:
                return act(*args, **options)
            self.is_dead = True
            if self.num_requests % 2:
                act(*args, **options)
            raise _DeadError

        return acted


def test_dead_at_any_request_the_next_build_makes_the_same_bytes(
    memory: str, corpus: Path, local: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mortal = Mortal(monkeypatch)
    build_into(parse_location(f"{memory}/whole"), corpus, tiny_checkpoint)
    num_requests = mortal.num_requests
    for dies_at in range(1, num_requests, 7):
        url = parse_location(f"{memory}/cache{dies_at}")
        mortal.live(dies_at)
        with pytest.raises(_DeadError):
            build_into(url, corpus, tiny_checkpoint)
        mortal.live(-1)
        build_into(url, corpus, tiny_checkpoint)
        assert objects_of(RemoteStorage(url)) == tree_of(local), f"dead at {dies_at}"


@pytest.mark.slow
def test_two_shares_make_the_same_bytes_in_a_store(
    s3: "S3", corpus: Path, local: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    url = parse_location(f"{s3.url}/cache")
    command = [sys.executable, KIT / "run_build.py", corpus, url, tiny_checkpoint]
    shares = [
        subprocess.Popen([*map(str, command), "--share", f"{i}/2"], stderr=subprocess.PIPE)
        for i in range(2)
    ]
    errors = [share.communicate(timeout=PATIENCE_S)[1] for share in shares]
    assert [share.returncode for share in shares] == [0, 0], errors
    assert objects_of(RemoteStorage(url)) == tree_of(local)


def test_a_student_learns_from_a_store_what_it_learns_from_a_disk(
    memory: str, tiny_checkpoint: Path, tmp_path: Path, one_thread: None
) -> None:
    from siglip2_cache.student.config_file import make_config
    from siglip2_cache.student.training.trainer import train

    corpus = write_folder_corpus(tmp_path / "corpus", 24, captions=1)
    caches = (tmp_path / "cache", parse_location(f"{memory}/cache"))
    student = write_student(tiny_checkpoint, tmp_path / "student")
    for i, cache in enumerate(caches):
        build_into(cache, corpus, tiny_checkpoint, shard_rows=8)
        settings = {
            "cache": str(cache),
            "student": str(student),
            "out": str(tmp_path / f"run{i}"),
            "steps": 4,
            "global_batch_size": 8,
            "device": "cpu",
            "decode_workers": 0,
            "eval_samples": 0,
        }
        train(make_config(None, settings), progress=Still())
    one, two = (load_file(tmp_path / f"run{i}" / "model" / "model.safetensors") for i in range(2))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert LocalCopies(tmp_path / "copies").holds(0)
    assert any((tmp_path / "copies").iterdir())


@pytest.mark.slow
def test_killed_twenty_times_over_a_failing_store_the_bytes_are_those_of_a_local_cache(
    s3: "S3", corpus: Path, local: Path, tiny_checkpoint: Path
) -> None:
    from kit.s3 import Fault

    chance = random.Random(0)
    s3.inject(
        Fault(what="slow-down", share=0.02, seed=1),
        Fault(what="lose-answer", kinds=("put", "put-new", "copy"), share=0.05, seed=3),
    )
    num_kills = num_builds = 0
    while num_kills < 20:
        num_builds += 1
        url = parse_location(f"{s3.url}/cache{num_builds}")
        while True:
            process = subprocess.Popen(
                [*map(str, [sys.executable, KIT / "run_build.py", corpus, url, tiny_checkpoint])],
                stdout=subprocess.PIPE,
                text=True,
            )
            assert process.stdout is not None
            is_at_work = all(
                process.stdout.readline() == "unit\n" for _ in range(chance.randrange(1, 4))
            )
            time.sleep(chance.uniform(0, 0.1))
            if is_at_work and process.poll() is None:  # one that has ended its work may end
                os.kill(process.pid, signal.SIGKILL)
                num_kills += 1
            process.communicate()
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL
        assert objects_of(RemoteStorage(url)) == tree_of(local)


@pytest.mark.slow
def test_actors_of_ray_make_the_same_bytes_in_a_store(
    s3: "S3", corpus: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    config = config_of(corpus, tmp_path / "alone", tiny_checkpoint, shard_rows=2, batch_size=2)
    build(config, progress=SilentProgress(), make_teacher=FakeFactory())
    url = parse_location(f"{s3.url}/cache")
    command = [sys.executable, KIT / "run_ray.py", corpus, url, tiny_checkpoint]
    result = subprocess.run(
        [*map(str, command), "--seconds", "0.1", "--kill-actor-at", "4", "--remove-node-at", "9"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert objects_of(RemoteStorage(url)) == tree_of(tmp_path / "alone")
