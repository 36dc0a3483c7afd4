"""A small cache as a stranger writes it: from docs/reference/format.md, with zarr-python, pyarrow and json.

Nothing of siglip2_cache is imported here, so that a mistake shared by our writer and our reader shows.
"""

import hashlib
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from numpy.typing import NDArray

SHARD_ROWS = 6  # inner chunks of 2 rows, 3 a shard
EMBED_DIM = 8
VIEWS = {
    "num_views": 2,
    "seed": 7,
    "min_area": 0.25,
    "max_aspect": 4 / 3,
    "flip_probability": 0.5,
}

# (first, count): units of 6, 6 and 3 rows, a gap of 3, a unit of 4
SPANS = {"image": [(0, 15), (18, 4)], "text": [(0, 10), (12, 3)]}

REJECTED = {
    "image": {8: "no such file", 9: "empty: 0 bytes", 20: "damaged image: truncated"},
    "text": {3: "the teacher returned an embedding that is not finite"},
}
"""Rows 8 and 9 are a whole inner chunk: one that zarr-python leaves out unless told otherwise."""

# (row, text_row, lang): texts 1 and 4 are shared, row 2 has no caption, text 5 has two languages
CAPTIONS: list[list[tuple[int, int, str | None]]] = [
    [
        (0, 0, "en"),
        (0, 1, "de"),
        (1, 1, "de"),
        (3, 2, None),
        (4, 3, "en"),
        (5, 4, "en"),
        (6, 4, "en"),
        (7, 5, "de"),
        (7, 5, "nl"),
        (14, 6, None),
        (14, 7, None),
    ],
    [(18, 1, "de"), (19, 12, "en"), (21, 13, "en"), (21, 14, "de")],
]
TEXTS = [
    [
        *("a cat", "ein Hund", "two dogs", "Über allen Gipfeln", "猫", "warm", "six", "seven"),
        *("a photo of a cat", "a photo of a dog"),
    ],
    ["twelve", "thirteen", "vierzehn"],
]
PROMPTS = [(8, "cat", "a photo of a {}", "en"), (9, "dog", "a photo of a {}", "en")]


@dataclass(frozen=True)
class ForeignCache:
    """A cache and what must be read from it."""

    root: Path
    targets: dict[tuple[str, str], NDArray[np.float16]]
    """(teacher, modality): the whole array, NaN in gaps and rejected rows."""

    views: dict[tuple[int, int], tuple[float, float, float, float, bool]]
    """(row, view): top, left, height, width, flip."""

    keys: dict[int, str]
    """Key of each row."""

    patches: tuple[NDArray[np.float16], NDArray[np.int64]] | None = None
    """Values (rows, views, cells, PATCH_DIM) and grids (rows, views, 2) of patch targets; zeros without."""


def write_foreign_cache(
    root: Path,
    *,
    compressed: bool = False,
    teachers: tuple[str, ...] = ("tiny",),
    int8: bool = False,
    patches: bool = False,
) -> ForeignCache:
    """Write a finished cache of two generations into a folder and return what it holds.

    With ``int8`` the targets are stored as int8, and those returned are what the page's reader restores.
    With ``patches`` there are patch targets of each view.
    """
    keys = {
        row: f"photos/{row:04d}" if first == 0 else f"drawings/{row:04d}"
        for first, count in SPANS["image"]
        for row in range(first, first + count)
    }
    views = {(row, v): _draw_view(key, v) for row, key in keys.items() for v in (0, 1)}
    _write_catalog(root, keys, views)
    targets: dict[tuple[str, str], NDArray[np.float16]] = {}
    made: list[NDArray[Any]] = []
    for seed, teacher in enumerate(teachers):
        for modality in ("image", "text"):
            targets[teacher, modality] = _make_targets(modality, seed)
        stored: dict[tuple[str, str], NDArray[Any]] = dict(targets)
        if int8:
            for modality in ("image", "text"):
                stored[teacher, modality] = _encode_int8(targets[teacher, modality])
                targets[teacher, modality] = _restore_int8(stored[teacher, modality])
        if patches:
            stored[teacher, "patch"], *made = _make_patches()
        _write_teacher(root, teacher, stored, compressed=compressed)
    return ForeignCache(root, targets, views, keys, (made[0], made[1]) if patches else None)


