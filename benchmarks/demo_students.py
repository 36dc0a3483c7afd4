"""Students that begin with the demo's, for benchmarks of targets."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from siglip2_cache.progress import Display
from siglip2_cache.student.config import TrainConfig
from siglip2_cache.student.evaluation.compare import EvalConfig, evaluate_model
from siglip2_cache.student.training.progress import TrainProgress
from siglip2_cache.student.training.trainer import train

CHECKPOINTS = Path(__file__).parents[1] / "demo" / "checkpoints"


def train_student(
    args: argparse.Namespace,
    cache: Path,
    out: Path,
    *,
    seed: int,
    lr: float,
    weights: Mapping[str, float] | None = None,
) -> None:
    """Train the demo's student for ``args.steps`` of ``args.batch_size``, with no image held out."""
    config = TrainConfig(
        cache=cache,
        student=str(CHECKPOINTS / "student"),
        out=out,
        steps=args.steps,
        global_batch_size=args.batch_size,
        warmup_steps=args.steps // 10,
        lr=lr,
        seed=seed,
        weights=weights or {},
        decode_workers=0,
        val_share=0.0,
        check_pixels="never",
        save_every=args.steps,
    )
    train(config, progress=TrainProgress(Display()))


def recall(model: Path, cache: Path) -> float:
    """Return the mean R@1 of both ways on all images of a cache."""
    config = EvalConfig(model=str(model), cache=cache, split="all", decode_workers=0)
    ways = evaluate_model(config).found["columns"]["model"]["retrieval"]["all"]
    return (ways["image_to_text"]["1"] + ways["text_to_image"]["1"]) / 2


def last_metrics(run: Path) -> list[dict[str, float]]:
    """Return the metrics of the last tenth of the steps."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return lines[-max(1, len(lines) // 10) :]
