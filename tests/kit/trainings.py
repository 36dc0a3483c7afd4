"""Trainings of tiny students from a tiny cache, and what they leave."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from kit import processes, run_train
from kit.fakes import SilentProgress, config_of, write_folder_corpus
from siglip2_cache.precompute.build import build
from siglip2_cache.progress import Display
from siglip2_cache.student.config_file import make_config
from siglip2_cache.student.training.progress import TrainProgress
from siglip2_cache.student.training.trainer import TrainSummary, train

NUM_IMAGES, BATCH = 48, 8
_TIMES = {"images_per_s", "wait_share"}


class Listening(TrainProgress):
    """Keeps what a training says and its metrics."""

    def __init__(self, on_step: Callable[[Any], None] = lambda _: None) -> None:
        super().__init__(Display())
        self.said: list[str] = []
        self.steps: list[dict[str, Any]] = []
        self._on_step = on_step

    def say(self, message: str) -> None:
        self.said.append(message)

    def step(self, metrics: Any) -> None:
        self.steps.append(dict(metrics))
        self._on_step(metrics)


@dataclass(frozen=True)
class Made:
    cache: Path
    corpus: Path
    teacher: Path


def make_cache(root: Path, teacher: Path) -> Made:
    """Build a cache of 48 pictures in two views by a real tiny teacher.

    Every fifth picture has no caption; neighbours share one.
    """
    corpus = write_folder_corpus(root / "corpus", NUM_IMAGES, captions=2)
    for i in range(0, NUM_IMAGES, 5):
        (corpus / f"img{i:03d}.txt").unlink()
    settings = config_of(corpus, root / "cache", teacher, num_views=2, shard_rows=16)
    build(settings, progress=SilentProgress())
    return Made(root / "cache", corpus, teacher)


def settings_of(cache: Path, student: Path, out: Path, **settings: Any) -> dict[str, Any]:
    return {
        "cache": cache,
        "student": str(student),
        "out": out,
        "steps": 4,
        "global_batch_size": BATCH,
        "lr": 1e-3,
        "val_share": 0.25,
        "decode_workers": 0,
        "device": "cpu",
        "schedule": "cosine",  # the rates of few steps are those that most tests expect
        **settings,
    }


def train_of(
    cache: Path, student: Path, out: Path, *, progress: Any = None, **settings: Any
) -> TrainSummary:
    config = make_config(None, settings_of(cache, student, out, **settings))
    return train(config, progress=progress or Listening())


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """Each step's line, without its times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in line if name not in _TIMES} for line in lines]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    """The weights of the model, and all tensors of the last checkpoint and of the best weights."""
    last = sorted((run / "checkpoints").glob("step-*"))[-1]
    best = json.loads((last / "state.json").read_text())["best"]
    files = {"model": run / "model" / "model.safetensors"}
    files |= {"checkpoint": last / "model.safetensors", "optimizer": last / "optimizer.safetensors"}
    if (last / "ema.safetensors").exists():
        files["ema"] = last / "ema.safetensors"
    if best is not None:
        files["best"] = run / "checkpoints" / f"best-{best['step']:07d}" / "model.safetensors"
    return {
        f"{kind}: {name}": tensor
        for kind, path in files.items()
        for name, tensor in load_file(path).items()
    }


def assert_same_run(found: Path, expected: Path) -> None:
    assert metrics_of(found) == metrics_of(expected)
    weights, wanted = weights_of(found), weights_of(expected)
    assert weights.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(weights[name], tensor), name
    before, after = (json.loads((run / "evaluation.json").read_text()) for run in (expected, found))
    assert before == after


def run_trainings(
    folder: Path, settings: dict[str, Any], *kills: object
) -> subprocess.CompletedProcess[str]:
    """Train in processes that kill themselves; see run_train.py."""
    folder.mkdir(exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(settings, default=str))
    return processes.run([sys.executable, run_train.__file__, folder / "settings.json", *kills])
