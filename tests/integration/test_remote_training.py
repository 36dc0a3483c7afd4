"""Two processes train from a cache in a failing object store: fetched once, killed, bit for bit the same."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from kit.fakes import FakeTeacher, SilentProgress, config_of, tree_of, write_folder_corpus
from kit.patience import PATIENCE_S, wait_until

from siglip2_cache.precompute.build import build
from siglip2_cache.store.io.location import Location, parse_location

if TYPE_CHECKING:
    from kit.s3 import S3

STEPS, SAVE_EVERY = 200, 5  # so many that a kill after 20 comes in time
_TIMES = {"images_per_s", "wait_share"}


def torchrun(cache: Location, run: Path, student: Path, copies: Path) -> Any:
    command = (
        f"-m torch.distributed.run --standalone --nproc-per-node 2 -m siglip2_cache train {cache}"
    )
    options = {
        "--student": student,
        "--out": run,
        "--steps": STEPS,
        "--save-every": SAVE_EVERY,
        "--global-batch-size": 8,
        "--val-share": 0.25,
        "--eval-samples": 0,  # so that both want all shards at the same moment
        "--decode-workers": 0,
        "--device": "cpu",
        "--cache-dir": copies,
        "--lr": 1e-3,
    }
    given = [str(word) for option in options.items() for word in option]
    return subprocess.Popen(
        [sys.executable, *command.split(), *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: Any) -> None:
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, out
    assert out.count("trained    ") == 1, out


def metrics_of(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in _TIMES} for line in lines]


@pytest.mark.slow
def test_a_killed_rank_of_a_training_from_a_store_ends_like_an_undisturbed_one_from_a_disk(
    s3: "S3", tiny_checkpoint: Path, tiny_student: Path, tmp_path: Path
) -> None:
    from kit.s3 import Fault

    corpus = write_folder_corpus(tmp_path / "corpus", 48, captions=2)
    local, remote = tmp_path / "cache", parse_location(f"{s3.url}/cache")
    for cache in (local, remote):
        config = config_of(corpus, cache, tiny_checkpoint, num_views=2, shard_rows=16)
        build(config, progress=SilentProgress(), make_teacher=lambda *_: FakeTeacher())
    finish(torchrun(local, tmp_path / "undisturbed", tiny_student, tmp_path / "unused"))
    assert not (tmp_path / "unused").exists()

    s3.forget()
    s3.inject(
        Fault(what="slow-down", share=0.1, seed=1),
        Fault(what="cut-answer", kinds=("get", "get-range"), key="*/c/*", every=3),
        Fault(what="delay", kinds=("get", "get-range"), key="*/c/*", seconds=0.3),
    )
    run = tmp_path / "run"
    process = torchrun(remote, run, tiny_student, tmp_path / "copies")
    saved = run / "checkpoints" / f"step-{4 * SAVE_EVERY:07d}"
    wait_until(lambda: saved.exists() or process.poll() is not None, "the fourth checkpoint")
    assert process.poll() is None, process.communicate()[0]
    ranks = psutil.Process(process.pid).children()
    assert len(ranks) == 2, ranks
    ranks[1].kill()
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1, out
    assert "Signal 9 (SIGKILL)" in out
    assert len(metrics_of(run)) < STEPS

    finish(torchrun(remote, run, tiny_student, tmp_path / "copies"))
    assert metrics_of(run) == metrics_of(tmp_path / "undisturbed")
    models = [tree_of(each / "model") for each in (run, tmp_path / "undisturbed")]
    for model in models:
        assert b"cache" in model.pop("README.md")  # it names the cache, which is another
    assert models[0] == models[1]

    asked = [request for request in s3.requests("get", "get-range") if "/c/" in request.key]
    assert {request.fault for request in asked} >= {None, "cut-answer"}
    fetched = Counter(request.key for request in asked if request.fault is None)
    shards = [key for key in s3.keys("cache/teachers/") if "/c/" in key]
    assert fetched == dict.fromkeys(shards, 1)
