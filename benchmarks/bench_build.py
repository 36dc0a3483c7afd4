"""The whole build against its two limits, the teacher and the decoders; its memory; its stages.

    python benchmarks/bench_build.py [--teacher PATH] [--images FOLDER] [--json] [--quick]

- forward: the build of images with a caption each, against the bare forward of the same batches, decoded
  and in memory, by the same loaded, warm model. Default: random weights of the true so400m-patch14-224.
- decoding: the build of images alone with a tiny teacher of 64 pixels, against a plain multiprocessing
  pool of as many processes that reads, decodes and resizes the same files with Pillow and throws the
  pixels away. That pool shares no code with the build, so what the build's own decoders lose is seen.
- memory: the largest anonymous memory of the build's processes together, sampled, as a corpus grows
  tenfold, both times with units of 1,024 rows.

Both sides take turns in one process, with the same number of threads, and the median of their ratios
counts. A build's time runs from a planned cache and a loaded teacher until its last unit is on the disk:
starting the decoders, committing and fsync are in it; planning and loading are shown beside it. Where
there is no GPU, decoders and teacher share the cores, so the build cannot reach 1 even in principle.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arguments import benchmark_parser
from build_memory import peak_of_builds
from hardware import machine
from make_checkpoint import ARCHS, make_checkpoint
from numpy.typing import NDArray
from photographs import photographs
from PIL import Image
from teacher_peak import matmul_flops_per_s, squash

from siglip2_cache.images.pixels import decode_rgb, render_views
from siglip2_cache.precompute.build import BuildConfig, BuildSummary, build
from siglip2_cache.precompute.executor.progress import BuildProgress
from siglip2_cache.precompute.planning.config import PlanConfig
from siglip2_cache.precompute.teacher.siglip_teacher import SiglipTeacher
from siglip2_cache.progress import Display
from siglip2_cache.siglip import find_architecture, resolve_checkpoint
from siglip2_cache.store.format.views import WHOLE_IMAGE

TINY_BATCH = 128
"""Images a batch of the tiny teacher: so many that its forward costs next to nothing an image."""


def main() -> None:
    parser = benchmark_parser(__doc__, quick="few images, a tiny teacher in all")
    parser.add_argument("--teacher", help="checkpoint of the forward part; default random weights")
    parser.add_argument("--arch", default="so400m-patch14-224", choices=sorted(ARCHS))
    parser.add_argument("--images", type=Path, help="folder of .jpg files; default drawn ones")
    parser.add_argument("--num-forward", type=int, default=96, help="images of the forward part")
    parser.add_argument("--num-decoded", type=int, default=8000, help="of the decoding part")
    parser.add_argument("--num-grown", type=int, default=20_000, help="of the memory part")
    parser.add_argument("--decode-workers", type=int, help="default one a core, as in a build")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="also the forward by torch.compile")
    parser.add_argument("--only", choices=["forward", "decoding", "memory"])
    args = parser.parse_args()
    if args.quick:
        args.arch, args.repeats = "tiny-patch16-64", 1
        args.num_forward, args.num_decoded, args.num_grown = 64, 400, 1000
    print(machine("torch", "transformers", "pillow", "numpy"))
    parts = {"forward": run_forward, "decoding": run_decoding, "memory": run_memory}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-build-") as folder:
        files = write_files(Path(folder, "photographs"), args)
        for name, run in parts.items():
            if args.only in (None, name):
                found[name] = run(Path(folder), files, args)
    if args.json:
        print(json.dumps(found))


# -- against the bare forward


def run_forward(folder: Path, files: list[Path], args: argparse.Namespace) -> dict[str, Any]:
    path = args.teacher or make_checkpoint(args.arch, folder / "teacher", dtype="bfloat16")
    started = time.perf_counter()
    teacher = SiglipTeacher(
        resolve_checkpoint(str(path)), device=args.device, compute_dtype=args.dtype
    )
    loading_s = time.perf_counter() - started
    sizes = teacher.auto_batch_size()
    teacher.auto_batch_size = lambda: sizes  # once is enough
    count = max(1, args.num_forward // sizes[0]) * sizes[0]  # no padding on either side
    table = write_table(folder / "forward.jsonl", files, count, captions=True)
    pixels, texts = pixels_of(teacher, files, count), captions_of(count)
    bare_forward(teacher, pixels[: sizes[0]], texts[: sizes[1]], sizes)  # warm
    ratios, bare_s, builds = [], [], []
    for _ in range(args.repeats):
        bare_s.append(bare_forward(teacher, pixels, texts, sizes))
        builds.append(timed_build(folder, table, teacher, args))
        ratios.append(bare_s[-1] / builds[-1].seconds)
    found: dict[str, Any] = {
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "images": count,
        "build_images_per_s": count / statistics.median(b.seconds for b in builds),
        "bare_images_per_s": count / statistics.median(bare_s),
        "loading_s": loading_s,
        "planning_s": builds[-1].planning_s,
        "stages_s": stages_of(builds[-1]),
        "device": teacher.provenance()["device_name"],
        **share_of_peak(teacher, pixels, sizes),
    }
    if args.compile:
        found["compiled_images_per_s"] = compiled_rate(teacher, pixels, sizes)
    title = f"{count} images, {count} texts, {path if args.teacher else args.arch}"
    show(f"forward: {title}, {teacher.compute_dtype} on {teacher.device}, batches {sizes}", found)
    return found


def bare_forward(
    teacher: SiglipTeacher, pixels: NDArray[np.uint8], texts: list[str], sizes: tuple[int, int]
) -> float:
    """Return the seconds of all batches, each started before the one before is waited for."""
    images, strings = sizes
    started = time.perf_counter()
    pending = None
    for i in range(0, len(pixels), images):
        following = teacher.embed_images(pixels[i : i + images])
        if pending is not None:
            pending()
        pending = following
    for i in range(0, len(texts), strings):
        batch = texts[i : i + strings]
        following = teacher.embed_texts([*batch, *[""] * (strings - len(batch))])
        if pending is not None:
            pending()
        pending = following
    if pending is not None:
        pending()
    return time.perf_counter() - started


def pixels_of(teacher: SiglipTeacher, files: list[Path], count: int) -> NDArray[np.uint8]:
    size, resample = squash(teacher).size, squash(teacher).resample
    each = [
        render_views(decode_rgb(path.read_bytes()), [WHOLE_IMAGE], size=size, resample=resample)[0]
        for path in files[:count]
    ]
    return np.stack([each[i % len(each)] for i in range(count)])


def share_of_peak(
    teacher: SiglipTeacher, pixels: NDArray[np.uint8], sizes: tuple[int, int]
) -> dict[str, float]:
    """Return the rate of the image tower alone, and its share of what a large product reaches."""
    rate = len(pixels) / bare_forward(teacher, pixels, [], sizes)
    flops = find_architecture(str(teacher.checkpoint.folder)).flops_of_view
    peak = matmul_flops_per_s(teacher.device, teacher.compute_dtype)
    return {
        "image_tower_images_per_s": rate,
        "image_gflops": flops / 1e9,
        "share_of_matmul_peak": rate * flops / peak,
        "matmul_tflops_per_s": peak / 1e12,
    }


def compiled_rate(
    teacher: SiglipTeacher, pixels: NDArray[np.uint8], sizes: tuple[int, int]
) -> float:
    teacher._model.vision_model.compile()
    bare_forward(teacher, pixels[: sizes[0]], [], sizes)
    return len(pixels) / bare_forward(teacher, pixels, [], sizes)


# -- against bare decoding


def run_decoding(folder: Path, files: list[Path], args: argparse.Namespace) -> dict[str, Any]:
    path = make_checkpoint("tiny-patch16-64", folder / "tiny", dtype="float32")
    teacher = SiglipTeacher(resolve_checkpoint(str(path)), device=args.device)
    torch.set_num_threads(1)  # a second thread would only wait, busily, on the decoders' cores
    table = write_table(folder / "decoding.jsonl", files, args.num_decoded, captions=False)
    chosen = [files[i % len(files)] for i in range(args.num_decoded)]
    height, width = squash(teacher).size
    num_workers = settings(folder, table, teacher, args).num_decoders
    ratios, bare_s, builds = [], [], []
    with get_context("forkserver").Pool(num_workers, _set_size, ((width, height),)) as pool:
        pool.map(decode_bare, chosen[: 32 * num_workers])  # warm
        for _ in range(args.repeats):
            started = time.perf_counter()
            for _ in pool.imap_unordered(decode_bare, chosen, chunksize=8):
                pass
            bare_s.append(time.perf_counter() - started)
            builds.append(timed_build(folder, table, teacher, args, TINY_BATCH))
            ratios.append(bare_s[-1] / builds[-1].seconds)
    found = {
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "images": args.num_decoded,
        "processes": num_workers,
        "build_images_per_s": args.num_decoded / statistics.median(b.seconds for b in builds),
        "bare_images_per_s": args.num_decoded / statistics.median(bare_s),
        "planning_s": builds[-1].planning_s,
        "stages_s": stages_of(builds[-1]),
    }
    show(f"decoding: {args.num_decoded} images, {num_workers} processes, tiny teacher", found)
    return found


_size = (0, 0)


def _set_size(size: tuple[int, int]) -> None:
    global _size
    _size = size


def decode_bare(path: Path) -> None:
    """Read, decode and resize as any loader would; nothing is sent back. Runs in the pool."""
    with Image.open(path) as image:
        rgb = image if image.mode == "RGB" else image.convert("RGB")  # which would copy it
        np.asarray(rgb.resize(_size, Image.Resampling.BILINEAR))


# -- memory


def run_memory(folder: Path, files: list[Path], args: argparse.Namespace) -> dict[str, Any]:
    path = make_checkpoint("tiny-patch16-64", folder / "tiny", dtype="float32")
    small = [folder / "small" / f"{i}.jpg" for i in range(len(files))]
    small[0].parent.mkdir()
    for source, target in zip(files, small, strict=True):  # quick to decode, as many as needed
        Image.open(source).resize((96, 72)).save(target)
    peaks: dict[int, int] = {}
    for count in (args.num_grown // 10, args.num_grown):
        table = write_table(folder / f"grown-{count}.jsonl", small, count, captions=True)
        peaks[count] = peak_of_builds(table, folder / f"grown-{count}", path)
    few, many = peaks.values()
    print(f"\nmemory: {'images':>12} {'anonymous MB':>14}")
    for count, peak in peaks.items():
        print(f"{'':8}{count:>12,} {peak / 1e6:>14.1f}")
    return {"anonymous_bytes": peaks, "growth": many / few - 1}


# -- builds


@dataclass
class TimedBuild:
    seconds: float
    """From a planned cache and a loaded teacher to the last commit."""

    planning_s: float
    summary: BuildSummary


class Clock(BuildProgress):
    """A build's progress: takes the time at which the work starts and ends."""

    def __init__(self) -> None:
        super().__init__(Display())
        self.started = self.stopped = 0.0

    def start(self, totals: object, units: object) -> None:
        self.started = time.perf_counter()

    def stop(self) -> None:
        self.stopped = time.perf_counter()

    def advance(self, modality: object, num_rows: int, num_rejected: int) -> None: ...

    def unit_done(self, modality: object) -> None: ...


