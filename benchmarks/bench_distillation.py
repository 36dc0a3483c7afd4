"""What a student learns from each objective, at three qualities of captions: held-out recall.

    python benchmarks/bench_distillation.py [--seeds 3] [--steps 400] [--jobs 2] [--json] [--quick]

The corpus is generated (demo/corpus.py); the teacher and the student's start are those that are shipped
(demo/checkpoints). Each corpus is cached once with `build`; every run is a `train` of the same student
from the same start over the same number of steps. R@1 is the mean of image to text and text to image on
1,000 clean images of layouts that no training shows, 5 captions each. A last part trains the default
against the *online* teacher, whose embeddings are computed in each step instead of read.
"""

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arguments import benchmark_parser
from hardware import machine

from siglip2_cache.demo.corpus import CorpusConfig, write_corpus

CHECKPOINTS = Path(__file__).parents[1] / "demo" / "checkpoints"
NOISES: dict[str, tuple[float, float]] = {
    "30 % missing, 45 % mismatched": (0.3, 0.45),
    "60 % mismatched": (0.0, 0.6),
    "clean": (0.0, 0.0),
}
VIEWS_AT = "30 % missing, 45 % mismatched"
CAPTIONS_VAGUE = 0.4


@dataclass(frozen=True)
class Way:
    """One objective."""

    name: str
    weights: Mapping[str, float]
    projection: str = "auto"
    is_separate: bool = False
    num_views: int = 1
    is_online: bool = False


def weights(**given: float) -> dict[str, float]:
    return {"soft": 0.0, "cosine": 0.0, "contrastive": 0.0, **given}


DEFAULT = Way("default: soft 1, cosine T/3, contrastive 0.1, one shared map", {})
WAYS = [
    Way("contrastive", weights(contrastive=1)),
    Way(
        "contrastive 0.1, cosine 5, separate maps",
        weights(contrastive=0.1, cosine=5),
        is_separate=True,
    ),
    Way("soft", weights(soft=1)),
    Way("soft, cosine 5, separate maps", weights(soft=1, cosine=5), is_separate=True),
    Way("soft, cosine 5, PCA map", weights(soft=1, cosine=5), projection="pca"),
    Way("soft, cosine 5, one shared map", weights(soft=1, cosine=5)),
    Way("cosine, one shared map", weights(cosine=5)),
    Way("contrastive 1, soft, cosine 5, one shared map", weights(contrastive=1, soft=1, cosine=5)),
    Way("soft, cosine 5, bank 1, one shared map", weights(soft=1, cosine=5, bank=1)),
    DEFAULT,
]
VIEW_WAYS = [
    Way("soft, cosine 5, one shared map, 4 views", weights(soft=1, cosine=5), num_views=4),
    Way("default, 4 views", {}, num_views=4),
]


@dataclass(frozen=True)
class Job:
    """One run."""

    way: Way
    noise: str
    seed: int
    cache: Path
    held_out: Path
    out: Path
    steps: int
    batch_size: int
    checkpoints: Path


def main() -> None:
    parser = benchmark_parser(__doc__, quick="one seed, few steps and images")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS)
    parser.add_argument("--work", type=Path, help="folder to keep; default a temporary one")
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.steps, args.images, args.batch_size = 1, 6, 200, 32
    with tempfile.TemporaryDirectory() as folder:
        run(args, args.work or Path(folder))


def run(args: argparse.Namespace, work: Path) -> None:
    print(machine("torch", "transformers", "numpy"))
    started = time.monotonic()
    caches = make_caches(args, work)
    print(f"corpora and caches made in {time.monotonic() - started:,.0f} s", flush=True)
    teacher, start = baseline(args, caches["held-out"])
    print(f"teacher R@1 {teacher:.3f}, student at the start {start:.3f}", flush=True)
    jobs = [
        job_of(args, work, caches, way, noise, seed)
        for seed in range(args.seeds)
        for noise in NOISES
        for way in WAYS + (VIEW_WAYS if noise == VIEWS_AT else [])
    ]
    found: dict[str, dict[str, list[float]]] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, mp_context=context) as pool:
        for job, result in zip(jobs, pool.map(run_job, jobs), strict=True):
            recalls = found.setdefault(job.way.name, {}).setdefault(job.noise, [])
            recalls.append(result["recall"])
            print(f"{job.noise}; {job.way.name}; seed {job.seed}: {recalls[-1]:.3f}", flush=True)
    print_table(found)
    online = compare_online(args, work, caches)
    if args.json:
        print(
            json.dumps({"teacher": teacher, "start": start, "recall_at_1": found, "online": online})
        )


