"""Embedding with a live teacher: batches of fixed size, pixels and texts in, float16 unit rows out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..store.arrays import NORM_TOLERANCE
from .teacher import OutOfMemory, Teacher


@dataclass(slots=True)
class Embedder:
    """Runs a teacher on batches padded to one size; a size that does not fit is halved for good.

    A forward pass at another batch size rounds otherwise, so short batches are padded with blanks.
    """

    teacher: Teacher
    image_batch: int
    text_batch: int

    def start_images(self, pixels_BHWC: NDArray[np.uint8]) -> Callable[[], NDArray[np.float16]]:
        """Start on any number of images; the function returned gives (B, embed_dim) float16."""

        def start(size: int) -> list[Callable[[], NDArray[np.float32]]]:
            return [
                self.teacher.embed_images(_pad_pixels(pixels_BHWC[i : i + size], size))
                for i in range(0, len(pixels_BHWC), size)
            ]

        while True:
            try:
                return _gather(start(self.image_batch), len(pixels_BHWC))
            except OutOfMemory:
                if self.image_batch == 1:
                    raise
                self.image_batch //= 2

    def start_texts(self, texts: Sequence[str]) -> Callable[[], NDArray[np.float16]]:
        """Start on any number of texts; the function returned gives (B, embed_dim) float16."""

        def start(size: int) -> list[Callable[[], NDArray[np.float32]]]:
            return [
                self.teacher.embed_texts(_pad_texts(texts[i : i + size], size))
                for i in range(0, len(texts), size)
            ]

        while True:
            try:
                return _gather(start(self.text_batch), len(texts))
            except OutOfMemory:
                if self.text_batch == 1:
                    raise
                self.text_batch //= 2


def is_unit(rows_BD: NDArray[np.float16]) -> NDArray[np.bool_]:
    """Return whether each row, along the last axis, is finite and of norm 1."""
    with np.errstate(invalid="ignore", over="ignore"):
        norms = np.linalg.norm(rows_BD.astype(np.float32), axis=-1)
        return np.abs(norms - 1) < NORM_TOLERANCE  # False for NaN


def _gather(
    waits: list[Callable[[], NDArray[np.float32]]], count: int
) -> Callable[[], NDArray[np.float16]]:
    def wait() -> NDArray[np.float16]:
        with np.errstate(over="ignore", invalid="ignore"):
            return np.concatenate([w() for w in waits])[:count].astype(np.float16)

    return wait


def _pad_pixels(pixels_BHWC: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    if len(pixels_BHWC) == size:
        return pixels_BHWC
    padded = np.zeros((size, *pixels_BHWC.shape[1:]), np.uint8)
    padded[: len(pixels_BHWC)] = pixels_BHWC
    return padded


def _pad_texts(texts: Sequence[str], size: int) -> list[str]:
    return [*texts, *[""] * (size - len(texts))]
