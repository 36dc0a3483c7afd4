"""float16, int8 and patch targets: bytes, read rate, error, maps to choose from, what a student learns.

    python benchmarks/bench_targets.py [--vectors FILE.npz] [--seeds 3] [--steps 400] [--json] [--quick]

Errors are those of real vectors: an .npz with ``vectors`` (N, D), by default those of the project's test
material; without it, of random ones. They are texts only, so the bias of the logits is chosen such that each
matches one other on average, as in a batch of pairs. Rows are read from the page cache, as in
bench_store_read.py, with numpy.memmap on a flat float16 file in the same run. Rates are rows per second of
CPU time of all threads, and of wall time: on a shared machine only the former means something. Students start
from the demo's, on a float16 cache of the demo's corpus, on the same one converted, and on that one with the
term ``patch``. Error and rate of patch targets are those of bench_patches.py.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from arguments import benchmark_parser
from bench_patches import DIM, GRID, compare_error, draw_scenes
from bench_patches import compare_reading as compare_patch_reading
from bench_store_read import flush_caches
from demo_students import CHECKPOINTS, last_metrics, recall, train_student
from hardware import machine
from numpy.typing import NDArray
from vector_cache import TEACHER, write_cache

from siglip2_cache import open_cache
from siglip2_cache.demo.corpus import CorpusConfig, write_corpus
from siglip2_cache.precompute.build import BuildConfig, build
from siglip2_cache.precompute.planning.config import PlanConfig
from siglip2_cache.store.convert import convert_cache
from siglip2_cache.store.format import layout
from siglip2_cache.store.format.row_encoding import make_rotation
from siglip2_cache.store.targets.distortion import soft_target_error
from siglip2_cache.student.data.train_targets import read_targets

VECTORS = Path(__file__).parents[2] / "shared" / "data" / "siglip2_text_vectors.npz"
SCALE = 115.0
"""Of the logits, as of the published checkpoints."""

_UNDO_DIM, _UNDO_ROWS = 1152, 512
_WITH_PATCHES, _PATCH_WEIGHT = "int8 and patches", 5.0

Map = NDArray[np.float64]


def main() -> None:
    parser = benchmark_parser(__doc__, quick="one seed, few steps, rows and images")
    parser.add_argument("--vectors", type=Path, default=VECTORS)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--dim", type=int, default=1152)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=128)
    args = parser.parse_args()
    if args.quick:
        args.rows, args.repeats, args.seeds = args.rows // 10, 3, 1
        args.steps, args.images, args.batch_size = 6, 200, 32
    print(machine("numpy", "torch", "zarr"), flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-targets-") as folder:
        found = {
            "maps": compare_maps(args),
            "reading": compare_reading(args, Path(folder)),
            **compare_training(args, Path(folder)),
        }
    if args.json:
        print(json.dumps(found))


# -- maps


def compare_maps(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Print and return the error of each map on real vectors, and its time to undo."""
    vectors_ND = read_vectors(args.vectors)
    bias = bias_of_one_match(vectors_ND)
    found: dict[str, dict[str, float]] = {}
    N, D = vectors_ND.shape
    print(f"\n{N} vectors of {D}, scale {SCALE:g}, bias {bias:.1f}\n")
    print("| int8 after | logit error, rms | largest | KL, % of entropy | CPU us a row |")
    print("|---|---|---|---|---|")
    for name, make in maps():
        block_DD = make(D)
        changed = round_rows(vectors_ND, block_DD)
        error = soft_target_error(
            (vectors_ND, vectors_ND), (changed, changed), scale=SCALE, bias=bias
        )
        off_diagonal = ~np.eye(N, dtype=np.bool_)
        errors = SCALE * (changed @ changed.T - vectors_ND @ vectors_ND.T)[off_diagonal]
        found[name] = {
            "rms": float(np.sqrt(np.mean(errors**2))),
            "largest": error.largest_logit_error,
            "kl_share": error.kl_share,
            "undo_us": time_undoing(make(_UNDO_DIM)) if make is not no_map else 0.0,
        }
        each = found[name]
        print(
            f"| {name} | {each['rms']:.4f} | {each['largest']:.3f} | {100 * each['kl_share']:.4f} | "
            f"{each['undo_us']:.2f} |",
            flush=True,
        )
    return found