def settings(
    folder: Path,
    table: Path,
    teacher: SiglipTeacher,
    args: argparse.Namespace,
    batch_size: int | None = None,
) -> BuildConfig:
    return BuildConfig(
        plan=PlanConfig(sources=(str(table),)),
        cache=folder / "cache",
        teacher=str(teacher.checkpoint.folder),
        device=teacher.device,
        dtype=teacher.compute_dtype,
        batch_size=batch_size,
        decode_workers=args.decode_workers,
    )


def timed_build(
    folder: Path,
    table: Path,
    teacher: SiglipTeacher,
    args: argparse.Namespace,
    batch_size: int | None = None,
) -> TimedBuild:
    """Build a new cache and remove it."""
    clock, started = Clock(), time.perf_counter()
    config = settings(folder, table, teacher, args, batch_size)
    with _removed_after(config.cache):
        summary = build(config, progress=clock, make_teacher=lambda *_: teacher)
    assert summary.num_rejected == 0
    return TimedBuild(clock.stopped - clock.started, clock.started - started, summary)


@contextmanager
def _removed_after(folder: Path) -> Iterator[None]:
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def stages_of(timed: TimedBuild) -> dict[str, float]:
    """Return seconds by stage; read and decode a process."""
    times, num_workers = timed.summary.times, max(1, timed.summary.num_decoders)
    return {
        "read": times.read_s / num_workers,
        "decode": times.decode_s / num_workers,
        "forward": times.forward_s,
        "write": times.write_s,
        "teacher waited": times.wait_s,
        "whole": timed.seconds,
    }


