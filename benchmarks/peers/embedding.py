"""Embedding a folder of photographs: `build` beside sentence-transformers and a plain transformers loop.

    python benchmarks/peers/embedding.py [--images FOLDER] [--count 1000] [--json] [--quick]

A true-size SigLIP 2 Base with random weights, float32, 32 images a batch, one caption an image. Each peer
is a process of its own: what it takes from its start to its end, by its own clock without the imports and
the loading (of the build: forward passes, waiting for pixels, and writing), and the largest proportional
set size of its processes together, sampled. What is on the disk at half of the photographs is what a
SIGKILL then leaves; the build gets one, and is started again. Each also gets a folder with a damaged file.
Folders under ``--images`` that hold fewer photographs than ``--count`` are repeated with other crops.
"""

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

sys.path.append(str(Path(__file__).parents[1]))

from arguments import benchmark_parser
from hardware import machine
from make_checkpoint import make_checkpoint
from photographs import photographs

PEERS = ("siglip2-cache", "sentence-transformers", "transformers")
BATCH = 32
_POLL_S = 0.05
_MEMORY_POLL_S = 0.5
"""Reading the size of a process walks its pages: at 0.05 s it took a quarter of a core."""


def main() -> None:
    parser = benchmark_parser(__doc__, quick="24 photographs, a tiny model")
    parser.add_argument("--images", type=Path, help="folder of .jpg files; default drawn ones")
    parser.add_argument("--count", type=int, default=1000, help="photographs")
    parser.add_argument("--arch", default="base-patch16-224")
    parser.add_argument("--shard-rows", type=int, default=128, help="unit of the build, in images")
    parser.add_argument("--peer", choices=PEERS[1:], help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--photos", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        embed(args)
        return
    if args.quick:
        args.count, args.arch, args.shard_rows = 24, "tiny-patch16-64", 8
    print(machine("torch", "transformers", "sentence-transformers", "pillow", "numpy"))
    with tempfile.TemporaryDirectory(prefix="peers-embedding-") as folder:
        found = run(args, Path(folder))
    show(args, found)
    if args.json:
        print(json.dumps(found))


def run(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    from siglip2_cache.siglip import resolve_checkpoint
    from siglip2_cache.student.export.sentence_transformers import write_sentence_transformers

    make_checkpoint(args.arch, work / "model", dtype="float32")
    # Without these files it would pad texts in another way, and get other embeddings.
    write_sentence_transformers(work / "model", resolve_checkpoint(str(work / "model")))
    write_photographs(work / "photos", args.images, args.count)
    write_photographs(work / "damaged", args.images, args.count)
    bad = work / "damaged" / "00003.jpg"
    bad.write_bytes(bad.read_bytes()[:2000])
    found: dict[str, Any] = {peer: measure(args, work, peer) for peer in PEERS}
    found[PEERS[0]] |= kill_at_half(args, work)
    for peer in PEERS[1:]:
        found[peer]["damaged"] = with_damaged(args, work, peer)
    ours = embeddings_of(work, PEERS[0], "photos")
    for peer in PEERS[1:]:
        theirs = embeddings_of(work, peer, "photos")
        found[peer]["least_cosine_to_ours"] = float((ours * theirs).sum(axis=1).min())
    return found


def write_photographs(folder: Path, images: Path | None, count: int) -> None:
    """Write ``count`` different photographs, and a caption beside each."""
    folder.mkdir()
    files = photographs(images, count)
    for i in range(count):
        data = files[i % len(files)]
        if i >= len(files):
            image = Image.open(io.BytesIO(data)).convert("RGB")
            margin = i // len(files)
            sink = io.BytesIO()
            image.crop((margin, margin, image.width, image.height)).save(sink, "JPEG", quality=90)
            data = sink.getvalue()
        (folder / f"{i:05d}.jpg").write_bytes(data)
        (folder / f"{i:05d}.txt").write_text(caption(i))


def caption(i: int) -> str:
    return f"photograph number {i} of a benchmark"


# -- a peer, in a process of its own


def embed(args: argparse.Namespace) -> None:
    """Embed all photographs and captions of a folder as a user of the peer would; save them at the end."""
    import torch

    paths = sorted(args.photos.glob("*.jpg"))
    texts = [path.with_suffix(".txt").read_text() for path in paths]
    model: Any
    if args.peer == "transformers":
        from transformers import AutoModel, AutoProcessor

        model = AutoModel.from_pretrained(args.work / "model").eval()
        processor = AutoProcessor.from_pretrained(args.work / "model")
    else:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(args.work / "model"), device="cpu")
    target = args.work / f"{args.peer}-{args.photos.name}.npy"
    watch = Watch(len(paths) // 2, target)
    started = time.perf_counter()
    if args.peer == "transformers":
        parts: list[Any] = []
        with torch.inference_mode():
            for first in range(0, len(paths), BATCH):
                pictures = [
                    Image.open(path).convert("RGB") for path in paths[first : first + BATCH]
                ]
                pixels = processor(images=pictures, return_tensors="pt")
                parts.append(model.get_image_features(**pixels).pooler_output)
                watch.count(len(pictures))
            for first in range(0, len(texts), BATCH):
                some = [text.lower() for text in texts[first : first + BATCH]]
                options = {"padding": "max_length", "max_length": 64, "truncation": True}
                ids = processor.tokenizer(some, return_tensors="pt", **options)["input_ids"]
                parts.append(model.get_text_features(input_ids=ids).pooler_output)
        rows = torch.nn.functional.normalize(torch.cat(parts), dim=-1).numpy()
    else:
        model[0].register_forward_hook(lambda *_: watch.count(BATCH))
        # It does not convert pictures, and fails at the first one without three colours.
        pictures = [Image.open(path).convert("RGB") for path in paths]
        options = {"batch_size": BATCH, "normalize_embeddings": True, "show_progress_bar": False}
        rows = np.concatenate([model.encode(pictures, **options), model.encode(texts, **options)])
    np.save(target, rows)
    print(json.dumps({"seconds": time.perf_counter() - started, "kept_at_half": watch.kept}))


class Watch:
    """Counts images; at half it looks at how many are on the disk, which is what a SIGKILL would leave."""

    def __init__(self, half: int, target: Path) -> None:
        self._half, self._target, self._done = half, target, 0
        self.kept: int | None = None

    def count(self, num_images: int) -> None:
        self._done += num_images
        if self.kept is None and self._done >= self._half:
            self.kept = len(np.load(self._target)) // 2 if self._target.exists() else 0


# -- the processes


def command_of(args: argparse.Namespace, work: Path, peer: str, photos: str) -> list[str]:
    if peer == PEERS[0]:
        build = [sys.executable, "-m", "siglip2_cache", "build", str(work / photos)]
        options = ["--teacher", str(work / "model"), "--shard-rows", str(args.shard_rows)]
        rest = ["--batch-size", str(BATCH), "--device", "cpu", "--json", "--quiet"]
        return [*build, str(cache_of(work, photos)), *options, *rest]
    return [
        sys.executable,
        __file__,
        "--peer",
        peer,
        "--work",
        str(work),
        "--photos",
        str(work / photos),
    ]


def cache_of(work: Path, photos: str) -> Path:
    return work / f"cache-{photos}"


def start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that all its processes can be killed at once
    )


def measure(args: argparse.Namespace, work: Path, peer: str) -> dict[str, Any]:
    """Return the rates and the memory of one whole run."""
    started = time.perf_counter()
    process, peak = start(command_of(args, work, peer, "photos")), 0
    while process.poll() is None:
        peak = max(peak, proportional_bytes(process.pid))
        time.sleep(_MEMORY_POLL_S)
    whole_s = time.perf_counter() - started
    output, errors = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"error: {peer} failed: {errors[-2000:]}")
    own = json.loads(output if peer == PEERS[0] else output.splitlines()[-1])
    times = own.get("worker_seconds")
    loaded_s = (
        own["seconds"] if times is None else sum(times[n] for n in ("forward", "wait", "write"))
    )
    return {
        "whole_s": whole_s,
        "images_per_s": args.count / whole_s,
        "images_per_s_loaded": args.count / loaded_s,
        "peak_bytes": peak,
        "kept_at_half": own.get("kept_at_half"),
    }


