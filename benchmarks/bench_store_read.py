"""Random and sequential reading of targets: ours against memmap, zarr-python, TensorStore, Lance, Parquet.

    python benchmarks/bench_store_read.py [--rows 200000] [--batch 4096] [--dim 1152] [--json] [--quick]

Every reader reads the same rows of the same numbers in one run, from the page cache. The limit is
numpy.memmap on one flat file: a gather by one copy, with nothing to look up. TensorStore, zarr-python and
ours read the same files; Lance and Parquet keep the rows uncompressed, too, each as its own writer lays
them out. TensorStore and Lance use threads of their own, the others one.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorstore
import zarr
from arguments import benchmark_parser
from hardware import machine
from numpy.typing import NDArray
from vector_cache import TEACHER, write_cache

from siglip2_cache.store.format import layout

Reader = Callable[[NDArray[np.int64]], NDArray[np.float16]]
SHARD_ROWS, QUICK_SHARD_ROWS = 16_384, 8192
"""Rows of a shard, as a build has by default, and in the quick run, so that it too has several."""

_BALLAST = np.zeros(256 * 2**20, np.uint8)


def main() -> None:
    parser = benchmark_parser(__doc__, quick="a fifth of the rows, in five shards")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--dim", type=int, default=1152)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument(
        "--folder", type=Path, help="where to put the data; default a temporary one"
    )
    args = parser.parse_args()
    args.shard_rows = SHARD_ROWS
    if args.quick:
        args.rows, args.shard_rows = args.rows // 5, QUICK_SHARD_ROWS
    folder = Path(tempfile.mkdtemp(dir=args.folder, prefix="bench-store-read-"))
    try:
        run(folder, args)
    finally:
        shutil.rmtree(folder)


def run(folder: Path, args: argparse.Namespace) -> None:
    readers, in_order = make_readers(folder, args.rows, args.dim, args.shard_rows)
    chooser = np.random.default_rng(1)
    batches = [chooser.integers(0, args.rows, args.batch) for _ in range(args.repeats + 1)]
    starts = chooser.integers(0, args.rows - args.batch, args.repeats + 1)
    runs = [np.arange(start, start + args.batch) for start in starts]
    for batch, which in ((batches[0], readers), (runs[0], in_order)):
        for name, read in which.items():  # equal numbers, or the times mean nothing
            np.testing.assert_array_equal(read(batch), readers["memmap"](batch), name)
    results = {
        "random_rows_per_s": measure(readers, batches),
        "sequential_rows_per_s": measure(in_order, runs),
    }
    print(
        f"{args.batch:,} of {args.rows:,} rows of {args.dim} x float16 in "
        f"{-(-args.rows // args.shard_rows)} shards, page-cached; median of {args.repeats}\n"
        + machine("numpy", "zarr", "tensorstore", "pylance", "pyarrow")
    )
    for kind, rates in results.items():
        print(f"\n{kind.split('_')[0]:<12} {'rows/s':>14} {'ms a batch':>12} {'of memmap':>10}")
        for name, rate in rates.items():
            share = rate / rates["memmap"]
            print(f"{name:<12} {rate:>14,.0f} {args.batch / rate * 1e3:>12.2f} {share:>10.3f}")
    if args.json:
        print(json.dumps(results))


def measure(readers: dict[str, Reader], batches: list[NDArray[np.int64]]) -> dict[str, float]:
    """Return rows per second, the median over batches.

    Readers take turns, so that all meet the same machine, and the processor's caches are filled with
    something else in between: the second reader of the same rows would find them there.
    """
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for i, rows in enumerate(batches):
        order = list(readers)
        for name in order[i % len(order) :] + order[: i % len(order)]:
            flush_caches()
            started = time.perf_counter()
            readers[name](rows)
            if i > 0:  # the first batch warms up
                seconds[name].append(time.perf_counter() - started)
    return {name: len(batches[0]) / statistics.median(s) for name, s in seconds.items()}


def flush_caches() -> None:
    """Fill the processor's caches with bytes that no reader wants."""
    _BALLAST[:] += 1


