"""Ways to decode: what each gains over `--decode exact`, and how far its pixels and embeddings are.

    python benchmarks/bench_decode.py [--images FOLDER] [--teacher PATH] [--size 224] [--json] [--quick]

From bytes in memory to a teacher's pixels, in one process and one thread. `exact` and `scaled` are what
`build --decode` offers; the others were considered. Pictures come as they are, and tiled 2 x 2 and
5 x 5: as sharp at their size as the small ones at theirs, and of many more pixels. The cosine compares
embeddings of a teacher (default: random weights of the base architecture) of the two sets of pixels.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import simplejpeg
from arguments import benchmark_parser
from hardware import machine
from make_checkpoint import make_checkpoint
from numpy.typing import NDArray
from photographs import photographs, tile
from PIL import Image
from teacher_peak import squash

from siglip2_cache.images.pixels import Decode, decode_for_views, render_views
from siglip2_cache.precompute.teacher.siglip_teacher import SiglipTeacher
from siglip2_cache.siglip import resolve_checkpoint
from siglip2_cache.store.format.views import WHOLE_IMAGE

Pixels = NDArray[np.uint8]
DecodeFile = Callable[[bytes], Pixels]
BATCH = 8
_COSINES = ("min_cosine", "mean_cosine")
"""Only at the size that the teacher takes."""


def main() -> None:
    parser = benchmark_parser(__doc__, quick="few pictures and a tiny teacher")
    parser.add_argument("--images", type=Path, help="folder of .jpg files; default drawn ones")
    parser.add_argument("--num-images", type=int, default=288)
    parser.add_argument("--teacher", help="checkpoint; default random weights, base-patch16-224")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=int, help="pixels across; default what the teacher takes")
    args = parser.parse_args()
    arch = "base-patch16-224"
    if args.quick:
        args.num_images, args.repeats, arch = 16, 2, "tiny-patch16-64"
    with tempfile.TemporaryDirectory() as folder:
        path = args.teacher or str(make_checkpoint(arch, folder, dtype="float32"))
        teacher = SiglipTeacher(resolve_checkpoint(path), device="cpu", compute_dtype="float32")
        run(teacher, args)


def run(teacher: SiglipTeacher, args: argparse.Namespace) -> None:
    size = squash(teacher).size if args.size is None else (args.size, args.size)
    photos = photographs(args.images, args.num_images)
    corpora = {"as they are": photos}
    for num_across in (2, 5):
        count = max(2, len(photos) // num_across**2)
        corpora[f"{num_across} x {num_across} tiles"] = [
            tile(photos, num_across, i * num_across**2) for i in range(count)
        ]
    print(machine("pillow", "simplejpeg", "numpy"))
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, corpus in corpora.items():
        found[name] = compare(corpus, size, teacher, args.repeats)
        width, height = Image.open(BytesIO(corpus[0])).size
        print(f"\n{len(corpus)} pictures {name} ({width} x {height}, ...) to {size[1]} x {size[0]}")
        print(
            f"{'':<24}{'ms':>8}{'gain':>7}{'max diff':>10}{'mean diff':>11}{'min cos':>10}{'mean cos':>10}"
        )
        for way, each in found[name].items():
            print(
                f"{way:<24}{each['ms']:>8.2f}{each['gain']:>7.2f}{each['max_diff']:>10.0f}"
                f"{each['mean_diff']:>11.3f}"
                + "".join(f"{each[name]:>10.6f}" for name in _COSINES if name in each)
            )
    if args.json:
        print(json.dumps({"size": list(size), "decode": found}))


def compare(
    corpus: list[bytes], size: tuple[int, int], teacher: SiglipTeacher, repeats: int
) -> dict[str, dict[str, float]]:
    """Return for every way the milliseconds an image takes, and its distance to exact."""
    ways = make_ways(size, squash(teacher).resample)
    pixels = {way: np.stack([decode(data) for data in corpus]) for way, decode in ways.items()}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, decode in ways.items():  # in turns, so that all meet the same machine
            started = time.perf_counter()
            for data in corpus:
                decode(data)
            seconds[way].append(time.perf_counter() - started)
    ms = {way: statistics.median(s) / len(corpus) * 1e3 for way, s in seconds.items()}
    can_embed = size == squash(teacher).size
    exact_ND = embed(teacher, pixels["exact"]) if can_embed else None
    found: dict[str, dict[str, float]] = {}
    for way in ways:
        diff = np.abs(pixels[way].astype(np.int16) - pixels["exact"])
        cosine_N = np.ones(1)
        if exact_ND is not None and diff.any():
            cosine_N = (embed(teacher, pixels[way]) * exact_ND).sum(axis=1)
        found[way] = {
            "ms": ms[way],
            "gain": ms["exact"] / ms[way],
            "max_diff": float(diff.max()),
            "mean_diff": float(diff.mean()),
        }
        if can_embed:
            found[way] |= {
                "min_cosine": float(cosine_N.min()),
                "mean_cosine": float(cosine_N.mean()),
            }
    return found


def embed(teacher: SiglipTeacher, pixels_NHWC: Pixels) -> NDArray[np.float64]:
    batches = [pixels_NHWC[i : i + BATCH] for i in range(0, len(pixels_NHWC), BATCH)]
    return np.concatenate([teacher.embed_images(batch)() for batch in batches]).astype(np.float64)


def make_ways(size: tuple[int, int], resample: int) -> dict[str, DecodeFile]:
    height, width = size

    def ours(data: bytes, decode: Decode) -> Pixels:
        image, _ = decode_for_views(
            data, [WHOLE_IMAGE], view_size=lambda height, width: size, decode=decode
        )
        return render_views(image, [WHOLE_IMAGE], size=size, resample=resample)[0]

    def resized(image: Image.Image, reducing_gap: float | None = None) -> Pixels:
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        return np.asarray(rgb.resize((width, height), resample, reducing_gap=reducing_gap))

    def drafted(data: bytes) -> Pixels:
        image = Image.open(BytesIO(data))
        image.draft(None, (width, height))
        return resized(image)

    def simple(data: bytes, **options: bool | int) -> Pixels:
        return resized(Image.fromarray(simplejpeg.decode_jpeg(data, **options)))

    least = {"min_height": height, "min_width": width, "min_factor": 1}
    return {
        "exact": partial(ours, decode="exact"),
        "scaled": partial(ours, decode="scaled"),
        "scaled, at least 1 x": drafted,
        "reducing_gap 2": lambda data: resized(Image.open(BytesIO(data)), 2.0),
        "simplejpeg": simple,
        "simplejpeg, fast": partial(simple, fastdct=True, fastupsample=True),
        "simplejpeg, scaled 1 x": partial(simple, **least),
    }


if __name__ == "__main__":
    main()
