"""What a student learns from each objective, at three qualities of captions, on two kinds of corpora.

    python benchmarks/bench_distillation.py [--seeds 3] [--steps 400] [--work FOLDER] [--json] [--quick]

*Scenes* are generated (demo/corpus.py); the teacher and the student's start are those that are shipped
(demo/checkpoints), and the score is R@1, the mean of image to text and text to image, on 1,000 clean images
of layouts that no training shows, 5 captions each. *Digits* (digits.py) are pairs of handwritten digits with
their labels as captions; the teacher is trained here on clean captions, the student starts from random
weights, and the score is zero-shot accuracy over 100 classes on 1,000 pictures of other digits.

Each corpus is cached once with `build`; every run is a `train` of the same student over the same number of
steps. The learning rate decides more than the objective, so each objective has the one that is best for it
of those tried, 2, 4 and 8e-3. A last part trains the default against the *online* teacher, whose
embeddings are computed in each step instead of read. Results are kept in --work: a run that is there
is not made again, so the benchmark may be interrupted.
"""

import argparse
import hashlib
import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arguments import benchmark_parser
from digits import write_digit_architecture, write_digits
from hardware import machine

from siglip2_cache.demo.corpus import CorpusConfig, write_corpus

CHECKPOINTS = Path(__file__).parents[1] / "demo" / "checkpoints"
NOISES: dict[str, tuple[float, float]] = {
    "30 % missing, 45 % mismatched": (0.3, 0.45),
    "60 % mismatched": (0.0, 0.6),
    "clean": (0.0, 0.0),
}
"""Share of images without captions, and of captioned images with those of another."""

NOISY, MISMATCHED, CLEAN = NOISES
CAPTIONS_VAGUE = 0.4
TEACHER_STEPS = 1500


@dataclass(frozen=True)
class Way:
    """One objective, with its settings."""

    name: str
    weights: Mapping[str, float] = field(default_factory=dict[str, float])
    lr: float = 8e-3
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    noises: tuple[str, ...] = (NOISY, MISMATCHED, CLEAN)
    worlds: tuple[str, ...] = ("scenes",)
    num_views: int = 1
    is_separate: bool = False
    is_online: bool = False


def only(**given: float) -> dict[str, float]:
    """Return weights in which a term that is not named is 0."""
    return {"soft": 0.0, "cosine": 0.0, "contrastive": 0.0, **given}


BOTH = ("scenes", "digits")
TWO_TEACHERS = "two teachers, the second 0.5"
WAYS = [
    Way("default: soft 1, cosine T/3, contrastive 0.1", worlds=BOTH),
    Way("cosine 76 (3.5 T of scenes, 5.8 T of digits)", {"cosine": 76.0}, worlds=BOTH),
    Way("contrastive alone, rate 2e-3", only(contrastive=1), lr=2e-3, worlds=BOTH),
    Way("no contrastive", {"contrastive": 0.0}, noises=(NOISY,)),
    Way("relations 1", {"relations": 1.0}, noises=(NOISY,)),
    Way("affinity 0.1", {"affinity": 0.1}, noises=(NOISY,)),
    Way("image_bank 0.1", {"image_bank": 0.1}, noises=(NOISY,)),
    Way("select keep=0.5", settings={"select": "keep=0.5"}, noises=(NOISY,)),
    Way("soft and contrastive, no cosine", {"cosine": 0.0}, noises=(NOISY,)),
    Way("positives weighed", settings={"positives": "weighed"}, noises=(NOISY,)),
    Way(TWO_TEACHERS, settings={"teacher": {"teacher": 1.0, "second": 0.5}}, noises=(NOISY,)),
    Way("two captions an image", settings={"captions_per_image": 2}, noises=(NOISY,)),
    Way("drrho 1 for contrastive", {"contrastive": 0.0, "drrho": 1.0}, noises=(NOISY,)),
    Way("drrho alone, rate 2e-3", only(drrho=1), lr=2e-3, noises=(NOISY,)),
    Way("drrho_sigmoid alone, rate 2e-3", only(drrho_sigmoid=1), lr=2e-3, noises=(NOISY,)),
    Way("average, decay 0.998", settings={"ema": 0.998, "export": "ema"}, noises=(NOISY,)),
    Way("default, rate 4e-3", lr=4e-3, noises=(NOISY,), worlds=BOTH),
    Way("default, rate 1e-3", lr=1e-3, noises=(NOISY,), worlds=BOTH),
]
"""In the order in which they are run."""


