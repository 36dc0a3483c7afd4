"""What a student learns from each objective, at three qualities of captions, on two kinds of corpora.

    python benchmarks/bench_distillation.py [--seeds 3] [--steps 400] [--work FOLDER] [--json] [--quick]

*Scenes* are generated (demo/corpus.py); the teacher and the student's start are those that are shipped
(demo/checkpoints), and the score is R@1, the mean of image to text and text to image, on 1,000 clean images
of layouts that no training shows, 5 captions each. *Scratch* and *half* are the same from random weights, and
from the shipped student cut to half its width. *Digits* (digits.py) are pairs of handwritten digits with
their labels as captions; the teacher is trained here on clean captions, the student starts from random
weights, and the score is zero-shot accuracy over 100 classes on 1,000 pictures of other digits.

Each corpus is cached once with `build`; every run is a `train` of the same student over the same number of
steps, unless its name says otherwise. The learning rate decides more than the objective, so each objective
has the one that is best for it of those tried, 2, 4 and 8e-3. The cost is that of one run: images read, and
CPU time, which other programs on the machine hardly change. A last part trains the default against the
*online* teacher, whose embeddings are computed in each step instead of read. Results are kept in --work: a
run that is there is not made again, so the benchmark may be interrupted.
"""

import argparse
import hashlib
import json
import math
import multiprocessing
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from arguments import benchmark_parser
from distillation_ways import (
    CLEAN,
    DEFAULT,
    MISMATCHED,
    NOISES,
    NOISY,
    TWO_TEACHERS,
    WAYS,
    WORLDS,
    Way,
)
from distillation_worlds import World, add_second_teacher, digits_world, scenes_worlds
from hardware import machine

Found = dict[str, dict[str, dict[str, list[dict[str, float]]]]]
"""Results by world, objective and noise; one for each seed."""


@dataclass(frozen=True)
class Job:
    """One run."""

    way: Way
    world: World
    noise: str
    seed: int
    work: Path
    steps: int
    batch_size: int

    @property
    def name(self) -> str:
        """The name of its folder and result; other settings have another."""
        told = [
            self.world.name,
            self.noise,
            self.seed,
            self.steps,
            self.batch_size,
            self.way.told(),
        ]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    @property
    def folder(self) -> Path:
        return self.work / "runs" / self.name


def main() -> None:
    parser = benchmark_parser(__doc__, quick="one seed, few steps and images")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--work", type=Path, help="folder to keep; default a temporary one")
    parser.add_argument(
        "--ways", nargs="+", help="only objectives whose name contains one of these"
    )
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=WORLDS)
    parser.add_argument("--noises", nargs="+", choices=tuple(NOISES), default=tuple(NOISES))
    parser.add_argument("--online", action="store_true", help="also train with the online teacher")
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.steps, args.images, args.batch_size = 1, 6, 200, 32
    with tempfile.TemporaryDirectory() as folder:
        run(args, args.work or Path(folder))


def run(args: argparse.Namespace, work: Path) -> None:
    print(machine("torch", "transformers", "numpy"))
    started = time.monotonic()
    ways = [way for way in WAYS if args.ways is None or any(part in way.name for part in args.ways)]
    kinds = {way.cache for way in ways}
    scenes = scenes_worlds(args, work / "scenes", kinds) if {*args.worlds} - {"digits"} else []
    worlds = [world for world in scenes if world.name in args.worlds]
    if "digits" in args.worlds:
        worlds.append(digits_world(args, work / "digits", kinds))
    print(f"corpora and caches made in {time.monotonic() - started:,.0f} s", flush=True)
    starts = {world.name: baseline(world) for world in worlds}
    for name, (teacher, start) in starts.items():
        print(f"{name}: teacher {teacher:.3f}, student at the start {start:.3f}", flush=True)
    found: Found = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, mp_context=context) as pool:
        if scenes and any(way.name == TWO_TEACHERS for way in ways):
            train_second_teacher(args, work, scenes[0], pool)
        jobs = [
            Job(way, world, noise, seed, work, round(way.steps * args.steps), args.batch_size)
            for way in ways
            for world in worlds
            if world.name in way.worlds
            for noise in noises_of(way, world)
            if noise in args.noises
            for seed in range(args.seeds)
        ]
        for job, result in zip(jobs, pool.map(run_job, jobs), strict=True):
            by_way = found.setdefault(job.world.name, {}).setdefault(job.way.name, {})
            by_way.setdefault(job.noise, []).append(result)
            told = f"{job.world.name}; {job.noise}; {job.way.name}; seed {job.seed}"
            print(f"{told}: {result['score']:.3f}", flush=True)
    for name, by_way in found.items():
        print_table(name, by_way)
    online = None
    if args.online and worlds[0].name == "scenes":
        online = compare_online(args, work, worlds[0])
    if args.json:
        print(json.dumps({"baselines": starts, "runs": found, "online": online}))


def train_second_teacher(
    args: argparse.Namespace, work: Path, world: World, pool: ProcessPoolExecutor
) -> None:
    """Make a student that the default trained from clean captions the second teacher of the scenes.

    A later run with the same work folder keeps it, also where the default is another by then: targets of a
    teacher cannot change.
    """
    teacher = work / "second-teacher"
    if not teacher.exists():
        job = Job(DEFAULT, world, CLEAN, 9, work, args.steps, args.batch_size)
        pool.submit(run_job, job).result()
        shutil.copytree(job.folder / "model", teacher)
    print(f"second teacher: {score(str(teacher), world):.3f}", flush=True)
    for noise in args.noises:
        add_second_teacher(world, noise, teacher)


