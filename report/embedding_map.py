"""A map of images: their embeddings on the two principal components, by faiss.

Shape letters in this file: N = images, D = embedding width.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..neighbors.thumbnails import Picture

CELL = 70
"""Side of a cell, which shows one picture."""

WIDTH, HEIGHT = 14 * CELL, 9 * CELL
"""Units of the drawing."""

MAX_GROUPS = 8
"""Colours; images of further groups share a grey one."""

_EDGE = CELL // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Dots:
    """Images of one colour."""

    name: str
    color: int
    """Number of the colour; MAX_GROUPS: that of all other groups."""

    count: int
    path: str
    """SVG path of a dot for each image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingMap:
    """A map of images."""

    explained: tuple[float, float]
    """Share of the variance on each axis."""

    num_images: int
    group_word: str
    """What the colours are, such as ``label``; empty: one colour."""

    dots: Sequence[Dots]
    pictures: Sequence[tuple[Picture, int, int]]
    """Pictures and the left and top of their cells."""


def map_images(
    images_ND: NDArray[np.float32],
    rows_N: NDArray[np.int64],
    group_N: Sequence[str | None],
    group_word: str,
) -> EmbeddingMap | None:
    """Return a map of images; None with fewer than three, or if all are equal.

    Args:
        images_ND: unit rows.
        rows_N: rows of the cache.
        group_N: what each is coloured by.
        group_word: what that is.
    """
    import faiss

    if len(rows_N) < 3:
        return None
    pca = faiss.PCAMatrix(images_ND.shape[1], 2)
    pca.train(np.ascontiguousarray(images_ND))
    variance = np.maximum(faiss.vector_to_array(pca.eigenvalues).astype(np.float64), 0)
    if not variance.sum() > 0:
        return None
    at_N2 = pca.apply(np.ascontiguousarray(images_ND)).astype(np.float64)
    low, high = np.percentile(at_N2, 0.5, axis=0), np.percentile(at_N2, 99.5, axis=0)
    spread = np.where(high > low, high - low, 1.0)
    share_N2 = np.clip((at_N2 - low) / spread, 0, 1)
    size = np.array([WIDTH - 2 * _EDGE, HEIGHT - 2 * _EDGE])
    place_N2 = (_EDGE + share_N2 * size).round().astype(int)
    return EmbeddingMap(
        explained=(float(variance[0] / variance.sum()), float(variance[1] / variance.sum())),
        num_images=len(rows_N),
        group_word=group_word,
        dots=_dots(place_N2, group_N),
        pictures=_pictures(place_N2, rows_N),
    )


def _dots(place_N2: NDArray[np.int_], group_N: Sequence[str | None]) -> list[Dots]:
    names = [name for name, _ in Counter(group_N).most_common(MAX_GROUPS)]
    parts: list[list[str]] = [[] for _ in range(MAX_GROUPS + 1)]
    for (x, y), group in zip(place_N2.tolist(), group_N, strict=True):
        parts[names.index(group) if group in names else MAX_GROUPS].append(f"M{x} {y}h0")
    words = ["none" if name is None else name for name in names]
    words += ["others"] * (MAX_GROUPS + 1 - len(names))
    return [
        Dots(name=name, color=color, count=len(part), path="".join(part))
        for color, (name, part) in enumerate(zip(words, parts, strict=True))
        if part
    ]


def _pictures(
    place_N2: NDArray[np.int_], rows_N: NDArray[np.int64]
) -> list[tuple[Picture, int, int]]:
    """Return the picture nearest to the middle of each cell that has any."""
    cell_N2 = place_N2 // CELL
    distance_N = np.abs(place_N2 - (cell_N2 * CELL + CELL / 2)).sum(axis=1)
    chosen: dict[tuple[int, int], int] = {}
    for i in np.argsort(distance_N, kind="stable").tolist():
        chosen.setdefault((int(cell_N2[i, 0]), int(cell_N2[i, 1])), i)
    return [((int(rows_N[i]), 0), x * CELL, y * CELL) for (x, y), i in sorted(chosen.items())]