@dataclass(frozen=True)
class World:
    """One kind of corpus, with its teacher and the start of its students."""

    name: str
    caches: Mapping[tuple[str, int], Path]
    """By noise and number of views."""

    held_out: Path
    teacher: Path
    student: Path
    from_scratch: bool
    measure: str
    """retrieval or zero_shot."""


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
        told = [self.world.name, self.noise, self.seed, self.steps, self.batch_size, repr(self.way)]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def main() -> None:
    parser = benchmark_parser(__doc__, quick="one seed, few steps and images")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--work", type=Path, help="folder to keep; default a temporary one")
    parser.add_argument("--ways", help="only objectives whose name contains this")
    parser.add_argument(
        "--second-teacher",
        type=Path,
        help="checkpoint of the second teacher of scenes, such as a student trained longer; without it that "
        "objective is left out",
    )
    parser.add_argument("--worlds", nargs="+", choices=BOTH, default=BOTH)
    parser.add_argument("--online", action="store_true", help="also train with the online teacher")
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.steps, args.images, args.batch_size = 1, 6, 200, 32
    with tempfile.TemporaryDirectory() as folder:
        run(args, args.work or Path(folder))


def run(args: argparse.Namespace, work: Path) -> None:
    print(machine("torch", "transformers", "numpy"))
    started = time.monotonic()
    make = {"scenes": scenes_world, "digits": digits_world}
    worlds = [make[name](args, work / name) for name in args.worlds]
    print(f"corpora and caches made in {time.monotonic() - started:,.0f} s", flush=True)
    starts = {world.name: baseline(world) for world in worlds}
    for name, (teacher, start) in starts.items():
        print(f"{name}: teacher {teacher:.3f}, student at the start {start:.3f}", flush=True)
    ways = [way for way in WAYS if args.ways is None or args.ways in way.name]
    if args.second_teacher is None:
        ways = [way for way in ways if way.name != TWO_TEACHERS]
    jobs = [
        Job(way, world, noise, seed, work, args.steps, args.batch_size)
        for way in ways
        for world in worlds
        if world.name in way.worlds
        for noise in NOISES
        if noise in (way.noises if world.name == "scenes" else (MISMATCHED, CLEAN))
        for seed in range(args.seeds)
    ]
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, mp_context=context) as pool:
        for job, result in zip(jobs, pool.map(run_job, jobs), strict=True):
            by_way = found.setdefault(job.world.name, {}).setdefault(job.way.name, {})
            scores = by_way.setdefault(job.noise, [])
            scores.append(result["score"])
            told = f"{job.world.name}; {job.noise}; {job.way.name}; seed {job.seed}"
            print(f"{told}: {scores[-1]:.3f}", flush=True)
    for name, by_way in found.items():
        print_table(name, by_way)
    online = None
    if args.online and worlds[0].name == "scenes":
        online = compare_online(args, work, worlds[0])
    if args.json:
        print(json.dumps({"baselines": starts, "scores": found, "online": online}))


def scenes_world(args: argparse.Namespace, work: Path) -> World:
    """Write the generated scenes and build their caches."""
    caches: dict[tuple[str, int], Path] = {}
    teacher = CHECKPOINTS / "teacher"
    for noise, (missing, mismatched) in NOISES.items():
        config = CorpusConfig(
            num_images=args.images,
            seed=21,
            missing_rate=missing,
            mismatched_rate=mismatched,
            vague_rate=CAPTIONS_VAGUE,
        )
        folder = work / f"train-{missing}-{mismatched}"
        if not folder.exists():
            write_corpus(config, folder)
        caches[noise, 1] = make_cache(folder, teacher)
        if noise == NOISY and args.second_teacher is not None:
            make_cache(folder, args.second_teacher, name="second")
        if noise == NOISY and any(way.num_views > 1 for way in WAYS):
            caches[noise, 4] = make_cache(folder, teacher, num_views=4)
    held_out = work / "held-out"
    if not held_out.exists():
        num_held_out = 100 if args.quick else 1000
        write_corpus(
            CorpusConfig(num_images=num_held_out, seed=22, held_out=True, vague_rate=0.0), held_out
        )
    return World(
        "scenes",
        caches,
        make_cache(held_out, teacher),
        teacher,
        CHECKPOINTS / "student",
        from_scratch=False,
        measure="retrieval",
    )


