"""Pictures for benchmarks: those of a folder, or drawn ones that compress and decode as photographs do."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

_OCTAVES = (4, 8, 16, 32, 64, 128, 256, 640)
"""Widths in pixels of the noise that is laid over itself, from coarse to fine."""


def photographs(folder: Path | None, count: int) -> list[bytes]:
    """Return JPEG files: the first ``count`` of a folder (.jpg, below it too), or as many drawn ones.

    Raises:
        SystemExit: the folder holds no JPEG.
    """
    if folder is None:
        return [draw_photograph(seed) for seed in range(count)]
    paths = sorted(folder.rglob("*.jpg"))[:count]
    if not paths:
        raise SystemExit(
            f"error: {folder} holds no .jpg file; leave --images out to have some drawn"
        )
    return [path.read_bytes() for path in paths]


def draw_photograph(seed: int, size: tuple[int, int] = (640, 480), quality: int = 90) -> bytes:
    """Return a JPEG of noise at several scales, each finer one fainter, as in photographs.

    It has about the bytes, so about the decoding time, of a photograph of that size and quality.
    """
    width, height = size
    rng = np.random.default_rng(seed)
    sum_HWC = np.zeros((height, width, 3), np.float32)
    for octave in _OCTAVES:
        shape = (max(2, octave * height // width), octave)
        gray, tint = rng.normal(size=(*shape, 1)), rng.normal(size=(*shape, 3))
        noise = np.clip((gray + 0.3 * tint) * 32 + 128, 0, 255).astype(np.uint8)
        enlarged = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
        sum_HWC += (np.asarray(enlarged, np.float32) - 128) * (4 / octave) ** 0.45
    picture = Image.fromarray(np.clip(sum_HWC + 128, 0, 255).astype(np.uint8))
    sink = io.BytesIO()
    picture.save(sink, "JPEG", quality=quality)
    return sink.getvalue()


def tile(photos: list[bytes], num_across: int, first: int) -> bytes:
    """Return a JPEG of num_across x num_across pictures, as sharp at its size as they are at theirs."""
    pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in photos]
    width, height = pictures[0].size
    whole = Image.new("RGB", (width * num_across, height * num_across))
    for i in range(num_across**2):
        picture = pictures[(first + i) % len(pictures)].resize((width, height))
        whole.paste(picture, (i % num_across * width, i // num_across * height))
    sink = io.BytesIO()
    whole.save(sink, "JPEG", quality=90)
    return sink.getvalue()
