"""How quickly batches are made: images a second a core, beside other loaders and the bare decoding.

    python benchmarks/bench_feed.py [--workers 1] [--size 224] [--repeats 3] [--json] [--quick]

The same JPEGs of three sizes, and those that `build --keep-pixels 288` keeps of the smallest, to uint8
batches of one size: `bare decode` is the limit, a loop over bytes in memory in one process; `ours` is the
loader of `train`, from tars and with targets, and `scaled` the same with --decode scaled; `torch` a plain
DataLoader with Pillow, from files; `webdataset` its own loader, from the same tars. Each way runs in
processes of its own, all of them in turn. A core's rate is images by CPU time, of all processes together.
"""

import argparse
import functools
import io
import json
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from arguments import benchmark_parser
from hardware import machine
from make_checkpoint import make_checkpoint
from photographs import draw_photograph, tile
from PIL import Image

Corpora = dict[str, tuple[Callable[[int], bytes], int, int]]

BATCH, WARM_BATCHES, TARS = 32, 2, 4
SHORT_SIDE = 288
WAYS = ("bare decode", "ours", "ours, scaled", "torch", "webdataset")
CORPORA: Corpora = {
    "640 x 480": (lambda seed: draw_photograph(seed), 128, 16),
    "1280 x 852": (lambda seed: tiled(seed, 2), 64, 6),
    "3200 x 2130": (lambda seed: tiled(seed, 5), 32, 2),
}
"""How a picture is made, different images, and timed batches."""

KEPT, KEPT_BATCHES = "kept", 32


def main() -> None:
    parser = benchmark_parser(__doc__, quick="few batches of small pictures")
    parser.add_argument("--workers", type=int, default=1, help="decoding processes of each loader")
    parser.add_argument("--size", type=int, default=224, help="pixels across of the batches")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--corpus", help=argparse.SUPPRESS)
    parser.add_argument("--batches", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args)))
        return
    corpora = CORPORA
    if args.quick:
        args.size, args.repeats = 64, 1
        corpora = {name: (make, 64, 2) for name, (make, _, _) in list(CORPORA.items())[:2]}
    print(machine("pillow", "torch", "webdataset", "numpy"))
    with tempfile.TemporaryDirectory(prefix="bench-feed-") as folder:
        work = Path(folder)
        prepare(work, corpora)
        batches = {name: number for name, (_, _, number) in corpora.items()}
        batches[KEPT] = 4 if args.quick else KEPT_BATCHES
        found = compare(args, work, batches)
    show(args, found)
    if args.json:
        print(json.dumps({"workers": args.workers, "size": args.size, **summary(found)}))


def prepare(work: Path, corpora: Corpora) -> None:
    """Write the pictures as files and as tars, and a cache of each; the first cache keeps pixels."""
    from siglip2_cache.precompute.build import build
    from siglip2_cache.precompute.config import BuildConfig
    from siglip2_cache.precompute.planning.config import PlanConfig

    teacher = make_checkpoint("tiny-patch16-64", work / "teacher", dtype="float32")
    for i, (name, (make, number, _)) in enumerate(corpora.items()):
        folder = work / name
        (folder / "files").mkdir(parents=True)
        (folder / "tars").mkdir()
        drawn = [make(seed) for seed in range(min(number, 16))]
        for t in range(TARS):
            with tarfile.open(folder / "tars" / f"{t:05d}.tar", "w") as tar:
                for row in range(t, number, TARS):
                    # Bytes after the end of a JPEG make each file another one.
                    data = drawn[row % len(drawn)] + row.to_bytes(4)
                    (folder / "files" / f"{row:05d}.jpg").write_bytes(data)
                    add_member(tar, f"{row:05d}.jpg", data)
                    add_member(tar, f"{row:05d}.txt", f"picture {row}".encode())
        build(
            BuildConfig(
                plan=PlanConfig(sources=(str(folder / "tars"),)),
                cache=folder / "cache",
                teacher=str(teacher),
                device="cpu",
                keep_pixels=SHORT_SIDE if i == 0 else None,
            )
        )
        if i == 0:
            unpack_kept(folder, work / KEPT)