def noises_of(way: Way, world: World) -> list[str]:
    """Return the noises of an objective in a world; digits have no missing captions."""
    if world.name != "digits":
        return list(way.noises)
    return list(dict.fromkeys(MISMATCHED if noise == NOISY else noise for noise in way.noises))


def run_job(job: Job) -> dict[str, float]:
    """Train one student, unless its result is kept; return its score and what it cost."""
    kept = job.work / "results" / f"{job.name}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    import torch

    torch.set_num_threads(1)
    from siglip2_cache import open_cache
    from siglip2_cache.progress import Display
    from siglip2_cache.student.config import TrainConfig, images_read
    from siglip2_cache.student.training.progress import TrainProgress
    from siglip2_cache.student.training.trainer import Trainer, train

    world, out = job.world, job.folder
    settings: dict[str, Any] = {
        "student": str(world.student),
        "teacher": "teacher",
        "from_scratch": world.from_scratch,
        "steps": job.steps,
        "global_batch_size": job.batch_size,
        "warmup_steps": job.steps // 10,
        "lr": job.way.lr,
        "schedule": job.way.schedule,
        **job.way.settings,
    }
    cache, weights = world.caches[job.noise, job.way.cache], dict(job.way.weights)
    scale = math.exp(open_cache(cache).teacher("teacher").logit_scale)
    weights.setdefault("cosine", job.way.cosine_of_scale * scale)
    config = TrainConfig(
        cache=cache,
        out=out,
        weights=weights,
        seed=job.seed,
        decode_workers=0,
        val_share=0.0,
        check_pixels="never",
        save_every=settings["steps"],
        **settings,
    )
    trainer: type[Trainer] | None = None
    if job.way.is_online:
        from distillation_online import online_trainer

        trainer = online_trainer(world.teacher)
    started_s = time.process_time()
    train(config, progress=TrainProgress(Display()), trainer_class=trainer)
    cpu_s = time.process_time() - started_s
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rates = [line["images_per_s"] for line in lines[len(lines) // 10 :]]
    result = {
        "score": score(str(out / "model"), world),
        "images_read": float(job.steps * images_read(config)),
        "cpu_s": cpu_s,
        "step_s": job.batch_size / statistics.median(rates),
        "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0,
    }
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps(result))
    return result


def score(model: str, world: World) -> float:
    """Return the score of a model on all held-out images."""
    return score_of(columns_of(model, world)["model"], world)


def columns_of(model: str, world: World) -> Mapping[str, Any]:
    from siglip2_cache.student.evaluation.compare import EvalConfig, evaluate_model

    config = EvalConfig(model=model, cache=world.held_out, split="all", decode_workers=0)
    return evaluate_model(config).found["columns"]


def score_of(column: Mapping[str, Any], world: World) -> float:
    """Return the mean of both ways' R@1, or the zero-shot accuracy."""
    found = column[world.measure]["all"]
    if world.measure == "zero_shot":
        return found["accuracy"]["1"]
    return (found["image_to_text"]["1"] + found["text_to_image"]["1"]) / 2


def baseline(world: World) -> tuple[float, float]:
    """Return the score of the teacher and of the student's start; a random start has that of chance."""
    if world.from_scratch:
        return score(str(world.teacher), world), 0.01 if world.measure == "zero_shot" else 0.001
    columns = columns_of(str(world.student), world)
    return score_of(columns["teacher"], world), score_of(columns["model"], world)


def compare_online(args: argparse.Namespace, work: Path, world: World) -> dict[str, Any]:
    """Train the default from the cache and against the live teacher, each in a process of its own."""
    found: dict[str, list[dict[str, float]]] = {"cached": [], "online": []}
    context = multiprocessing.get_context("spawn")
    for seed in range(args.seeds):
        for name, online in (("cached", False), ("online", True)):
            way = replace(DEFAULT, is_online=online)
            job = Job(way, world, NOISY, seed, work / "alone", args.steps, args.batch_size)
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                found[name].append(pool.submit(run_job, job).result())
    print(f"\nDefault, {NOISY}, one run at a time, one thread:")
    print("| | R@1 | ms a step | peak memory |\n|---|---|---|---|")
    for name, runs in found.items():
        scores = ", ".join(f"{run['score']:.3f}" for run in runs)
        step = statistics.median(run["step_s"] for run in runs)
        peak = statistics.median(run["peak_rss"] for run in runs)
        print(f"| {name} | {scores} | {step * 1000:.0f} | {peak / 1e6:,.0f} MB |")
    return found


def print_table(world: str, found: Mapping[str, Mapping[str, list[dict[str, float]]]]) -> None:
    """Print the scores at each noise, and the cost of a run at the first."""
    print(f"\n| {world} | " + " | ".join(NOISES) + " | images read | CPU time |")
    print("|---|" + "---|" * (len(NOISES) + 2))
    for name, by_noise in found.items():
        cells = [cell([run["score"] for run in by_noise.get(noise, [])]) for noise in NOISES]
        runs = next(iter(by_noise.values()))
        cpu_s = statistics.median(run["cpu_s"] for run in runs)
        print(
            f"| {name} | "
            + " | ".join(cells)
            + f" | {runs[0]['images_read']:,.0f} | {cpu_s:.0f} s |"
        )
    sys.stdout.flush()


def cell(scores: list[float]) -> str:
    """Return the mean over seeds, and the smallest and the largest."""
    if not scores:
        return ""
    return f"{statistics.mean(scores):.3f} ({min(scores):.3f} to {max(scores):.3f})"


if __name__ == "__main__":
    main()
