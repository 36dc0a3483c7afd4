"""Search: `neighbors` and `index` beside faiss itself, flat and with inverted lists.

    python benchmarks/peers/search.py [--rows 200000] [--queries 100] [--json] [--quick]

Random unit rows around 1,000 centres, in a cache and in one file, both float16; k 10. Each way is a process
of its own: the seconds until the index is there (0: there is none), the seconds of the search, the largest
resident memory, and the share of the exact neighbours that it finds. faiss has all rows in memory in
float32, or in float16 in as many inverted lists as `index` makes, of which it searches as many.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).parents[1]))

from arguments import benchmark_parser
from bench_neighbors import SHARD_ROWS, prepare
from hardware import machine, peak_resident_bytes

WAYS = ("neighbors", "faiss flat", "index ivf", "faiss ivf")
LISTS = "searched-lists"
"""File of the number of lists that `index` chose to search."""


def main() -> None:
    parser = benchmark_parser(__doc__, quick="20,000 rows of 64")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--folder", type=Path, help="where to put the data; default temporary")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args)))
        return
    if args.quick:
        args.rows, args.dim = 20_000, 64
    print(machine("faiss-cpu", "numpy"))
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="peers-search-") as folder:
        prepare(args, Path(folder))
        found = {way: in_process(args, Path(folder), way) for way in WAYS}
    exact = found["neighbors"]["rows"]
    for one in found.values():
        pairs = zip(one.pop("rows"), exact, strict=True)
        one["recall"] = float(np.mean([len({*a} & {*b}) / len(b) for a, b in pairs]))
    show(args, found)
    if args.json:
        print(json.dumps(found))


def in_process(args: argparse.Namespace, work: Path, way: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--way", way, "--work", str(work), "-k", str(args.k)]
    command += ["--rows", str(args.rows), "--dim", str(args.dim), "--queries", str(args.queries)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(args: argparse.Namespace) -> dict[str, Any]:
    queries_QD = np.load(args.work / "queries.npy")
    ways = {
        "neighbors": exact_search,
        "index ivf": index_search,
        "faiss flat": faiss_flat,
        "faiss ivf": faiss_ivf,
    }
    build_s, search_s, rows_QK = ways[args.way](args, queries_QD)
    return {
        "build_s": build_s,
        "search_s": search_s,
        "peak_bytes": peak_resident_bytes(),
        "rows": rows_QK.tolist(),
    }


Found = tuple[float, float, NDArray[np.int64]]


def exact_search(args: argparse.Namespace, queries_QD: NDArray[np.float16]) -> Found:
    from siglip2_cache import open_cache
    from siglip2_cache.store.search.exact import exact_neighbors

    targets = open_cache(args.work / "cache").image_targets()
    started = time.perf_counter()
    found = exact_neighbors(targets, queries_QD, args.k)
    return 0.0, time.perf_counter() - started, found.rows_QK


def index_search(args: argparse.Namespace, queries_QD: NDArray[np.float16]) -> Found:
    from siglip2_cache import open_cache
    from siglip2_cache.progress import Display, TaskProgress
    from siglip2_cache.store.search.index_build import build_index
    from siglip2_cache.store.search.index_query import open_index, resolve_index

    cache = open_cache(args.work / "cache")
    index_id = resolve_index(cache, "image")
    started = time.perf_counter()
    build_index(cache, index_id, kind="ivf", progress=TaskProgress(Display()))
    build_s = time.perf_counter() - started
    opened = open_index(cache, "image")
    started = time.perf_counter()
    found = opened.neighbors(queries_QD, args.k)
    (args.work / LISTS).write_text(str(opened.record.search["nprobe"]))
    return build_s, time.perf_counter() - started, found.rows_QK


def faiss_flat(args: argparse.Namespace, queries_QD: NDArray[np.float16]) -> Found:
    import faiss

    return faiss_search(args, faiss.IndexFlatIP(args.dim), queries_QD)


def faiss_ivf(args: argparse.Namespace, queries_QD: NDArray[np.float16]) -> Found:
    import faiss

    from siglip2_cache.store.search.index_kinds import plan_index

    factory = plan_index("ivf", args.rows, args.dim).factory
    index = faiss.index_factory(args.dim, factory, faiss.METRIC_INNER_PRODUCT)
    index.nprobe = int((args.work / LISTS).read_text())
    return faiss_search(args, index, queries_QD)


def faiss_search(args: argparse.Namespace, index: Any, queries_QD: NDArray[np.float16]) -> Found:
    flat = np.memmap(args.work / "flat.bin", np.float16, "r", shape=(args.rows, args.dim))
    started = time.perf_counter()
    if not index.is_trained:
        step = max(1, args.rows // (64 * index.nlist))
        index.train(np.ascontiguousarray(flat[::step], np.float32))
    for first in range(0, args.rows, SHARD_ROWS):
        index.add(flat[first : first + SHARD_ROWS].astype(np.float32))
    build_s = time.perf_counter() - started
    started = time.perf_counter()
    _, rows_QK = index.search(queries_QD.astype(np.float32), args.k)
    return build_s, time.perf_counter() - started, rows_QK


def show(args: argparse.Namespace, found: dict[str, Any]) -> None:
    print(f"\n{args.queries} queries, {args.rows:,} rows of {args.dim}, k {args.k}\n")
    print("| | index, s | search, s | recall | peak memory |")
    print("|---|---|---|---|---|")
    for way, one in found.items():
        print(
            f"| {way} | {one['build_s']:.1f} | {one['search_s']:.3f} | {one['recall']:.4f} | "
            f"{one['peak_bytes'] / 1e6:,.0f} MB |"
        )


if __name__ == "__main__":
    main()
