"""Pictures of scenes: 32 x 32 pixels, smooth edges, jittered position, size and colour, some noise.

The bytes of a picture are equal on every machine: the draws are reproducible (random_draws.py), the
arithmetic uses single IEEE operations, and the PNG is uncompressed, because zlib and its replacements
compress to different bytes.
Letters in this file: H = W = 32 pixels, S = 4 samples a pixel and direction.
"""

import hashlib
import struct
import zlib
from random import Random

import numpy as np
from numpy.typing import NDArray

from .random_draws import between
from .scenes import Colour, Scene, Shape, Thing

IMAGE_SIZE = 32

RGB: dict[Colour, tuple[int, int, int]] = {
    "red": (215, 35, 35),
    "orange": (245, 140, 20),
    "yellow": (245, 225, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "purple": (130, 45, 170),
    "pink": (250, 150, 195),
    "brown": (115, 65, 25),
    "white": (240, 240, 240),
    "black": (20, 20, 20),
}
"""Colours before a jitter of at most COLOUR_JITTER and noise of at most NOISE a channel."""

COLOUR_JITTER = 10
NOISE = 5

_GREY = (105.0, 160.0)  # between black and white, so that every colour stands out
_TINT = 8.0
_LARGE = (7.6, 8.0)  # half the width of an object, in pixels
_SMALL = (5.4, 5.9)
_MARGIN = 0.5
_JITTER = 1.0  # of a position, in pixels
_SAMPLES = 4
_STEPS = (np.arange(IMAGE_SIZE * _SAMPLES) + 0.5) / _SAMPLES  # (H * S,): centres of the samples


def draw_scene(scene: Scene, rng: Random) -> NDArray[np.uint8]:
    """Return a random picture of a scene, (H, W, 3) pixels."""
    return draw_with_coverage(scene, rng)[0]


def draw_with_coverage(scene: Scene, rng: Random) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Return the same picture, and the part of each pixel under the large and under the small object.

    Returns:
        (H, W, 3) pixels and (2, H, W) parts, 0 to 1.
    """
    pixels = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3))
    grey = between(*_GREY, rng)
    pixels[:] = [grey + between(-_TINT, _TINT, rng) for _ in range(3)]
    radii = between(*_LARGE, rng), between(*_SMALL, rng)
    places = _places(scene, radii, rng)
    parts = [
        _coverage(thing.shape, x, y, radius)
        for thing, radius, (x, y) in zip((scene.large, scene.small), radii, places, strict=True)
    ]
    for thing, part in zip((scene.large, scene.small), parts, strict=True):
        pixels += part[..., None] * (np.array(_colour(thing, rng)) - pixels)
    noise = _noise(f"{rng.random()!r}", pixels.size).reshape(pixels.shape)
    return np.clip(np.rint(pixels) + noise, 0, 255).astype(np.uint8), np.stack(parts)


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return an uncompressed PNG of (H, W, 3) pixels, at most 65,535 bytes of them."""
    height, width, _ = pixels.shape
    rows = np.insert(pixels.reshape(height, -1), 0, 0, axis=1).tobytes()  # 0: no filter
    size = len(rows)
    stored = struct.pack("<BHH", 1, size, size ^ 0xFFFF) + rows  # one final block, stored
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
            _chunk(b"IDAT", b"\x78\x01" + stored + struct.pack(">I", zlib.adler32(rows))),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def _places(
    scene: Scene, radii: tuple[float, float], rng: Random
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the centres (x, y) of the large and the small object, which do not touch.

    Along the axis of the relation each is near its end of the picture, across it both are near the middle:
    the more positions vary, the more slowly shapes are learned.
    """
    large, small = radii
    is_large_first = scene.relation in ("left", "above")
    first, second = (large, small) if is_large_first else (small, large)
    along_first = _MARGIN + first + between(0, _JITTER, rng)
    along_second = IMAGE_SIZE - _MARGIN - second - between(0, _JITTER, rng)
    across = [IMAGE_SIZE / 2 + between(-_JITTER, _JITTER, rng) for _ in range(2)]
    ends = [(along_first, across[0]), (along_second, across[1])]
    if scene.relation in ("above", "below"):
        ends = [(y, x) for x, y in ends]
    return (ends[0], ends[1]) if is_large_first else (ends[1], ends[0])


def _coverage(shape: Shape, x: float, y: float, radius: float) -> NDArray[np.float64]:
    """Return (H, W): the part of each pixel covered by an object, which is 2 * radius wide and high.

    The shapes cover different parts of that square: 1, 0.79, 0.5 and 0.44.
    """
    u = (_STEPS[None, :] - x) / radius  # (1, W * S)
    v = (_STEPS[:, None] - y) / radius  # (H * S, 1)
    match shape:
        case "circle":
            inside = u * u + v * v <= 1
        case "square":
            inside = (abs(u) <= 1) & (abs(v) <= 1)
        case "triangle":  # point up
            inside = (abs(u) <= (v + 1) / 2) & (v <= 1)
        case "cross":
            inside = ((abs(u) <= 0.25) & (abs(v) <= 1)) | ((abs(u) <= 1) & (abs(v) <= 0.25))
    samples = inside.reshape(IMAGE_SIZE, _SAMPLES, IMAGE_SIZE, _SAMPLES)
    return samples.mean(axis=(1, 3))


def _colour(thing: Thing, rng: Random) -> list[float]:
    return [value + between(-COLOUR_JITTER, COLOUR_JITTER, rng) for value in RGB[thing.colour]]


def _noise(seed: str, size: int) -> NDArray[np.float64]:
    """Return whole numbers in [-NOISE, NOISE]."""
    drawn = np.frombuffer(hashlib.shake_256(seed.encode()).digest(size), np.uint8)
    return (drawn % (2 * NOISE + 1)).astype(np.float64) - NOISE
