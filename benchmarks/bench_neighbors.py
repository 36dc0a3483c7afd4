"""Exact search of a cache against faiss with every row in memory: time and peak memory, in one run.

    python benchmarks/bench_neighbors.py [--rows 1000000] [--queries 100] [--folder DIR] [--json] [--quick]

`ours` reads the float16 rows of a cache block by block and scores in float64 what comes into question;
`faiss` is an IndexFlatIP of the same rows in float32, of which the search alone is timed. Each runs in
a process of its own, by turns, on files in the page cache; memory is VmHWM, resident pages of maps included.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from arguments import benchmark_parser
from hardware import machine, peak_resident_bytes
from numpy.typing import NDArray

SHARD_ROWS = 16_384
MODES = ("ours", "faiss")


def main() -> None:
    parser = benchmark_parser(__doc__, quick="50,000 rows, once")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=1152)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, help="where to put the data; default a temporary one"
    )
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.mode:
        print(json.dumps(measure(args)))
        return
    if args.quick:
        args.rows, args.repeats = 50_000, 1
    print(machine("faiss-cpu", "numpy"))
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="bench-neighbors-") as folder:
        prepare(args, Path(folder))
        runs = {mode: [] for mode in MODES}
        for _ in range(args.repeats):
            for mode in MODES:
                runs[mode].append(in_process(args, Path(folder), mode))
        found = summarise(runs)
    show(args, found)
    if args.json:
        print(json.dumps(found))


def prepare(args: argparse.Namespace, work: Path) -> None:
    """Write random unit rows around 1,000 centres, so that neighbours are near, and queries beside some."""
    from vector_cache import write_cache

    rng = np.random.default_rng(0)
    centres = rng.standard_normal((1000, args.dim), np.float32)
    flat = np.memmap(work / "flat.bin", np.float16, "w+", shape=(args.rows, args.dim))
    for first in range(0, args.rows, SHARD_ROWS):
        count = min(SHARD_ROWS, args.rows - first)
        rows = centres[rng.integers(0, 1000, count)] + rng.standard_normal(
            (count, args.dim), np.float32
        )
        flat[first : first + count] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    write_cache(work / "cache", flat, SHARD_ROWS)
    np.save(work / "queries.npy", flat[rng.integers(0, args.rows, args.queries)])


def in_process(args: argparse.Namespace, work: Path, mode: str) -> dict[str, Any]:
    numbers = {name: str(getattr(args, name)) for name in ("rows", "dim", "queries")}
    command = [sys.executable, __file__, "--mode", mode, "--work", str(work), "-k", str(args.k)]
    command += [part for name, value in numbers.items() for part in (f"--{name}", value)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(args: argparse.Namespace) -> dict[str, Any]:
    queries_QD = np.load(args.work / "queries.npy")
    search = search_ours if args.mode == "ours" else search_faiss
    seconds, rows_QK = search(args, queries_QD)
    return {"seconds": seconds, "peak_bytes": peak_resident_bytes(), "rows": rows_QK.tolist()}


def search_ours(
    args: argparse.Namespace, queries_QD: NDArray[np.float16]
) -> tuple[float, NDArray[np.int64]]:
    from siglip2_cache import open_cache
    from siglip2_cache.store.search.exact import exact_neighbors

    targets = open_cache(args.work / "cache").image_targets()
    started = time.perf_counter()
    found = exact_neighbors(targets, queries_QD, args.k)
    return time.perf_counter() - started, found.rows_QK


def search_faiss(
    args: argparse.Namespace, queries_QD: NDArray[np.float16]
) -> tuple[float, NDArray[np.int64]]:
    import faiss

    flat = np.fromfile(args.work / "flat.bin", np.float16).reshape(args.rows, args.dim)
    index = faiss.IndexFlatIP(args.dim)
    for first in range(0, args.rows, SHARD_ROWS):
        index.add(flat[first : first + SHARD_ROWS].astype(np.float32))
    del flat
    started = time.perf_counter()
    _, rows_QK = index.search(queries_QD.astype(np.float32), args.k)
    return time.perf_counter() - started, rows_QK


def summarise(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    found: dict[str, Any] = {
        mode: {
            "seconds": statistics.median(each["seconds"] for each in each_run),
            "each_run_s": [each["seconds"] for each in each_run],
            "peak_bytes": max(each["peak_bytes"] for each in each_run),
        }
        for mode, each_run in runs.items()
    }
    pairs = zip(runs["ours"][0]["rows"], runs["faiss"][0]["rows"], strict=True)
    found["same_neighbors"] = float(np.mean([len({*a} & {*b}) / len(b) for a, b in pairs]))
    found["time_ratio"] = found["ours"]["seconds"] / found["faiss"]["seconds"]
    found["memory_ratio"] = found["ours"]["peak_bytes"] / found["faiss"]["peak_bytes"]
    return found


def show(args: argparse.Namespace, found: dict[str, Any]) -> None:
    print(
        f"\n{args.queries} queries, {args.rows:,} rows of {args.dim}, k {args.k}, {os.cpu_count()} cores"
    )
    print("| | s, median | each run | peak memory |")
    print("|---|---|---|---|")
    for mode in MODES:
        one = found[mode]
        each = ", ".join(f"{seconds:.2f}" for seconds in one["each_run_s"])
        print(f"| {mode} | {one['seconds']:.2f} | {each} | {one['peak_bytes'] / 1e6:,.0f} MB |")
    print(
        f"time {found['time_ratio']:.2f} of faiss's search; memory {found['memory_ratio']:.2f} of it"
    )
    print(
        f"{found['same_neighbors']:.2%} of the neighbours are the same (float32 decides ties otherwise)"
    )


if __name__ == "__main__":
    main()