def make_readers(
    folder: Path, num_rows: int, dim: int, shard_rows: int
) -> tuple[dict[str, Reader], dict[str, Reader]]:
    """Write the same random unit rows in every form and return readers of each.

    Returns:
        Readers of any rows, and readers of consecutive ones, where each peer may use its own way to
        read a range.
    """
    flat = np.memmap(folder / "flat.bin", np.float16, "w+", shape=(num_rows, dim))
    rng = np.random.default_rng(0)
    for first in range(0, num_rows, shard_rows):
        rows = rng.standard_normal((min(shard_rows, num_rows - first), dim), np.float32)
        flat[first : first + len(rows)] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    flat.flush()
    cache = write_cache(folder / "cache", flat, shard_rows)
    targets = cache.image_targets()
    image_zarr = folder / "cache" / layout.array_folder(TEACHER, "image")
    with_zarr: Any = zarr.open_array(image_zarr, mode="r")
    with_tensorstore = tensorstore.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(image_zarr)}}
    ).result()
    dataset = write_lance(folder / "rows.lance", flat)
    table = write_parquet(folder / "rows.parquet", flat)
    mapped = np.memmap(folder / "flat.bin", np.float16, "r", shape=(num_rows, dim))
    at_random: dict[str, Reader] = {
        "ours": targets.read,
        "memmap": lambda rows: mapped[rows],
        "zarr-python": lambda rows: with_zarr.oindex[rows, 0],
        "tensorstore": lambda rows: with_tensorstore[rows, 0].read().result(),
        "lance": lambda rows: values_of(dataset.take(rows), dim),
        "parquet": lambda rows: read_parquet(table, rows, dim),
    }
    in_order: dict[str, Reader] = at_random | {
        "memmap": lambda rows: mapped[span(rows)].copy(),
        "zarr-python": lambda rows: with_zarr[span(rows), 0],
        "tensorstore": lambda rows: with_tensorstore[span(rows), 0].read().result(),
        "lance": lambda rows: values_of(
            dataset.to_table(offset=int(rows[0]), limit=len(rows)), dim
        ),
    }
    return at_random, in_order


def span(rows: NDArray[np.int64]) -> slice:
    """Return consecutive rows as a range."""
    return slice(int(rows[0]), int(rows[-1]) + 1)


def write_lance(path: Path, rows: NDArray[np.float16]) -> Any:
    """Write rows as a fixed-size list of float16, Lance's own form for vectors."""
    flat = pa.array(np.ascontiguousarray(rows).reshape(-1), pa.float16())
    vectors = pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])
    lance.write_dataset(pa.table({"embedding": vectors}), path)
    return lance.dataset(path)


def values_of(table: pa.Table, dim: int) -> NDArray[np.float16]:
    """Return the vectors of a Lance table; without a copy where they came in one piece."""
    return table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, dim)


def write_parquet(path: Path, rows: NDArray[np.float16]) -> pq.ParquetFile:
    """Write rows as fixed-size binary in small row groups, as embeddings are often kept."""
    width = rows.shape[1] * 2
    binary = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(width), len(rows), [None, pa.py_buffer(np.ascontiguousarray(rows))]
    )
    table = pa.table({"embedding": binary})
    pq.write_table(table, path, row_group_size=1024, use_dictionary=False, compression="none")
    return pq.ParquetFile(path, memory_map=True)


def read_parquet(file: pq.ParquetFile, rows: NDArray[np.int64], dim: int) -> NDArray[np.float16]:
    groups, group_B = np.unique(rows // 1024, return_inverse=True)
    table = file.read_row_groups(groups.tolist())
    column = table["embedding"].combine_chunks()
    values = np.frombuffer(column.buffers()[1], np.float16).reshape(-1, dim)
    sizes = [file.metadata.row_group(int(g)).num_rows for g in groups]
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return values[starts[group_B] + rows % 1024]


if __name__ == "__main__":
    main()