def show(title: str, found: dict[str, Any]) -> None:
    """Print a part's numbers."""
    print(f"\n{title}")
    for name, value in found.items():
        if name == "ratios":
            print(f"  {name:<26} {', '.join(f'{ratio:.3f}' for ratio in value)}")
        elif name == "stages_s":
            stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in value.items())
            print(f"  {'stages, s':<26} {stages}")
        else:
            print(
                f"  {name:<26} {value:,.3f}"
                if isinstance(value, float)
                else f"  {name:<26} {value}"
            )


# -- corpora


def write_files(folder: Path, args: argparse.Namespace) -> list[Path]:
    """Return files of a few hundred different pictures; larger corpora name them several times."""
    folder.mkdir()
    count = 32 if args.quick else 288
    files = []
    for i, data in enumerate(photographs(args.images, count)):
        files.append(folder / f"{i:05d}.jpg")
        files[-1].write_bytes(data)
    return files


def captions_of(count: int) -> list[str]:
    return [f"a photo of thing number {i} on a table in the garden" for i in range(count)]


def write_table(path: Path, files: list[Path], count: int, *, captions: bool) -> Path:
    """Write a table of ``count`` samples with keys of their own."""
    with path.open("w") as table:
        for i, caption in enumerate(captions_of(count)):
            line = {"image": str(files[i % len(files)]), "key": f"{i:09d}"}
            table.write(json.dumps(line | ({"caption": caption} if captions else {})) + "\n")
    return path


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