def digits_world(args: argparse.Namespace, work: Path) -> World:
    """Write the pairs of digits, train their teacher on clean captions, and build the caches."""
    student = write_digit_architecture("student", work / "student")
    clean = write_once(work / "teacher-corpus", num_images=2 * args.images, seed=1)
    teacher = train_teacher(args, work, clean)
    caches: dict[tuple[str, int], Path] = {}
    for noise in (MISMATCHED, CLEAN):
        folder = work / f"train-{NOISES[noise][1]}"
        write_once(folder, num_images=args.images, seed=2, mismatched=NOISES[noise][1])
        caches[noise, 1] = make_cache(folder, teacher)
    num_held_out = 100 if args.quick else 1000
    held_out = write_once(work / "held-out", num_images=num_held_out, seed=3, held_out=True)
    return World(
        "digits",
        caches,
        make_cache(held_out, teacher, has_labels=True),
        teacher,
        student,
        from_scratch=True,
        measure="zero_shot",
    )


def write_once(
    folder: Path, *, num_images: int, seed: int, mismatched: float = 0.0, held_out: bool = False
) -> Path:
    if not folder.exists():
        settings = {"num_images": num_images, "seed": seed, "held_out": held_out}
        write_digits(folder, mismatched=mismatched, **settings)
    return folder


def train_teacher(args: argparse.Namespace, work: Path, corpus: Path) -> Path:
    """Return the folder of a model trained with the contrastive loss from random weights."""
    import torch

    from siglip2_cache.siglip import load_trainable, resolve_checkpoint
    from siglip2_cache.student.config import TrainConfig
    from siglip2_cache.student.training.trainer import train

    untrained = work / "untrained"  # its targets have weight 0
    if not untrained.exists():
        write_digit_architecture("student", untrained)
        torch.manual_seed(0)
        checkpoint = resolve_checkpoint(str(untrained), has_weights=False)
        load_trainable(checkpoint, towers="both", is_new=True).save_pretrained(untrained)
    architecture = write_digit_architecture("teacher", work / "architecture")
    train(
        TrainConfig(
            cache=make_cache(corpus, untrained),
            student=str(architecture),
            out=work / "teacher-run",
            from_scratch=True,
            weights=only(contrastive=1),
            teacher_scale=10.0,
            teacher_bias=-10.0,
            steps=args.steps if args.quick else TEACHER_STEPS,
            global_batch_size=args.batch_size,
            lr=1e-3,
            decode_workers=0,
            val_share=0.0,
        )
    )
    return work / "teacher-run" / "model"


def make_cache(
    folder: Path,
    teacher: Path,
    *,
    name: str = "teacher",
    num_views: int = 1,
    has_labels: bool = False,
) -> Path:
    from siglip2_cache.precompute.build import BuildConfig, build
    from siglip2_cache.precompute.planning.config import PlanConfig

    cache = folder.with_name(f"{folder.name}-cache-{num_views}")
    labels = {"labels": folder / "labels.json", "templates": folder / "templates.json"}
    plan = PlanConfig(
        sources=(str(folder / "captions.jsonl"),),
        num_views=num_views,
        view_min_area=0.5,
        **(labels if has_labels else {}),
    )
    config = BuildConfig(
        plan=plan, cache=cache, teacher=str(teacher), teacher_name=name, decode_workers=0
    )
    build(config)
    return cache


