"""Embeddings and eval sets that are evaluated without a model."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siglip2_cache.student.evaluation.embeddings import Embeddings
from siglip2_cache.student.evaluation.eval_set import CacheEvalSet


def unit_rows(seed: int, shape: tuple[int, int]) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).normal(size=shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def embeddings(images: NDArray[np.float32], texts: NDArray[np.float32], **more: Any) -> Embeddings:
    settings = {"name": "some", "logit_scale": float(np.log(20)), "logit_bias": -5.0} | more
    return Embeddings(images_ND=images, texts_MD=texts, **settings)


def eval_set(**changes: Any) -> CacheEvalSet:
    """Four images, the last a copy of the third; captions 0 to 3, of which 1 is shared; prompts 4 to 6."""
    whole = CacheEvalSet(
        split="val",
        num_split_images=9,
        rows_N=np.array([2, 3, 5, 8]),
        sha256_N=np.zeros((4, 32), np.uint8),
        picture_N=np.array([7, 1, 4, 4]),
        text_rows_M=np.array([0, 1, 2, 3, 10, 11, 12]),
        image_P=np.array([0, 0, 1, 2, 3]),
        text_P=np.array([0, 1, 1, 2, 3]),
        lang_P=np.array([0, 1, 1, 0, 2], np.int32),
        langs=("de", "en", None),
        label_N=np.array([0, 1, 1, -1]),
        class_Q=np.array([0, 1, 1]),
        prompt_Q=np.array([4, 5, 6]),
        lang_Q=(None, None, "en"),
        num_texts_in_train=2,
        num_labelled=3,
        unprompted=(),
        has_prompts=True,
    )
    return replace(whole, **changes)
