"""The sections of the GPU benchmark; report.py runs each in a process of its own. Each prints Markdown.

python benchmarks/gpu/sections.py SECTION --work FOLDER [--device cuda] [--sizes full|tiny]
"""

import argparse
import contextlib
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How large everything is."""

    teachers: dict[str, tuple[str, int]]
    """Architecture and batch of each teacher, by folder; the first makes the cache."""

    student: str
    images: int
    """In the cache."""

    pictures: int
    """Different ones among them."""

    batch_size: int
    """Images of a training step that is one forward pass."""

    cached_batch_size: int
    """Images of a training step with gradient caching."""

    steps: int
    """Timed steps of each training."""

    timed_s: float
    """Seconds that each rate of the teacher, and of the loader, is measured for."""

    pairs: int
    """Rows and columns of the loss."""


SIZES = {
    "full": Sizes(
        teachers={
            "teacher": ("so400m-patch14-224", 256),
            "teacher384": ("so400m-patch14-384", 128),
        },
        student="base-patch16-224",
        images=4096,
        pictures=64,
        batch_size=512,
        cached_batch_size=2048,
        steps=8,
        timed_s=5.0,
        pairs=65_536,
    ),
    "tiny": Sizes(
        teachers={"teacher": ("tiny-patch16-64", 8)},
        student="tiny-patch16-64",
        images=40,
        pictures=4,
        batch_size=8,
        cached_batch_size=16,
        steps=2,
        timed_s=0.1,
        pairs=512,
    ),
}
WARM_STEPS = 4
"""Steps before the timed ones: the fit of the map, and compiling."""

SHORT_SIDE = 288

GPU_TESTS = (
    "tests/integration/test_gpu.py",
    "tests/unit/precompute/teacher/test_teacher.py",
    "tests/unit/student/data/test_loader.py",
    "tests/unit/student/training/test_piece_feed.py",
)
"""Files with tests marked gpu: others import packages that the machine may lack."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a section is given."""

    work: Path
    device: str
    sizes: Sizes
    is_tiny: bool

    @property
    def is_cuda(self) -> bool:
        return self.device.startswith("cuda")

    def note(self, **rates: float) -> None:
        """Keep rates for a later section."""
        self._path.write_text(json.dumps(self.rates() | rates))

    def rates(self) -> dict[str, float]:
        return json.loads(self._path.read_text()) if self._path.exists() else {}

    @property
    def _path(self) -> Path:
        return self.work / "rates.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", choices=SIZES, default="full")
    args = parser.parse_args()
    context = Context(
        work=args.work,
        device=args.device,
        sizes=SIZES[args.sizes],
        is_tiny=args.sizes == "tiny",
    )
    if context.is_tiny:  # no compiler of C++ takes half a minute for each graph
        import torch

        torch.compiler.set_stance(force_backend="aot_eager")
    SECTIONS[args.section](context)


# -- what the others read


def prepare(context: Context) -> None:
    """Write checkpoints of true sizes with random weights, pictures, and a cache with kept pixels."""
    from siglip2_cache.precompute.build import build

    sizes, work = context.sizes, context.work
    started = time.perf_counter()
    with ProcessPoolExecutor() as pool:
        made = [
            pool.submit(
                write_checkpoint, arch, work / name, "bfloat16", None if context.is_tiny else 1024
            )
            for name, (arch, _) in sizes.teachers.items()
        ]
        made.append(pool.submit(write_checkpoint, sizes.student, work / "student", "float32", None))
        drawn = list(pool.map(draw, range(sizes.pictures)))
        for each in made:
            each.result()
    (work / "images").mkdir()
    for i in range(sizes.images):
        # Bytes after the end of a JPEG make each file another one.
        (work / "images" / f"{i:05d}.jpg").write_bytes(drawn[i % len(drawn)] + i.to_bytes(4))
        (work / "images" / f"{i:05d}.txt").write_text(f"photograph number {i} of a benchmark")
    build(build_config(context, work / "cache", keep_pixels=SHORT_SIDE))
    seconds = time.perf_counter() - started
    print(f"\nPrepared in {seconds:.0f} s: {sizes.images:,} JPEGs of 640 x 480, random weights.")


def write_checkpoint(arch: str, out: Path, dtype: str, vocab_size: int | None) -> None:
    import torch
    from make_checkpoint import make_checkpoint

    torch.set_num_threads(1)
    make_checkpoint(arch, out, dtype=dtype, vocab_size=vocab_size)


def draw(seed: int) -> bytes:
    from photographs import draw_photograph

    return draw_photograph(seed)


def build_config(context: Context, cache: Path, *, num_views: int = 1, **settings: Any) -> Any:
    from siglip2_cache.precompute.config import BuildConfig
    from siglip2_cache.precompute.planning.config import PlanConfig

    return BuildConfig(
        plan=PlanConfig(sources=(str(context.work / "images"),), num_views=num_views),
        cache=cache,
        teacher=str(context.work / "teacher"),
        device=context.device,
        batch_size=context.sizes.teachers["teacher"][1],
        **settings,
    )


# -- the tests that need a GPU