def maps() -> Iterator[tuple[str, Callable[[int], Map]]]:
    """Yield (name, function that returns the map of a width): a block, or a whole map with permutation."""
    random = np.random.default_rng(0)
    yield "no map", no_map
    for size in (8, 16, 32, 64, 128):
        yield f"Hadamard blocks of {size}", lambda D, size=size: hadamard(size)
    yield "signs, Hadamard blocks of 32", lambda D: hadamard(32) * random.choice([-1, 1], 32)
    yield "signs, Hadamard blocks of 128", lambda D: hadamard(128) * random.choice([-1, 1], 128)
    yield (
        "permutation, Hadamard blocks of 32",
        lambda D: np.kron(np.eye(D // 32), hadamard(32))[:, random.permutation(D)],
    )
    yield "random blocks of 32", lambda D: orthonormal(32, random)
    yield "dense random", lambda D: orthonormal(D, random)
    yield "ours", lambda D: make_rotation(D).astype(np.float64)


def no_map(width: int) -> Map:
    return np.eye(1)


def hadamard(size: int) -> Map:
    return (
        np.ones((1, 1))
        if size == 1
        else np.kron(np.array([[1, 1], [1, -1]]) / math.sqrt(2), hadamard(size // 2))
    )


def orthonormal(size: int, random: np.random.Generator) -> Map:
    return np.linalg.qr(random.normal(size=(size, size)))[0]


def round_rows(rows_ND: NDArray[np.float64], block: Map) -> NDArray[np.float64]:
    """Return rows rounded to int8 after a map of their blocks, at their norm, in their own axes."""
    shape, size = rows_ND.shape, len(block)
    mapped = (rows_ND.reshape(-1, size) @ block.T).reshape(shape)
    steps = np.rint(mapped * 127 / np.abs(mapped).max(axis=1, keepdims=True))
    steps /= np.linalg.norm(steps, axis=1, keepdims=True)
    return (steps.reshape(-1, size) @ block).reshape(shape).astype(np.float16).astype(np.float64)


def time_undoing(block: Map) -> float:
    """Return the CPU time in microseconds of undoing the map of one row, by the product that we use."""
    size = len(block)
    steps = np.random.default_rng(0).normal(size=(_UNDO_ROWS * _UNDO_DIM // size, size))
    steps, map_DD = steps.astype(np.float32), block.astype(np.float32)
    out = np.empty_like(steps)
    times: list[float] = []
    for _ in range(9):
        started = time.process_time()
        for first in range(0, len(steps), 64 * _UNDO_DIM // size):
            part = slice(first, first + 64 * _UNDO_DIM // size)
            np.matmul(steps[part], map_DD, out=out[part])
        times.append(time.process_time() - started)
    return min(times) / _UNDO_ROWS * 1e6


def read_vectors(path: Path) -> NDArray[np.float64]:
    if path.exists():
        vectors_ND = np.load(path)["vectors"].astype(np.float64)
    else:
        print(f"{path} is not there: the vectors are random, with one large dimension")
        vectors_ND = np.random.default_rng(0).normal(size=(290, 768)) + 1
        vectors_ND[:, 5] += 60
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return vectors_ND.astype(np.float16).astype(np.float64)


def bias_of_one_match(vectors_ND: NDArray[np.float64]) -> float:
    """Return the bias at which each vector matches one other on average."""
    logits = SCALE * (vectors_ND @ vectors_ND.T)
    np.fill_diagonal(logits, -np.inf)
    low, high = -3 * SCALE, 0.0
    for _ in range(60):
        middle = (low + high) / 2
        matches = (1 / (1 + np.exp(-np.clip(logits + middle, -500, 500)))).sum(axis=1).mean()
        low, high = (middle, high) if matches < 1 else (low, middle)
    return low


# -- reading


def compare_reading(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Print and return the bytes of both caches, and rows per second."""
    flat = np.memmap(folder / "flat.bin", np.float16, "w+", shape=(args.rows, args.dim))
    random = np.random.default_rng(0)
    for first in range(0, args.rows, 16_384):
        rows = random.standard_normal((min(16_384, args.rows - first), args.dim), np.float32)
        flat[first : first + len(rows)] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    flat.flush()
    caches = {"float16": write_cache(folder / "float16", flat, 16_384)}
    convert_cache(caches["float16"], folder / "int8", targets="int8", budget=1.0)
    caches["int8"] = open_cache(folder / "int8")
    sizes = {
        name: sum(
            f.stat().st_size
            for f in (folder / name / layout.array_folder(TEACHER, "image")).rglob("*")
            if f.is_file()
        )
        for name in caches
    }
    near, exact = (caches[name].image_targets() for name in ("int8", "float16"))
    readers: dict[str, Callable[[NDArray[np.int64]], Any]] = {
        "numpy.memmap, float16": np.memmap(
            folder / "flat.bin", np.float16, "r", shape=flat.shape
        ).__getitem__,
        "float16": exact.read,
        "int8": near.read,
        "int8, in training": lambda rows: read_targets(near, rows),
        "int8, stored axes": lambda rows: near.read(rows, basis="stored"),
        "int8, as stored": near.read_rows,
    }
    rates = measure(readers, random, args)
    print(
        f"\n{args.batch:,} random of {args.rows:,} rows of {args.dim}; median of {args.repeats}\n"
    )
    print("| | bytes | of float16 | rows a CPU s | of memmap | rows/s | of memmap |")
    print("|---|---|---|---|---|---|---|")
    first = rates["numpy.memmap, float16"]
    for name, (by_cpu, by_wall) in rates.items():
        size = sizes["int8" if name.startswith("int8") else "float16"]
        print(
            f"| {name} | {size:,} | {size / sizes['float16']:.3f} | {by_cpu:,.0f} | "
            f"{by_cpu / first[0]:.2f} | {by_wall:,.0f} | {by_wall / first[1]:.2f} |"
        )
    return {"bytes": sizes, "rates": rates}


def measure(
    readers: dict[str, Callable[[NDArray[np.int64]], Any]],
    random: np.random.Generator,
    args: argparse.Namespace,
) -> dict[str, tuple[float, float]]:
    """Return rows per second of CPU time and of wall time: medians over batches, readers in turn."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
    for repeat in range(args.repeats + 1):
        rows = random.integers(0, args.rows, args.batch)
        for name, read in readers.items():
            flush_caches()
            cpu, wall = time.process_time(), time.perf_counter()
            read(rows)
            if repeat:  # the first batch maps the shards
                seconds[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {
        name: tuple(args.batch / statistics.median(s[i] for s in each) for i in (0, 1))  # type: ignore[misc]
        for name, each in seconds.items()
    }


# -- training


def compare_training(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train on each kind of target; print and return the last losses and held-out R@1.

    Also the bytes, errors and read rates of patch targets.
    """
    noisy = CorpusConfig(
        num_images=args.images, seed=21, missing_rate=0.3, mismatched_rate=0.45, vague_rate=0.4
    )
    num_held_out = 100 if args.quick else 1000
    clean = CorpusConfig(num_images=num_held_out, seed=22, held_out=True, vague_rate=0.0)
    caches = {"float16": build_cache(folder / "train", noisy, patch_targets=GRID, patch_dims=DIM)}
    held_out = build_cache(folder / "held-out", clean)
    caches["int8"] = folder / "train-int8"
    converted = convert_cache(open_cache(caches["float16"]), caches["int8"], targets="int8")
    caches[_WITH_PATCHES] = caches["int8"]
    change = converted.distortions["teacher"]
    patches = {
        "error": compare_error(draw_scenes(60 if args.quick else 400)),
        "rates": compare_patch_reading(caches["int8"]),
    }
    print(
        f"\nDemo corpus: KL {100 * change.kl_share:.4f} % of the entropy, largest logit error "
        f"{change.largest_logit_error:.3f}\n"
    )
    print("| targets | seed | loss, last tenth | soft - floor, last tenth | held-out R@1 |")
    print("|---|---|---|---|---|", flush=True)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in caches}
    for seed in range(args.seeds):
        for name, cache in caches.items():
            out = folder / f"run-{name}-{seed}"
            weights = {"patch": _PATCH_WEIGHT} if name == _WITH_PATCHES else None
            train_student(args, cache, out, seed=seed, lr=1e-3, weights=weights)
            result = {"recall": recall(out / "model", held_out), **last_losses(out)}
            found[name].append(result)
            print(
                f"| {name} | {seed} | {result['loss']:.4f} | {result['soft_gap']:.4f} | "
                f"{result['recall']:.3f} |",
                flush=True,
            )
    return {"training": found, "patches": patches}


def build_cache(folder: Path, corpus: CorpusConfig, **settings: Any) -> Path:
    write_corpus(corpus, folder)
    plan = PlanConfig(sources=(str(folder / "captions.jsonl"),))
    cache, teacher = folder.with_name(f"{folder.name}-cache"), str(CHECKPOINTS / "teacher")
    build(BuildConfig(plan=plan, cache=cache, teacher=teacher, decode_workers=0, **settings))
    return cache


def last_losses(run: Path) -> dict[str, float]:
    """Return the mean loss, and soft term above its floor, of the last tenth of the steps."""
    last = last_metrics(run)
    return {
        "loss": statistics.mean(line["loss"] for line in last),
        "soft_gap": statistics.mean(line["soft"] - line["soft_floor"] for line in last),
    }


if __name__ == "__main__":
    main()