@functools.lru_cache
def parts_of_pictures() -> list[bytes]:
    """Return pictures of 640 x 426, of which larger ones are laid out."""
    return [draw_photograph(seed, (640, 426)) for seed in range(25)]


def tiled(seed: int, num_across: int) -> bytes:
    return tile(parts_of_pictures(), num_across, seed)


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def unpack_kept(source: Path, folder: Path) -> None:
    """Lay out the kept pixels of a cache as the other corpora are."""
    (folder / "files").mkdir(parents=True)
    (folder / "tars").mkdir()
    for path in sorted((source / "cache" / "pixels").glob("*.tar")):
        (folder / "tars" / path.name).symlink_to(path)
        with tarfile.open(path) as tar:
            tar.extractall(folder / "files", filter="data")
    (folder / "cache").symlink_to(source / "cache")


def compare(
    args: argparse.Namespace, work: Path, batches: dict[str, int]
) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Return every measurement by corpus and way."""
    found = {name: {way: list[dict[str, float]]() for way in WAYS} for name in batches}
    for _ in range(args.repeats):
        for name, number in batches.items():
            for way in WAYS:  # in turns, so that all meet the same machine
                settings = {
                    **{"way": way, "corpus": name, "batches": number, "work": work},
                    **{"workers": args.workers, "size": args.size},
                }
                words = [
                    part for key, value in settings.items() for part in (f"--{key}", str(value))
                ]
                command = [sys.executable, __file__, *words]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                found[name][way].append(json.loads(done.stdout.splitlines()[-1]))
    return found


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Return images per second of CPU time and of wall time, after a few batches to warm up."""
    sources: dict[str, Callable[[argparse.Namespace], Iterator[int]]] = {
        "bare decode": bare_batches,
        "ours": lambda args: our_batches(args, "exact"),
        "ours, scaled": lambda args: our_batches(args, "scaled"),
        "torch": torch_batches,
        "webdataset": webdataset_batches,
    }
    source = sources[args.way](args)
    for _ in range(WARM_BATCHES):
        next(source)
    cpu_s, started, images = cpu_time(), time.perf_counter(), 0
    for _ in range(args.batches):
        images += next(source)
    wall_s, cpu_s = time.perf_counter() - started, cpu_time() - cpu_s
    return {"images_per_cpu_s": images / cpu_s, "images_per_s": images / wall_s}