def tests(context: Context) -> None:
    """Run the tests marked gpu."""
    environment = {**os.environ, "SIGLIP2_CACHE_TEST_DEVICE": context.device}
    options = ["-m", "gpu", "-q", "--no-header", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, *GPU_TESTS]
    print("`pytest -m gpu`\n\n```")
    sys.stdout.flush()
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    lines = done.stdout.splitlines()
    kept = [line for line in lines if line.startswith(("FAILED", "ERROR", "SKIPPED", "E  "))]
    print("\n".join([*kept, *lines[-1:]]))
    print("```")
    sys.exit(done.returncode)


# -- the teacher


def teacher(context: Context) -> None:
    """Measure the forward pass of each teacher, eager and compiled, and builds with 1 and 5 views."""
    from teacher_peak import matmul_flops_per_s

    from siglip2_cache.precompute.teacher.siglip_teacher import SiglipTeacher
    from siglip2_cache.siglip import find_architecture, resolve_checkpoint

    dtype = "bfloat16" if context.is_cuda else "float32"
    peak = matmul_flops_per_s(context.device, dtype)
    print(f"One large {dtype} matrix product reaches {peak / 1e12:.3g} TFLOP/s.\n")
    print("| teacher | batch | | images/s | share of that |")
    print("|---|---|---|---|---|")
    live: Any = None
    for name, (arch, batch_size) in context.sizes.teachers.items():
        folder = context.work / name
        flops = find_architecture(str(folder)).flops_of_view
        loaded = SiglipTeacher(
            resolve_checkpoint(str(folder)), device=context.device, compute_dtype=dtype
        )
        for mode in ("eager", "compiled"):
            if mode == "compiled":
                loaded.compile()
            rate = forward_rate(loaded, batch_size, context.sizes.timed_s)
            share = rate * flops / peak
            print(f"| {arch} | {batch_size} | {mode} | {rate:,.0f} | {share:.1%} |", flush=True)
            context.note(**{f"{arch}, {mode}": rate})
        live = live or loaded
    print("\n| build, compiled | images/s | views/s | waiting for pixels |")
    print("|---|---|---|---|")
    for num_views in (1, 5):
        show_build(context, live, num_views)


def forward_rate(loaded: Any, batch_size: int, seconds: float) -> float:
    """Return images a second, each batch started before the one before is waited for."""
    import numpy as np

    pixels = np.random.default_rng(0).integers(
        0, 256, (batch_size, *loaded.image.view_shape), np.uint8
    )
    for _ in range(3):
        loaded.embed_images(pixels)()
    started, num_batches = time.perf_counter(), 0
    pending = loaded.embed_images(pixels)
    while time.perf_counter() - started < seconds:
        following = loaded.embed_images(pixels)
        pending()
        pending, num_batches = following, num_batches + 1
    pending()
    return (num_batches + 1) * batch_size / (time.perf_counter() - started)


def show_build(context: Context, loaded: Any, num_views: int) -> None:
    from siglip2_cache.precompute.build import build

    def make(*_: Any) -> Any:
        return loaded

    config = build_config(context, context.work / f"views{num_views}", num_views=num_views)
    found = build(config, make_teacher=make)
    rate = found.num_images / found.elapsed_s
    waiting = found.times.wait_s / found.elapsed_s
    views = f"{num_views} view{'s' if num_views > 1 else ''}"
    print(f"| {views} | {rate:,.0f} | {rate * num_views:,.0f} | {waiting:.0%} |", flush=True)


# -- training


def training(context: Context) -> None:
    """Measure steps of the student: without a teacher, on cached targets, with the teacher in the step."""
    sizes = context.sizes
    no_teacher = {"weights": {"soft": 0.0, "cosine": 0.0, "contrastive": 1.0}}
    rows: dict[str, dict[str, Any]] = {
        "no teacher": no_teacher,
        "cached": {},
        "cached, compiled": {"compile": True},
        "no teacher, compiled": {**no_teacher, "compile": True},
        f"cached, compiled, {sizes.cached_batch_size:,} images in pieces of {sizes.batch_size:,}": {
            "compile": True,
            "global_batch_size": sizes.cached_batch_size,
            "micro_batch_size": sizes.batch_size,
        },
        "online teacher, compiled student": {"compile": True},
    }
    print(
        f"{sizes.student}, {sizes.batch_size:,} pairs a step unless said, images from kept pixels.\n"
    )
    print("| | pairs/s | waiting for pixels | peak memory |")
    print("|---|---|---|---|")
    for number, (label, settings) in enumerate(rows.items()):
        found = train_steps(
            context, context.work / f"run{number}", label.startswith("online"), settings
        )
        memory = f"{found['peak_bytes'] / 1e9:.1f} GB" if context.is_cuda else ""
        print(
            f"| {label} | {found['pairs_per_s']:,.0f} | {found['wait_share']:.1%} | {memory} |",
            flush=True,
        )
        context.note(**{f"training, {label}": found["pairs_per_s"]})


class Enough(Exception):  # noqa: N818 - nothing went wrong
    """All timed steps are made; what the end of a training writes is not wanted."""