def proportional_bytes(pid: int) -> int:
    """Return the proportional set size of a process and its children: what they share counts once."""
    import psutil

    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    total = 0
    for each in family:
        try:
            lines = Path(f"/proc/{each.pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def kill_at_half(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Kill a build at half and start it again, on the folder with a damaged file; return what is left."""
    cache = cache_of(work, "damaged")
    process = start(command_of(args, work, PEERS[0], "damaged"))
    while process.poll() is None and committed(cache) < args.count / 2:
        time.sleep(_POLL_S)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    kept = committed(cache)
    again = start(command_of(args, work, PEERS[0], "damaged"))
    output, errors = again.communicate()
    if not output:
        raise SystemExit(f"error: the build that was killed does not resume: {errors[-2000:]}")
    embedded_now = json.loads(output)["images"]
    embedded = len(embeddings_of(work, PEERS[0], "damaged"))
    return {
        "kept_at_half": kept,
        "embedded_by_next_start": embedded_now,
        "damaged": {"status": again.returncode, "embedded": embedded, "of": args.count},
    }


def committed(cache: Path) -> int:
    from siglip2_cache import open_cache
    from siglip2_cache.errors import CacheError

    try:
        units = open_cache(cache).commits().units_of("image")
    except CacheError:  # not planned yet
        return 0
    return sum(unit.num_rows for unit in units.values())


def with_damaged(args: argparse.Namespace, work: Path, peer: str) -> dict[str, Any]:
    """Return the exit status with one damaged file among the photographs, and how many were saved."""
    process = start(command_of(args, work, peer, "damaged"))
    process.communicate()
    saved = work / f"{peer}-damaged.npy"
    embedded = len(np.load(saved)) // 2 if saved.exists() else 0
    return {"status": process.returncode, "embedded": embedded, "of": args.count}


def embeddings_of(work: Path, peer: str, photos: str) -> NDArray[np.float32]:
    if peer == PEERS[0]:
        from siglip2_cache import open_cache

        targets = open_cache(cache_of(work, photos)).image_targets()
        rows = targets.read(targets.available_rows()).astype(np.float32)
    else:
        rows = np.load(work / f"{peer}-{photos}.npy")
        rows = rows[: len(rows) // 2]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def show(args: argparse.Namespace, found: dict[str, Any]) -> None:
    print(
        f"\n{args.count:,} photographs with a caption each, {args.arch}, float32, batches of {BATCH}\n"
    )
    print(
        "| | images/s, whole command | images/s, once loaded | peak memory | on the disk at "
        "half | with a damaged file |"
    )
    print("|---|---|---|---|---|---|")
    for peer, one in found.items():
        damaged = one["damaged"]
        print(
            f"| {peer} | {one['images_per_s']:.2f} | {one['images_per_s_loaded']:.2f} | "
            f"{one['peak_bytes'] / 1e6:,.0f} MB | {one['kept_at_half']:,} images | exit status "
            f"{damaged['status']}, {damaged['embedded']} of {damaged['of']} embedded |"
        )
    ours = found[PEERS[0]]
    print(
        f"\nThe build was killed there with SIGKILL. Its next start embeds "
        f"{ours['embedded_by_next_start']:,} images: units of {args.shard_rows:,}."
    )
    for peer in PEERS[1:]:
        print(
            f"{peer}: cosine to the build's images at least {found[peer]['least_cosine_to_ours']:.5f}"
        )


if __name__ == "__main__":
    main()