def cpu_time() -> float:
    """Return the seconds of CPU that this process and those below it have used."""
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def pixels_of(data: bytes | Path, size: int) -> Any:
    """Return (size, size, 3) uint8, as SigLIP's image processor makes it."""
    import numpy as np

    image = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)
    return np.array(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


def files_of(args: argparse.Namespace) -> list[Path]:
    return sorted((args.work / args.corpus / "files").iterdir())


def bare_batches(args: argparse.Namespace) -> Iterator[int]:
    """Decode bytes in memory, and keep nothing."""
    files = [path.read_bytes() for path in files_of(args)]
    at = 0
    while True:
        for _ in range(BATCH):
            pixels_of(files[at % len(files)], args.size)
            at += 1
        yield BATCH


def our_batches(args: argparse.Namespace, decode: Any) -> Iterator[int]:
    from dataclasses import replace

    from siglip2_cache import open_cache
    from siglip2_cache.siglip import SquashRecipe, resolve_checkpoint
    from siglip2_cache.student.data.catalog_index import ImageLookup
    from siglip2_cache.student.data.loader import Loader, LoaderConfig
    from siglip2_cache.student.data.read_corpus import read_corpus
    from siglip2_cache.student.data.sampler import Sampler
    from siglip2_cache.student.data.split import SplitPolicy
    from siglip2_cache.student.data.train_targets import first_targets

    checkpoint = resolve_checkpoint(str(args.work / "teacher"))
    recipe = SquashRecipe(size=(args.size, args.size), resample=Image.Resampling.BILINEAR)
    cache = open_cache(args.work / args.corpus / "cache")
    corpus = read_corpus(cache, None, SplitPolicy(val_share=0))
    images = ImageLookup(cache, corpus, cache.kept_pixels() if args.corpus == KEPT else None)
    sampler = Sampler(corpus, global_batch_size=BATCH, groups=images.groups)
    config = LoaderConfig(num_workers=args.workers, decode=decode)
    with Loader(
        cache,
        [first_targets(cache, None)],
        sampler,
        images,
        replace(checkpoint, image_recipe=recipe),
        config=config,
        towers="image",
    ) as loader:
        for batch in loader.batches():
            assert not batch.skipped
            yield len(batch.pixels_N)


def torch_batches(args: argparse.Namespace) -> Iterator[int]:
    from torch.utils.data import DataLoader

    size, files = args.size, files_of(args)

    class Pictures:
        def __len__(self) -> int:
            return 10**6

        def __getitem__(self, index: int) -> Any:
            return pixels_of(files[index % len(files)], size)

    pictures: Any = Pictures()
    for batch in DataLoader(pictures, BATCH, shuffle=True, num_workers=args.workers):
        yield len(batch)


def webdataset_batches(args: argparse.Namespace) -> Iterator[int]:
    import webdataset as wds

    size = args.size
    tars = [str(path) for path in sorted((args.work / args.corpus / "tars").iterdir())]
    dataset = (
        wds.WebDataset(tars, resampled=True, shardshuffle=False)
        .shuffle(1000, initial=100)
        .map(lambda sample: (pixels_of(sample["jpg"], size),))  # a tuple of columns
        .batched(BATCH)
    )
    for (batch,) in wds.WebLoader(dataset, batch_size=None, num_workers=args.workers):
        yield len(batch)


def summary(found: dict[str, dict[str, list[dict[str, float]]]]) -> dict[str, Any]:
    """Return medians and ratios: of each way to the bare decoding, of kept pixels to the plain loader."""
    rates = {
        name: {
            way: statistics.median(r["images_per_cpu_s"] for r in runs)
            for way, runs in ways.items()
        }
        for name, ways in found.items()
    }
    walls = {
        name: {
            way: statistics.median(r["images_per_s"] for r in runs) for way, runs in ways.items()
        }
        for name, ways in found.items()
    }
    return {
        "images_per_cpu_s": rates,
        "images_per_s": walls,
        "of_bare_decode": {
            name: {way: rate / ways["bare decode"] for way, rate in ways.items()}
            for name, ways in rates.items()
        },
        "kept_over_plain": rates[KEPT]["ours"] / rates["640 x 480"]["torch"],
    }


def show(args: argparse.Namespace, found: dict[str, dict[str, list[dict[str, float]]]]) -> None:
    numbers = summary(found)
    workers = f"{args.workers} decoding process{'es' if args.workers > 1 else ''}"
    print(f"\nimages to {args.size} x {args.size}, {workers}, medians of {args.repeats}")
    print(f"{'':<26}{'a core':>10}{'of bare':>10}{'spread':>10}{'a second':>10}")
    for name, ways in found.items():
        for way, runs in ways.items():
            each = [run["images_per_cpu_s"] for run in runs]
            spread = (max(each) - min(each)) / statistics.median(each)
            print(
                f"{f'{name}, {way}':<26}{numbers['images_per_cpu_s'][name][way]:>10.1f}"
                f"{numbers['of_bare_decode'][name][way]:>10.3f}{spread:>10.1%}"
                f"{numbers['images_per_s'][name][way]:>10.1f}"
            )
    print(f"\nkept pixels, ours / 640 x 480, torch: {numbers['kept_over_plain']:.2f}")


if __name__ == "__main__":
    main()