# -- records


def write_record(path: Path, fields: dict[str, Any]) -> None:
    """Write a record with its checksum."""
    body = json.dumps({"format_version": 2, **fields}, indent=1)[:-2].encode()
    checksum = hashlib.sha256(body).hexdigest().encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body + b',\n "checksum": "' + checksum + b'"\n}\n')


def _describe(root: Path, path: str, **described: Any) -> dict[str, Any]:
    data = (root / path).read_bytes()
    return {**described, "num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


# -- catalog


def _write_catalog(root: Path, keys: dict[int, str], views: dict[tuple[int, int], Any]) -> None:
    (root / "catalog").mkdir(parents=True)
    photos = _source("photos", "table", "/corpora/photos/captions.jsonl", "/corpora/photos")
    drawings = _source("drawings", "folder", "/corpora/drawings", "/corpora/drawings")
    digest = ""
    for generation in (0, 1):
        first, count = SPANS["image"][generation]
        rows = list(range(first, first + count))
        files = _write_parts(root, generation, rows, keys, views)
        lines = [digest, *(f"{path} {files[path]['sha256']}" for path in sorted(files))]
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        text_first, text_count = SPANS["text"][generation]
        fields = {
            "generation": generation,
            "rows": {"first": first, "count": count},
            "text_rows": {"first": text_first, "count": text_count},
            "num_captions": len(CAPTIONS[generation]),
            "num_problems": 1 - generation,
            "digest": digest,
            "sources": [photos, drawings][: generation + 1],
            "prompts_fingerprint": "labels and templates",
        }
        if generation == 0:
            fields |= {"shard_rows": SHARD_ROWS, "views": VIEWS}
        path = "catalog/append-00001.json" if generation else "cache.json"
        write_record(root / path, {**fields, "files": files})


def _source(name: str, kind: str, location: str, root: str) -> dict[str, Any]:
    return {
        "name": name,
        "kind": kind,
        "location": location,
        "root": root,
        "fingerprint": "0" * 64,
        "settings": {},
    }


def _write_parts(
    root: Path,
    generation: int,
    rows: list[int],
    keys: dict[int, str],
    views: dict[tuple[int, int], Any],
) -> dict[str, Any]:
    text_first, _ = SPANS["text"][generation]
    source = "drawings" if generation else "photos"
    num_before = SPANS["image"][0][1] if generation else 0
    numbers = [num_before + i for i in range(len(rows))]
    tables: dict[str, list[tuple[Any, ...]]] = {
        "files": [
            (n, source, f"{row:04d}.jpg", 1000 + row, 10**18)
            for n, row in zip(numbers, rows, strict=True)
        ],
        "samples": [
            (row, keys[row], n, *(None,) * 5, "cat" if row % 2 else None, None)
            for n, row in zip(numbers, rows, strict=True)
        ],
        "captions": list(CAPTIONS[generation]),
        "texts": [(text_first + i, text) for i, text in enumerate(TEXTS[generation])],
        "views": [(row, view, *views[row, view]) for row in rows for view in (0, 1)],
        "prompts": [] if generation else list(PROMPTS),
        "problems": [] if generation else [("photos", "line 9", None, "no image is named")],
    }
    files: dict[str, Any] = {}
    for name, lines in tables.items():
        # Two parts, where there are lines enough, so that a table is more than a file.
        halves = [lines[:5], lines[5:]] if name == "samples" and generation == 0 else [lines]
        for half in halves:
            if half:
                number = 0 if generation == 0 else (2 if name == "samples" else 1)
                number += halves.index(half)
                path = f"catalog/{name}-{number:05d}.parquet"
                columns = dict(zip(_SCHEMAS[name].names, zip(*half, strict=True), strict=True))
                pq.write_table(pa.table(columns, schema=_SCHEMAS[name]), root / path)
                files[path] = _describe(root, path, table=name, num_rows=len(half))
    return files


_SCHEMAS = {
    "files": pa.schema(
        {
            "file": pa.int64(),
            "source": pa.string(),
            "path": pa.string(),
            "num_bytes": pa.int64(),
            "mtime_ns": pa.int64(),
        }
    ),
    "samples": pa.schema(
        {
            "row": pa.int64(),
            "key": pa.string(),
            "file": pa.int64(),
            "member": pa.string(),
            "offset": pa.int64(),
            "length": pa.int64(),
            "row_group": pa.int64(),
            "index": pa.int64(),
            "label": pa.string(),
            "source_sha256": pa.binary(32),
        }
    ),
    "captions": pa.schema({"row": pa.int64(), "text_row": pa.int64(), "lang": pa.string()}),
    "texts": pa.schema({"text_row": pa.int64(), "text": pa.string()}),
    "views": pa.schema(
        {
            "row": pa.int64(),
            "view": pa.int16(),
            "top": pa.float32(),
            "left": pa.float32(),
            "height": pa.float32(),
            "width": pa.float32(),
            "flip": pa.bool_(),
        }
    ),
    "prompts": pa.schema(
        {
            "text_row": pa.int64(),
            "label": pa.string(),
            "template": pa.string(),
            "lang": pa.string(),
        }
    ),
    "problems": pa.schema(
        {"source": pa.string(), "place": pa.string(), "key": pa.string(), "reason": pa.string()}
    ),
}
_IMAGES_SCHEMA = pa.schema(
    {"row": pa.int64(), "width": pa.int32(), "height": pa.int32(), "sha256": pa.binary(32)}
)


def _draw_view(key: str, view: int) -> tuple[float, float, float, float, bool]:
    if view == 0:
        return 0.0, 0.0, 1.0, 1.0, False
    message = f"{VIEWS['seed']}\0{view}\0{key}".encode()
    digest = hashlib.blake2b(message, digest_size=40, person=b"siglip2-view-1").digest()
    u = [word / 2**64 for word in struct.unpack("<5Q", digest)]
    area = VIEWS["min_area"] + (1 - VIEWS["min_area"]) * u[0]
    spread = (min(VIEWS["max_aspect"], 1 / area) - 1) * abs(2 * u[1] - 1)
    aspect = 1 + spread if u[1] >= 0.5 else 1 / (1 + spread)
    height = min(1.0, math.sqrt(area / aspect))
    width = min(1.0, math.sqrt(area * aspect))
    box = np.array([u[2] * (1 - height), u[3] * (1 - width), height, width], np.float32)
    top, left, height, width = box.tolist()
    return top, left, height, width, u[4] < VIEWS["flip_probability"]


# -- teachers


def _make_targets(modality: str, seed: int) -> NDArray[np.float16]:
    """Return random unit rows; NaN in gaps and rejected rows."""
    num_rows = sum(SPANS[modality][-1])
    row_shape = (2, EMBED_DIM) if modality == "image" else (EMBED_DIM,)
    random = np.random.default_rng([seed, len(modality)])
    values = random.normal(size=(num_rows, *row_shape))
    values /= np.linalg.norm(values, axis=-1, keepdims=True)
    planned = [row for first, count in SPANS[modality] for row in range(first, first + count)]
    missing = np.ones(num_rows, np.bool_)
    missing[planned] = False
    missing[list(REJECTED[modality])] = True
    values[missing] = np.nan
    return values.astype(np.float16)


# An orthonormal map of blocks of 4: not symmetric, so that its transpose would show.
ROTATION = np.linalg.qr(np.random.default_rng(4).normal(size=(4, 4)))[0].astype(np.float32)


def _encode_int8(targets: NDArray[np.float16]) -> NDArray[np.int8]:
    values = targets.astype(np.float64)
    values = (values.reshape(-1, 4) @ ROTATION.T.astype(np.float64)).reshape(values.shape)
    step = np.abs(values).max(axis=-1, keepdims=True) / 127
    has_target = np.isfinite(step)
    steps = np.rint(np.where(has_target, values / step, 0))
    norms = np.maximum(np.linalg.norm(steps, axis=-1, keepdims=True), 1)
    scale = np.where(has_target, np.linalg.norm(values, axis=-1, keepdims=True) / norms, 0)
    tail = np.ascontiguousarray(scale.astype("<f4")).view(np.int8)
    return np.concatenate([steps.astype(np.int8), tail], axis=-1)


def _restore_int8(stored: NDArray[np.int8]) -> NDArray[np.float16]:
    values, scale = stored[..., :-4].astype("f4"), stored[..., -4:].copy().view("<f4")
    scale[scale == 0] = np.nan
    blocks = values.reshape(-1, 4) @ ROTATION
    return (blocks.reshape(values.shape) * scale).astype(np.float16)


PATCH_GRID, PATCH_DIM, PATCH_WIDTH = 2, 3, 5
PATCH_BASIS = np.linalg.qr(np.random.default_rng(5).normal(size=(5, 3)))[0].T.astype(np.float32)
_GRIDS = [(2, 2), (1, 3), (1, 1)]
"""Grids of views, in turn: as many cells as there is room for, and fewer."""


def _make_patches() -> tuple[NDArray[np.int8], NDArray[np.float16], NDArray[np.int64]]:
    """Return the stored patch targets of all rows, and the values and grids that they stand for."""
    num_rows = sum(SPANS["image"][-1])
    stored = np.zeros((num_rows, 2, PATCH_GRID**2, PATCH_DIM + 8), np.int8)
    values = np.zeros((num_rows, 2, PATCH_GRID**2, PATCH_DIM), np.float16)
    grids = np.zeros((num_rows, 2, 2), np.int64)
    random = np.random.default_rng(6)
    planned = [row for first, count in SPANS["image"] for row in range(first, first + count)]
    for row in sorted(set(planned) - set(REJECTED["image"])):
        for view in (0, 1):
            rows, columns = grids[row, view] = _GRIDS[(row + view) % 3]
            for cell in range(rows * columns):
                scale = np.float32(random.uniform(0.01, 0.1))
                steps = random.integers(-127, 128, PATCH_DIM)
                tail = struct.pack("<fHH", scale, rows, columns)
                stored[row, view, cell, :-8] = steps
                stored[row, view, cell, -8:] = np.frombuffer(tail, np.int8)
                values[row, view, cell] = (steps.astype(np.float32) * scale).astype(np.float16)
    return stored, values, grids


def _write_matrix(root: Path, folder: str, matrix: NDArray[np.float32]) -> dict[str, Any]:
    shape = matrix.shape
    array = zarr.create_array(
        root / folder, shape=shape, chunks=shape, dtype="float32", filters=None, compressors=None
    )
    array[:] = matrix
    return {path: _describe(root, path) for path in (f"{folder}/zarr.json", f"{folder}/c/0/0")}


def _write_teacher(
    root: Path,
    teacher: str,
    targets: dict[tuple[str, str], NDArray[Any]],
    *,
    compressed: bool,
) -> None:
    folder = f"teachers/{teacher}"
    names = [name for name in ("image", "text", "patch") if (teacher, name) in targets]
    metadata = [f"{folder}/{name}.zarr/zarr.json" for name in names]
    arrays: dict[str, Any] = {}
    # The teacher was there when the first generation was all, and its arrays grew with the second.
    for generation in (0, 1):
        for name in names:
            num_rows = sum(SPANS["text" if name == "text" else "image"][generation])
            if generation == 0:
                values = targets[teacher, name]
                path = root / folder / f"{name}.zarr"
                arrays[name] = _create_array(path, num_rows, values, compressed)
            else:
                arrays[name].resize((num_rows, *arrays[name].shape[1:]))
        files = {path: _describe(root, path) for path in metadata}
        if generation == 0:
            fields = _teacher(teacher)
            if targets[teacher, "image"].dtype == np.int8:
                files |= _write_matrix(root, f"{folder}/rotation.zarr", ROTATION)
                fields |= INT8_FIELDS
            if "patch" in names:
                files |= _write_matrix(root, f"{folder}/patch_basis.zarr", PATCH_BASIS)
                fields |= PATCH_FIELDS
            write_record(root / folder / "teacher.json", {**fields, "files": files})
        else:
            record = {"generation": generation, "files": files}
            write_record(root / folder / "commits/arrays-00001.json", record)
    for modality in ("image", "text"):
        for span_first, span_count in SPANS[modality]:
            end = span_first + span_count
            for first in range(span_first, end, SHARD_ROWS):
                last = min(first + SHARD_ROWS, end)
                for name in names:
                    if name == modality or (name, modality) == ("patch", "image"):
                        arrays[name][first:last] = targets[teacher, name][first:last]
                _write_unit_record(
                    root, folder, modality, first, last, has_patches="patch" in names
                )


IMPORTED = "imported"
"""Name of a teacher whose targets were imported."""


def _teacher(name: str) -> dict[str, Any]:
    digest = hashlib.sha256(name.encode()).hexdigest()
    return {
        "name": name,
        "source": f"example/{name}",
        "identity": {"imported" if name == IMPORTED else "weights_sha256": digest},
        "embed_dim": EMBED_DIM,
        "dtype": "float16",
        "logit_scale": 4.75,
        "logit_bias": -16.799999237060547,
        "batch_size": {"image": 1, "text": 1} if name == IMPORTED else {"image": 4, "text": 8},
        "generation": 0,
    }


INT8_FIELDS = {
    "format_version": 3,
    "dtype": "int8",
    "distortion": {
        "kl_share": 0.0002,
        "largest_logit_error": 0.5,
        "mean_squared_error": 1e-5,
        "num_images": 12,
        "num_texts": 12,
    },
}


PATCH_FIELDS = {
    "format_version": 4,
    "patches": {
        "grid": PATCH_GRID,
        "dim": PATCH_DIM,
        "width": PATCH_WIDTH,
        "rms": 0.7,
        "kept": 0.9,
        "num_images": 12,
    },
}


def _create_array(
    path: Path, num_rows: int, values: NDArray[Any], compressed: bool
) -> zarr.Array[Any]:
    rest = values.shape[1:]
    last = "embed_dim" if values.dtype == np.float16 else "stored"
    return zarr.create_array(
        path,
        shape=(num_rows, *rest),
        shards=(SHARD_ROWS, *rest),
        chunks=(2, *rest),
        dtype=values.dtype,
        filters=None,
        compressors=zarr.codecs.ZstdCodec() if compressed else None,
        fill_value=float("nan") if values.dtype == np.float16 else 0,
        dimension_names=[*["row", "view", "cell"][: len(rest)], last],
        config={"write_empty_chunks": True},
    )


def _write_unit_record(
    root: Path, folder: str, modality: str, first: int, last: int, *, has_patches: bool
) -> None:
    unit = first // SHARD_ROWS
    rejected = {r: why for r, why in REJECTED[modality].items() if first <= r < last}
    shard = f"{folder}/{modality}.zarr/c/{unit}/" + ("0/0" if modality == "image" else "0")
    files = {shard: _describe(root, shard)}
    if modality == "image":
        path = f"{folder}/images/{unit:05d}.parquet"
        (root / path).parent.mkdir(exist_ok=True)
        lines = [
            (row, None, None, None)
            if row in rejected
            else (row, 640, 480, hashlib.sha256(b"image %d" % row).digest())
            for row in range(first, last)
        ]
        columns = dict(zip(_IMAGES_SCHEMA.names, zip(*lines, strict=True), strict=True))
        pq.write_table(pa.table(columns, schema=_IMAGES_SCHEMA), root / path)
        files[path] = _describe(root, path)
        if has_patches:
            patch = f"{folder}/patch.zarr/c/{unit}/0/0/0"
            files[patch] = _describe(root, patch)
    record = {
        "modality": modality,
        "unit": unit,
        "attempt": 0,
        "first_row": first,
        "num_rows": last - first,
        "num_rejected": len(rejected),
        "rejected": [{"row": row, "reason": why} for row, why in sorted(rejected.items())],
        "batch_size": 0 if folder.endswith(IMPORTED) else 4 if modality == "image" else 8,
        "provenance": {"written_by": "tests/foreign_cache.py"},
        "files": files,
    }
    write_record(root / folder / f"commits/{modality}-{unit:05d}.json", record)