def train_steps(
    context: Context, out: Path, is_online: bool, settings: dict[str, Any]
) -> dict[str, float]:
    """Return the median rate of some steps after the first ones, the waiting in them, and the most memory."""
    import torch

    from siglip2_cache.progress import Display
    from siglip2_cache.student.config import TrainConfig
    from siglip2_cache.student.training.loggers import Callbacks
    from siglip2_cache.student.training.progress import TrainProgress
    from siglip2_cache.student.training.trainer import train

    sizes, lines = context.sizes, list[dict[str, Any]]()

    def on_step(line: Any) -> None:
        lines.append(dict(line))
        if len(lines) == WARM_STEPS + sizes.steps:
            raise Enough

    if context.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    given: dict[str, Any] = {
        "global_batch_size": sizes.batch_size,
        "dtype": "bfloat16" if context.is_cuda else "float32",
        **settings,
    }
    config = TrainConfig(
        cache=context.work / "cache",
        student=str(context.work / "student"),
        out=out,
        steps=10_000,
        device=context.device,
        val_share=0.0,
        **given,
    )
    with contextlib.suppress(Enough):
        train(
            config,
            progress=TrainProgress(Display()),
            callbacks=Callbacks(on_step=on_step),
            trainer_class=online_trainer(context) if is_online else None,
        )
    timed = lines[WARM_STEPS:]
    peak = torch.cuda.max_memory_allocated() if context.is_cuda else 0
    gc.collect()
    torch.compiler.reset()
    if context.is_cuda:
        torch.cuda.empty_cache()
    return {
        "pairs_per_s": statistics.median(line["images_per_s"] for line in timed),
        "wait_share": statistics.median(line["wait_share"] for line in timed),
        "peak_bytes": peak,
    }


def online_trainer(context: Context) -> Any:
    """Return a Trainer that computes the targets of each batch by the teacher's forward passes."""
    from bench_train import compute_targets, load_teacher

    from siglip2_cache.student.training.trainer import Trainer

    class Online(Trainer):
        def batches(self, loader: Any, done: int) -> Iterator[Any]:
            live = load_teacher(argparse.Namespace(work=context.work, device=context.device))
            for batch in super().batches(loader, done):
                started = time.perf_counter()
                compute_targets(live, self, batch)
                batch.wait_s += time.perf_counter() - started  # a part of the step
                yield batch

    return Online


# -- the rest


def loss(context: Context) -> None:
    """Measure the soft sigmoid loss of all pairs, forward and backward."""
    from bench_train import measure_loss

    for _ in range(2):  # the first one also starts the libraries
        found = measure_loss(argparse.Namespace(pairs=context.sizes.pairs, device=context.device))
    N = context.sizes.pairs
    # Two products for the logits, of student and teacher, and two for the gradients.
    flops = 2 * N * N * (3 * 768 + 1152)
    print(
        f"Soft sigmoid loss of {N:,} x {N:,} pairs, widths 768 and 1152, float32, forward and backward: "
        f"{found['seconds'] * 1e3:,.1f} ms, {flops / found['seconds'] / 1e12:.3g} TFLOP/s, "
        f"{found['extra_peak_bytes'] / 1e6:,.0f} MB more memory; one matrix of pairs would be "
        f"{found['one_matrix_bytes'] / 1e6:,.0f} MB."
    )


def feed(context: Context) -> None:
    """Measure how many images a second the loader gives, beside what the models take."""
    from bench_feed import KEPT, our_batches

    from siglip2_cache.cores import num_cores

    workers = max(1, num_cores() - 2)
    size = 64 if context.is_tiny else 224
    print(f"The loader of `train` with {workers} decoding processes, batches of {size} px.\n")
    print("| | images/s |")
    print("|---|---|")
    for corpus in ("640 x 480", KEPT):
        (context.work / corpus).mkdir()
        (context.work / corpus / "cache").symlink_to(context.work / "cache")
        args = argparse.Namespace(work=context.work, corpus=corpus, size=size, workers=workers)
        batches = our_batches(args, "exact")
        for _ in range(8):
            next(batches)
        started, num_images = time.perf_counter(), 0
        while time.perf_counter() - started < context.sizes.timed_s:
            num_images += next(batches)
        rate = num_images / (time.perf_counter() - started)
        batches.close()
        print(f"| given: {corpus} | {rate:,.0f} |", flush=True)
    for name, rate in context.rates().items():
        print(f"| taken: {name} | {rate:,.0f} |")


def faiss(context: Context) -> None:
    """Measure exact search where faiss has a GPU."""
    from importlib.metadata import PackageNotFoundError, version

    from siglip2_cache.store.search.exact import has_gpu

    if not has_gpu():
        try:
            found = f"faiss-cpu {version('faiss-cpu')}"
        except PackageNotFoundError:
            found = "faiss"
        print(f"Not measured: {found} here has no support of GPUs.")
        return
    command = [sys.executable, str(ROOT / "benchmarks" / "bench_neighbors.py"), "--quick"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    print(f"```\n{done.stdout}```")


SECTIONS = {each.__name__: each for each in (prepare, tests, teacher, training, loss, feed, faiss)}

if __name__ == "__main__":
    main()
