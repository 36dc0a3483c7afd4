"""A cache of given vectors and nothing else, for benchmarks of what reads them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siglip2_cache import open_cache
from siglip2_cache.store.format import layout
from siglip2_cache.store.format.layout import MODALITIES
from siglip2_cache.store.format.shard import ArrayLayout, encode_shard
from siglip2_cache.store.format.transaction import Transaction
from siglip2_cache.store.format.views import ViewPolicy
from siglip2_cache.store.io.local import LocalStorage

TEACHER = "bench"


def write_cache(root: Path, rows: NDArray[np.float16], shard_rows: int) -> Any:
    """Write a cache with these image targets and no catalog tables, by the store's own commits."""
    files = LocalStorage(root)
    none = {"first": 0, "count": 0}
    Transaction(files, layout.CACHE_RECORD).commit(
        {
            "generation": 0,
            "rows": {"first": 0, "count": len(rows)},
            "text_rows": none,
            "num_captions": 0,
            "num_problems": 0,
            "digest": "",
            "sources": [],
            "prompts_fingerprint": "",
            "shard_rows": shard_rows,
            "views": ViewPolicy().to_record(),
        }
    )
    manifest = open_cache(root).manifest
    enrolment = Transaction(files, layout.teacher_record(TEACHER))
    for modality in MODALITIES:
        metadata = manifest.array_layout(modality, rows.shape[1]).metadata()
        enrolment.add(layout.array_metadata(TEACHER, modality), json.dumps(metadata).encode())
    enrolment.commit(
        {
            "name": TEACHER,
            "source": "random",
            "identity": {},
            "embed_dim": rows.shape[1],
            "logit_scale": 0.0,
            "logit_bias": 0.0,
            "batch_size": {"image": 1, "text": 1},
            "generation": 0,
        }
    )
    array: ArrayLayout = manifest.array_layout("image", rows.shape[1])
    for unit in manifest.units("image"):
        values = np.asarray(rows[unit.rows.first : unit.rows.end])[:, None]
        commit = Transaction(files, layout.unit_record(TEACHER, "image", unit.number))
        commit.add(layout.shard(TEACHER, "image", unit.number), encode_shard(array, values))
        commit.commit(
            {
                "modality": "image",
                "unit": unit.number,
                "attempt": 0,
                "first_row": unit.rows.first,
                "num_rows": unit.rows.count,
                "rejected": [],
                "batch_size": 1,
                "provenance": {},
            }
        )
    return open_cache(root)