def run_job(job: Job) -> dict[str, float]:
    """Train one student, unless its result is kept; return score, median seconds a step and memory."""
    kept = job.work / "results" / f"{job.name}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    import torch

    torch.set_num_threads(1)
    from siglip2_cache.progress import Display
    from siglip2_cache.student.config import TrainConfig
    from siglip2_cache.student.training.progress import TrainProgress
    from siglip2_cache.student.training.trainer import train

    world, out = job.world, job.work / "runs" / job.name
    settings: dict[str, Any] = {
        "student": str(world.student),
        "teacher": "teacher",
        "from_scratch": world.from_scratch,
        "steps": job.steps,
        "global_batch_size": job.batch_size,
        "warmup_steps": job.steps // 10,
        "lr": job.way.lr,
        **job.way.settings,
    }
    config = TrainConfig(
        cache=world.caches[job.noise, job.way.num_views],
        out=out,
        weights=dict(job.way.weights),
        seed=job.seed,
        decode_workers=0,
        val_share=0.0,
        check_pixels="never",
        save_every=settings["steps"],
        **settings,
    )
    train(config, progress=TrainProgress(Display()), trainer_class=kind_of(job))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rates = [line["images_per_s"] for line in lines[len(lines) // 10 :]]
    result = {
        "score": score(str(out / "model"), world),
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
    """Return the score of the teacher and of the student's start; a random start has 1 in 100."""
    if world.from_scratch:
        return score(str(world.teacher), world), 0.01
    columns = columns_of(str(world.student), world)
    return score_of(columns["teacher"], world), score_of(columns["model"], world)


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
            teacher = load_online_teacher(job.world.teacher)
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

        def map_texts(self, rows_MD: Tensor, teacher: int = 0) -> Tensor:
            return self.text_projection(rows_MD)

        def fit_maps(self, images: Any, texts: Any, ranks: Any, teacher: int = 0) -> None:
            super().fit_maps(images, None, ranks)
            self.text_projection.add_rows(*texts, ranks)
            self.text_projection.fit()

    return TwoMaps


def load_online_teacher(folder: Path) -> tuple[Any, Any]:
    from siglip2_cache.siglip import load_model, resolve_checkpoint

    checkpoint = resolve_checkpoint(str(folder))
    return load_model(checkpoint, device="cpu", compute_dtype="float32"), checkpoint


def compute_targets(teacher: tuple[Any, Any], batch: Any) -> None:
    """Replace a batch's targets by what the teacher says now: it takes the student's pixels and ids."""
    from siglip2_cache.siglip import embed_image_pixels, embed_token_ids
    from siglip2_cache.student.data.batch import BatchTargets

    model, checkpoint = teacher
    pixels = batch.pixels_N
    image_NE = embed_image_pixels(model, checkpoint, pixels, compute_dtype="float32")
    text_ME = embed_token_ids(model, batch.ids_ML, compute_dtype="float32")
    batch.targets = [BatchTargets(image_NE=image_NE, text_ME=text_ME)]


def compare_online(args: argparse.Namespace, work: Path, world: World) -> dict[str, Any]:
    """Train the default from the cache and against the live teacher, each in a process of its own."""
    found: dict[str, list[dict[str, float]]] = {"cached": [], "online": []}
    context = multiprocessing.get_context("spawn")
    for seed in range(args.seeds):
        for name, online in (("cached", False), ("online", True)):
            way = Way(f"default, {name}, alone", is_online=online)
            job = Job(way, world, NOISY, seed, work, args.steps, args.batch_size)
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


def print_table(world: str, found: Mapping[str, Mapping[str, list[float]]]) -> None:
    print(f"\n| {world} | " + " | ".join(NOISES) + " |\n|---|" + "---|" * len(NOISES))
    for name, by_noise in found.items():
        cells = [cell(by_noise.get(noise)) for noise in NOISES]
        print(f"| {name} | " + " | ".join(cells) + " |")
    sys.stdout.flush()


def cell(scores: list[float] | None) -> str:
    """Return the mean over seeds, and the smallest and the largest."""
    if not scores:
        return ""
    return f"{statistics.mean(scores):.3f} ({min(scores):.3f} to {max(scores):.3f})"


if __name__ == "__main__":
    main()
