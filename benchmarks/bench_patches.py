"""Patch targets: bytes, error, read rate, and what a student's patches learn from them.

    python benchmarks/bench_patches.py [--seeds 3] [--steps 200] [--weight 5] [--json] [--quick]

Students start from the demo's and train on its corpus with the default objective, with and without the term
``patch``. A linear probe then labels the pixels of held-out scenes by shape or background from the patch
tokens, whose logits are resized to the picture as in DINOv2's linear evaluation. It is trained on scenes of
other layouts, whose masks are known. R@1 is the mean of both ways on clean held-out scenes. Rates are views
per second of CPU time of all threads.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from arguments import benchmark_parser
from demo_students import CHECKPOINTS, last_metrics, recall, train_student
from hardware import machine
from numpy.typing import NDArray
from torch import Tensor

from siglip2_cache import open_cache
from siglip2_cache.demo.corpus import CorpusConfig, write_corpus
from siglip2_cache.demo.drawing import IMAGE_SIZE, draw_with_coverage
from siglip2_cache.demo.scenes import SHAPES, layouts
from siglip2_cache.precompute.build import BuildConfig, build
from siglip2_cache.precompute.planning.config import PlanConfig
from siglip2_cache.siglip import encode_images, load_model, resolve_checkpoint, vision_tower
from siglip2_cache.store.format.patch_encoding import decode_patches, encode_patches
from siglip2_cache.store.format.patch_map import fit_patch_map

GRID, DIM = 4, 64
_PROBE_STEPS, _PROBE_RATE = 300, 1e-2


def main() -> None:
    parser = benchmark_parser(__doc__, quick="one seed, few steps and scenes")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--weight", type=float, default=5.0)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--held-out", type=int, default=400)
    parser.add_argument("--scenes", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.steps, args.images, args.held_out, args.scenes = 1, 6, 150, 50, 60
    print(machine("numpy", "torch", "zarr"), flush=True)
    probe, held_out = draw_scenes(args.scenes, is_held_out=False), draw_scenes(args.scenes)
    found: dict[str, Any] = {"error": compare_error(probe)}
    with tempfile.TemporaryDirectory(prefix="bench-patches-") as folder:
        caches = build_caches(args, Path(folder))
        found["reading"] = compare_reading(caches[0])
        found["training"] = compare_training(args, Path(folder), *caches, probe, held_out)
    if args.json:
        print(json.dumps(found))


@dataclass(frozen=True)
class Scenes:
    """Pictures and the label of each pixel."""

    pixels: Tensor
    """(N, H, W, 3) uint8."""

    labels: Tensor
    """(N, H, W) int64: 0 for background, else 1 + the number of the shape."""


def draw_scenes(count: int, *, is_held_out: bool = True) -> Scenes:
    rng = Random(7 + is_held_out)
    chosen = rng.sample(layouts(held_out=is_held_out), count)
    pixels, labels = list[NDArray[np.uint8]](), list[NDArray[np.int64]]()
    for layout in chosen:
        scene = layout.scene(is_first_large=rng.random() < 0.5)
        picture, parts = draw_with_coverage(scene, rng)
        label = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.int64)
        for thing, part in zip((scene.large, scene.small), parts, strict=True):
            label[part > 0.5] = 1 + SHAPES.index(thing.shape)
        pixels.append(picture)
        labels.append(label)
    return Scenes(torch.from_numpy(np.stack(pixels)), torch.from_numpy(np.stack(labels)))


# -- bytes, error, reading


def tokens_of(model: Path, pixels: Tensor) -> Tensor:
    """Return the patch tokens of pictures, (N, side, side, D) float32."""
    checkpoint = resolve_checkpoint(str(model))
    tower = vision_tower(load_model(checkpoint, device="cpu", compute_dtype="float32"))
    with torch.no_grad():
        found = [
            encode_images(tower, checkpoint, part, None).tokens_BND for part in pixels.split(100)
        ]
    tokens = torch.cat(found)
    side = round(tokens.shape[1] ** 0.5)
    return tokens.reshape(len(tokens), side, side, -1)


def compare_error(scenes: Scenes) -> dict[str, dict[str, float]]:
    """Print and return the bytes of a view, and what the map and int8 leave out of its hidden states."""
    tokens = tokens_of(CHECKPOINTS / "teacher", scenes.pixels).flatten(1, 2).numpy()
    N, C, W = tokens.shape
    half = tokens[: N // 2].reshape(-1, W), tokens[N // 2 :]
    grids = np.full((len(half[1]), 2), GRID)
    found: dict[str, dict[str, float]] = {}
    print(
        f"\nHidden states of the demo's teacher, {C} cells of {W}; maps of half of {N} pictures\n"
    )
    print("| values of a cell | bytes of a view | squared norm lost by the map | and by int8 too |")
    print("|---|---|---|---|")
    for dim in (W, W // 2, W // 4, W // 8):
        fitted = fit_patch_map(half[0], grid=GRID, dim=dim, num_images=N // 2)
        values = half[1] @ fitted.basis_PW.T
        stored = encode_patches(values, grids)
        kept = decode_patches(stored, C).values_VCP.astype(np.float32)
        square = float((half[1] ** 2).sum())
        lost = [float(((each @ fitted.basis_PW - half[1]) ** 2).sum()) for each in (values, kept)]
        found[str(dim)] = {
            "bytes": stored.shape[1],
            "map": lost[0] / square,
            "int8": lost[1] / square,
        }
        each = found[str(dim)]
        print(f"| {dim} | {each['bytes']:,.0f} | {each['map']:.5f} | {each['int8']:.5f} |")
    return found


def compare_reading(cache: Path) -> dict[str, float]:
    """Print and return views per CPU second of patch targets and of embeddings."""
    opened = open_cache(cache)
    rows = np.random.default_rng(0).integers(0, len(opened.image_targets()), 4096)
    patches, images = opened.patch_targets(), opened.image_targets()
    rates: dict[str, float] = {}
    for name, read in (("patch targets", patches.read), ("embeddings", images.read)):
        times: list[float] = []
        for _ in range(9):
            started = time.process_time()
            read(rows)
            times.append(time.process_time() - started)
        rates[name] = len(rows) / statistics.median(times[1:])
    print(f"\n{len(rows):,} random views, {GRID * GRID} cells of {DIM} values; embeddings of 128\n")
    print("| | views a CPU s |")
    print("|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:,.0f} |", flush=True)
    return rates


# -- training


def build_caches(args: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    """Return the cache to train on, with patch targets, and that of held-out scenes."""
    corpora = {
        "train": CorpusConfig(num_images=args.images, seed=21, captions_per_image=2),
        "held-out": CorpusConfig(
            num_images=args.held_out, seed=22, held_out=True, vague_rate=0.0, captions_per_image=2
        ),
    }
    caches: list[Path] = []
    for name, corpus in corpora.items():
        write_corpus(corpus, folder / name)
        caches.append(folder / f"{name}-cache")
        config = BuildConfig(
            plan=PlanConfig(sources=(str(folder / name / "captions.jsonl"),)),
            cache=caches[-1],
            teacher=str(CHECKPOINTS / "teacher"),
            decode_workers=0,
            patch_targets=GRID,
            patch_dims=DIM,
        )
        build(config)
    return caches[0], caches[1]


def compare_training(
    args: argparse.Namespace,
    folder: Path,
    cache: Path,
    held_out_cache: Path,
    probe: Scenes,
    held_out: Scenes,
) -> dict[str, list[dict[str, float]]]:
    """Print and return mIoU and held-out R@1 of the teacher, and of students with and without the term."""
    found: dict[str, list[dict[str, float]]] = {}
    print(f"\n{args.steps} steps of {args.batch_size}; patch weight {args.weight:g}\n")
    print("| model | seed | mIoU of the probe | held-out R@1 | patch loss, last tenth |")
    print("|---|---|---|---|---|", flush=True)

    def note(name: str, seed: int, model: Path, loss: float) -> None:
        result = {
            "miou": probe_miou(model, probe, held_out),
            "recall": recall(model, held_out_cache),
            "patch": loss,
        }
        found.setdefault(name, []).append(result)
        print(
            f"| {name} | {seed} | {result['miou']:.3f} | {result['recall']:.3f} | {loss:.3f} |",
            flush=True,
        )

    note("teacher", 0, CHECKPOINTS / "teacher", 0.0)
    note("student at the start", 0, CHECKPOINTS / "student", 0.0)
    for seed in range(args.seeds):
        for name, weights in (("default", {}), ("with patch", {"patch": args.weight})):
            out = folder / f"{name}-{seed}".replace(" ", "-")
            train_student(args, cache, out, seed=seed, lr=4e-3, weights=weights)
            losses = [line.get("patch", 0.0) for line in last_metrics(out)]
            note(name, seed, out / "model", statistics.mean(losses))
    return found


def probe_miou(model: Path, probe: Scenes, held_out: Scenes) -> float:
    """Return the mean intersection over union of all labels, by a linear probe of a model's patch tokens."""
    tokens, others = tokens_of(model, probe.pixels), tokens_of(model, held_out.pixels)
    mean, std = tokens.mean((0, 1, 2)), tokens.std((0, 1, 2)) + 1e-6
    torch.manual_seed(0)
    linear = torch.nn.Linear(tokens.shape[-1], 1 + len(SHAPES))
    optimizer = torch.optim.Adam(linear.parameters(), _PROBE_RATE)

    def logits(tokens: Tensor) -> Tensor:
        found = linear((tokens - mean) / std).permute(0, 3, 1, 2)
        return torch.nn.functional.interpolate(
            found, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False
        )

    for _ in range(_PROBE_STEPS):
        chosen = torch.randint(len(tokens), (32,))
        loss = torch.nn.functional.cross_entropy(logits(tokens[chosen]), probe.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        said = logits(others).argmax(1)
    ious: list[float] = []
    for label in range(1 + len(SHAPES)):
        is_said, is_there = said == label, held_out.labels == label
        ious.append(float((is_said & is_there).sum() / (is_said | is_there).sum()))
    return statistics.mean(ious)


if __name__ == "__main__":
    main()