def make_caches(args: argparse.Namespace, work: Path) -> dict[str, Path]:
    """Write the corpora and build their caches, by name of the noise; also `held-out` and `views`."""
    caches: dict[str, Path] = {}
    for noise, (missing, mismatched) in NOISES.items():
        config = CorpusConfig(
            num_images=args.images,
            seed=21,
            missing_rate=missing,
            mismatched_rate=mismatched,
            vague_rate=CAPTIONS_VAGUE,
        )
        caches[noise] = make_cache(args, work / f"train-{missing}-{mismatched}", config)
    missing, mismatched = NOISES[VIEWS_AT]
    caches["views"] = make_cache(args, work / f"train-{missing}-{mismatched}", None, num_views=4)
    num_held_out = 100 if args.quick else 1000
    clean = CorpusConfig(num_images=num_held_out, seed=22, held_out=True, vague_rate=0.0)
    caches["held-out"] = make_cache(args, work / "held-out", clean)
    return caches


def make_cache(
    args: argparse.Namespace, folder: Path, config: CorpusConfig | None, *, num_views: int = 1
) -> Path:
    from siglip2_cache.precompute.build import BuildConfig, build
    from siglip2_cache.precompute.planning.config import PlanConfig

    table = folder / "captions.jsonl"
    if config is not None and not table.exists():
        write_corpus(config, folder)
    cache = folder.with_name(f"{folder.name}-cache-{num_views}")
    plan = PlanConfig(sources=(str(table),), num_views=num_views, view_min_area=0.5)
    build(BuildConfig(plan=plan, cache=cache, teacher=str(args.checkpoints / "teacher")))
    return cache


def job_of(
    args: argparse.Namespace,
    work: Path,
    caches: Mapping[str, Path],
    way: Way,
    noise: str,
    seed: int,
) -> Job:
    number = f"{list(NOISES).index(noise)}-{seed}-{abs(hash(way.name)) % 10**8}"
    return Job(
        way=way,
        noise=noise,
        seed=seed,
        cache=caches["views"] if way.num_views > 1 else caches[noise],
        held_out=caches["held-out"],
        out=work / f"run-{os.getpid()}-{number}-{int(way.is_online)}",
        steps=args.steps,
        batch_size=args.batch_size,
        checkpoints=args.checkpoints,
    )


