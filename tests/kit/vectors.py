"""A cache of vectors alone: targets and no catalog tables, for searches of more rows than a drawn corpus."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siglip2_cache import open_cache
from siglip2_cache.store.format import layout
from siglip2_cache.store.format.layout import MODALITIES, Modality
from siglip2_cache.store.format.shard import encode_shard
from siglip2_cache.store.format.transaction import Transaction
from siglip2_cache.store.format.views import ViewPolicy
from siglip2_cache.store.io.local import LocalStorage

TEACHER = "vectors"


def write_vectors(
    root: Path, vectors: Mapping[Modality, NDArray[np.float16]], *, shard_rows: int = 1024
) -> Path:
    """Write a cache of image targets (N, views, D) or (N, D), and of text targets (M, D)."""
    files = LocalStorage(root)
    counts = {m: len(vectors[m]) if m in vectors else 0 for m in MODALITIES}
    embed_dim = next(iter(vectors.values())).shape[-1]
    images = vectors.get("image")
    num_views = images.shape[1] if images is not None and images.ndim == 3 else 1
    generation = {
        "generation": 0,
        "rows": {"first": 0, "count": counts["image"]},
        "text_rows": {"first": 0, "count": counts["text"]},
        "num_captions": 0,
        "num_problems": 0,
        "digest": "0" * 64,
        "sources": [],
        "prompts_fingerprint": "",
        "shard_rows": shard_rows,
        "views": ViewPolicy(num_views=num_views).to_record(),
    }
    Transaction(files, layout.CACHE_RECORD).commit(generation)
    manifest = open_cache(root).manifest
    transaction = Transaction(files, layout.teacher_record(TEACHER))
    for modality in MODALITIES:
        metadata = manifest.array_layout(modality, embed_dim).metadata()
        transaction.add(layout.array_metadata(TEACHER, modality), json.dumps(metadata).encode())
    teacher: dict[str, Any] = {"name": TEACHER, "source": "random", "identity": {}}
    teacher |= {"embed_dim": embed_dim, "logit_scale": 4.75, "logit_bias": -16.8}
    transaction.commit({**teacher, "batch_size": {"image": 1, "text": 1}, "generation": 0})
    for modality in vectors:
        for unit in manifest.units(modality):
            commit_unit(root, modality, unit.number, vectors[modality])
    return root


def commit_unit(
    root: Path,
    modality: Modality,
    number: int,
    vectors: NDArray[np.float16],
    *,
    attempt: int = 0,
    rejected: tuple[int, ...] = (),
) -> None:
    """Commit an attempt at a unit of a cache of vectors; rejected rows become NaN."""
    manifest = open_cache(root).manifest
    array = manifest.array_layout(modality, vectors.shape[-1])
    [unit] = [u for u in manifest.units(modality) if u.number == number]
    values = vectors[unit.rows.first : unit.rows.end].reshape(-1, *array.row_shape).copy()
    values[[row - unit.rows.first for row in rejected]] = np.nan
    record = layout.unit_record(TEACHER, modality, number, attempt)
    commit = Transaction(LocalStorage(root), record)
    commit.add(layout.shard(TEACHER, modality, number), encode_shard(array, values))
    fields = {"modality": modality, "unit": number, "attempt": attempt}
    fields |= {"first_row": unit.rows.first, "num_rows": unit.rows.count}
    fields |= {"batch_size": 1, "provenance": {}}
    commit.commit({**fields, "rejected": [{"row": r, "reason": "tests"} for r in rejected]})


def draw_vectors(
    num_rows: int, embed_dim: int = 32, *, seed: int = 0, clusters: int = 50
) -> NDArray[np.float16]:
    """Return unit rows in clusters, as embeddings lie."""
    chooser = np.random.default_rng(seed)
    centres = chooser.standard_normal((clusters, embed_dim))
    rows = centres[chooser.integers(0, clusters, num_rows)]
    rows = rows + 0.4 * chooser.standard_normal((num_rows, embed_dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
