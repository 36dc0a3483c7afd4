"""Train the two shipped models: the teacher and the initial student.

    python -m siglip2_cache.demo.train_teacher WORK [--only teacher|student] [--quick]

Both are trained on clean captions, with the contrastive loss, from random weights. Training reads a cache,
and a cache needs a teacher; here it is an untrained model, whose targets have weight 0. Copy
WORK/teacher/model and WORK/student/model to demo/checkpoints; then WORK may be removed.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from ..errors import CacheError
from ..precompute.build import BuildConfig, build
from ..precompute.planning.config import PlanConfig
from ..student.config import TrainConfig
from ..student.training.trainer import train
from .architecture import CHECKPOINTS, Size, write_architecture
from .corpus import CorpusConfig, write_corpus


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Settings of one model."""

    num_images: int
    steps: int
    batch_size: int
    lr: float
    vague_rate: float
    seed: int


RECIPES: dict[Size, Recipe] = {
    "teacher": Recipe(
        num_images=16_000, steps=5_000, batch_size=128, lr=1e-3, vague_rate=0.0, seed=11
    ),
    # Stopped early: it knows a little, like a pretrained Base on a new corpus.
    "student": Recipe(
        num_images=4_000, steps=300, batch_size=128, lr=1e-3, vague_rate=0.4, seed=12
    ),
}
_QUICK = Recipe(num_images=200, steps=4, batch_size=32, lr=1e-3, vague_rate=0.0, seed=13)


def make_model(size: Size, work: Path, recipe: Recipe) -> Path:
    """Return the folder of a model trained on a generated corpus; run again to resume."""
    corpus = work / f"corpus-{size}"
    table = corpus / "captions.jsonl"
    if not table.exists():
        config = CorpusConfig(
            num_images=recipe.num_images, seed=recipe.seed, vague_rate=recipe.vague_rate
        )
        write_corpus(config, corpus)
    architecture = write_architecture(size, work / f"architecture-{size}")
    untrained = _untrained(work / "untrained")
    cache = work / f"cache-{size}"
    plan = PlanConfig(sources=(str(table),))
    build(BuildConfig(plan=plan, cache=cache, teacher=str(untrained), decode_workers=0))
    train(
        TrainConfig(
            cache=cache,
            student=str(architecture),
            out=work / size,
            from_scratch=True,
            weights={"soft": 0.0, "cosine": 0.0, "contrastive": 1.0},
            teacher_scale=10.0,  # initial scale of the student
            teacher_bias=-10.0,
            steps=recipe.steps,
            global_batch_size=recipe.batch_size,
            lr=recipe.lr,
            schedule="cosine",  # that of the shipped checkpoints
            seed=recipe.seed,
            decode_workers=0,
            val_share=0.02,
        )
    )
    return work / size / "model"


def _untrained(folder: Path) -> Path:
    """Return the folder of a small model with random weights, for a cache whose targets are not used."""
    import torch

    from ..siglip import load_trainable, resolve_checkpoint

    write_architecture("student", folder)
    if not (folder / "model.safetensors").exists():
        torch.manual_seed(0)
        checkpoint = resolve_checkpoint(str(folder), has_weights=False)
        load_trainable(checkpoint, towers="both", is_new=True).save_pretrained(folder)
    return folder


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m siglip2_cache.demo.train_teacher",
        description="Train the small teacher and the small initial student.",
    )
    parser.add_argument("work", type=Path, help="folder for corpora, caches and runs")
    parser.add_argument("--only", choices=sorted(RECIPES))
    parser.add_argument("--quick", action="store_true", help="a few steps, to try the command")
    given = parser.parse_args()
    sizes: list[Size] = [given.only] if given.only else ["teacher", "student"]
    try:
        for size in sizes:
            model = make_model(size, given.work, _QUICK if given.quick else RECIPES[size])
            print(f"{size}: {model}; copy it to {CHECKPOINTS / size}")
    except CacheError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