def run_job(job: Job) -> dict[str, float]:
    """Train one student; return its held-out recall, its median seconds a step and its memory."""
    import torch

    torch.set_num_threads(1)
    from siglip2_cache.progress import Display
    from siglip2_cache.student.config import TrainConfig
    from siglip2_cache.student.training.progress import TrainProgress
    from siglip2_cache.student.training.trainer import train

    config = TrainConfig(
        cache=job.cache,
        student=str(job.checkpoints / "student"),
        out=job.out,
        weights=dict(job.way.weights),
        projection=job.way.projection,
        steps=job.steps,
        global_batch_size=job.batch_size,
        lr=1e-3,
        seed=job.seed,
        decode_workers=0,
        val_share=0.0,
        check_pixels="never",
        save_every=job.steps,
        warmup_steps=job.steps // 10,
    )
    train(config, progress=TrainProgress(Display()), trainer_class=kind_of(job))
    lines = [json.loads(line) for line in (job.out / "metrics.jsonl").read_text().splitlines()]
    rates = [line["images_per_s"] for line in lines[len(lines) // 10 :]]
    return {
        "recall": recall(str(job.out / "model"), job.held_out),
        "step_s": job.batch_size / statistics.median(rates),
        "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def recall(model: str, cache: Path) -> float:
    """Return the mean of both ways' R@1 of a model on all images of a cache."""
    from siglip2_cache.student.evaluation.compare import EvalConfig, evaluate_model

    found = evaluate_model(
        EvalConfig(model=model, cache=cache, split="all", decode_workers=0)
    ).found
    return mean_recall(found["columns"]["model"])


def mean_recall(column: Mapping[str, Any]) -> float:
    ways = column["retrieval"]["all"]
    return (ways["image_to_text"]["1"] + ways["text_to_image"]["1"]) / 2


def baseline(args: argparse.Namespace, held_out: Path) -> tuple[float, float]:
    """Return the recall of the teacher and of the student's start."""
    from siglip2_cache.student.evaluation.compare import EvalConfig, evaluate_model

    start = str(args.checkpoints / "student")
    found = evaluate_model(
        EvalConfig(model=start, cache=held_out, split="all", decode_workers=0)
    ).found
    return mean_recall(found["columns"]["teacher"]), mean_recall(found["columns"]["model"])


def kind_of(job: Job) -> Any:
    """Return the kind of Trainer that a run needs; None: the plain one."""
    way = job.way
    if not (way.is_separate or way.is_online):
        return None
    from siglip2_cache.student.training.trainer import Trainer, make_distiller

    if way.is_separate:

        class SeparateMaps(Trainer):
            def make_distiller(self, resolved: Any) -> Any:
                return make_distiller(resolved, distiller_of_two_maps())

        return SeparateMaps

    class OnlineTeacher(Trainer):
        def batches(self, loader: Any, done: int) -> Iterator[Any]:
            teacher = load_online_teacher(job.checkpoints)
            for batch in super().batches(loader, done):
                started = time.perf_counter()
                compute_targets(teacher, batch)
                batch.wait_s += time.perf_counter() - started  # it is part of the step
                yield batch

    return OnlineTeacher


def distiller_of_two_maps() -> Any:
    """Return a Distiller in which images and texts have a map of their own."""
    from torch import Tensor

    from siglip2_cache.student.losses.learned_map import LearnedMap
    from siglip2_cache.student.training.distiller import Distiller

    class TwoMaps(Distiller):
        def __init__(self, *given: Any, **settings: Any) -> None:
            super().__init__(*given, **settings)
            shape = self.projection.weight.shape
            self.text_projection = LearnedMap(shape[1], shape[0])

        def maps(self) -> list[Tensor]:
            return [*super().maps(), self.text_projection.weight]

        def map_texts(self, rows_MD: Tensor) -> Tensor:
            return self.text_projection(rows_MD)

        def fit_maps(self, images: Any, texts: Any, ranks: Any) -> None:
            super().fit_maps(images, None, ranks)
            self.text_projection.add_rows(*texts, ranks)
            self.text_projection.fit()

    return TwoMaps


def load_online_teacher(checkpoints: Path) -> tuple[Any, Any]:
    from siglip2_cache.siglip import load_model, resolve_checkpoint

    checkpoint = resolve_checkpoint(str(checkpoints / "teacher"))
    return load_model(checkpoint, device="cpu", compute_dtype="float32"), checkpoint


def compute_targets(teacher: tuple[Any, Any], batch: Any) -> None:
    """Replace a batch's targets by what the teacher says now: it takes the student's pixels and ids."""
    from siglip2_cache.siglip import embed_image_pixels, embed_token_ids

    model, checkpoint = teacher
    pixels = batch.pixels_N
    batch.teacher_image_NE = embed_image_pixels(model, checkpoint, pixels, compute_dtype="float32")
    batch.teacher_text_ME = embed_token_ids(model, batch.ids_ML, compute_dtype="float32")


def compare_online(
    args: argparse.Namespace, work: Path, caches: Mapping[str, Path]
) -> dict[str, Any]:
    """Train the default from the cache and against the live teacher, each in a process of its own."""
    found: dict[str, list[dict[str, float]]] = {"cached": [], "online": []}
    context = multiprocessing.get_context("spawn")
    for seed in range(args.seeds):
        for name, online in (("cached", False), ("online", True)):
            way = Way(f"default, {name}", {}, is_online=online)
            job = job_of(args, work, caches, way, VIEWS_AT, seed)
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                found[name].append(pool.submit(run_job, job).result())
    print(f"\nDefault, {VIEWS_AT}, one run at a time, one thread:")
    print("| | R@1 | ms a step | peak memory |\n|---|---|---|---|")
    for name, runs in found.items():
        recalls = ", ".join(f"{run['recall']:.3f}" for run in runs)
        step = statistics.median(run["step_s"] for run in runs)
        peak = statistics.median(run["peak_rss"] for run in runs)
        print(f"| {name} | {recalls} | {step * 1000:.0f} | {peak / 1e6:,.0f} MB |")
    return found


def print_table(found: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    print("\n| objective | " + " | ".join(NOISES) + " |\n|---|" + "---|" * len(NOISES))
    for name, by_noise in found.items():
        cells = [cell(by_noise.get(noise)) for noise in NOISES]
        print(f"| {name} | " + " | ".join(cells) + " |")
    sys.stdout.flush()


def cell(recalls: Sequence[float] | None) -> str:
    """Return the mean over seeds, and the smallest and the largest."""
    if not recalls:
        return ""
    return f"{statistics.mean(recalls):.3f} ({min(recalls):.3f} to {max(recalls):.3f})"


if __name__ == "__main__":
    main()
