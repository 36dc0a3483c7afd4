"""Embeddings as other programs write them: clip-retrieval's folders, tars of DataCompDR."""

import gzip
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from kit.fakes import draw_image

Crops = list[tuple[list[int], list[tuple[int, float]] | None]]


def unit(rows: NDArray[Any]) -> NDArray[Any]:
    """Return rows of norm 1."""
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def pairs(num: int, width: int, *, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return unit rows of images and of texts; each is nearest to its own."""
    random = np.random.default_rng(seed)
    both = random.normal(size=(num, width))
    images, texts = (both + 0.5 * random.normal(size=(num, width)) for _ in range(2))
    return unit(images), unit(texts)


def write_clip_retrieval(
    folder: Path,
    paths: Sequence[str],
    captions: Sequence[str],
    images: NDArray[Any],
    texts: NDArray[Any] | None,
    *,
    num_parts: int = 2,
) -> Path:
    """Write partitions as OutputSink of clip_retrieval/clip_inference/writer.py does."""
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    for part, chosen in enumerate(np.array_split(np.arange(len(paths)), num_parts)):
        np.save(folder / f"img_emb/img_emb_{part}.npy", images[chosen].astype(np.float16))
        columns: dict[str, Any] = {"image_path": [paths[i] for i in chosen]}
        if texts is not None:
            np.save(folder / f"text_emb/text_emb_{part}.npy", texts[chosen].astype(np.float16))
            columns["caption"] = [captions[i] for i in chosen]
        pq.write_table(pa.table(columns), folder / f"metadata/metadata_{part}.parquet")
    return folder


def npz_bytes(**arrays: NDArray[Any]) -> bytes:
    """Return a .npz file."""
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def pth_gz_bytes(**arrays: NDArray[Any]) -> bytes:
    """Return a .pth.gz file with tensors of bfloat16, as DataCompDR-12M-bf16 has them."""
    import torch

    out = io.BytesIO()
    torch.save({name: torch.tensor(rows).bfloat16() for name, rows in arrays.items()}, out)
    return gzip.compress(out.getvalue())


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """Write a tar with these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def dr_sample(
    key: str,
    number: int,
    images: NDArray[Any],
    texts: NDArray[Any],
    crops: Crops,
    *,
    in_torch: bool = False,
    size: tuple[int, int] = (24, 16),
) -> dict[str, bytes]:
    """Return the members of a sample of DataCompDR whose image was added: uid.jpg, uid.npz, ..."""
    picture = io.BytesIO()
    draw_image(number, size).save(picture, "PNG")
    arrays = {"image_emb": images, "text_emb": texts}
    embeddings = (
        {f"{key}.pth.gz": pth_gz_bytes(**arrays)}
        if in_torch
        else {f"{key}.npz": npz_bytes(**{n: rows.astype(np.float16) for n, rows in arrays.items()})}
    )
    captions = [
        f"web caption {number}",
        *(f"made caption {number} {i}" for i in range(1, len(texts))),
    ]
    return {
        f"{key}.url.txt": b"http://example.org/a.jpg",
        f"{key}.syn.json": json.dumps({"syn_text": captions[1:]}).encode(),
        f"{key}.paug.json": json.dumps({"param_aug": json.dumps(crops)}).encode(),
        **embeddings,
        f"{key}.json": json.dumps({"uid": key, "sha256": "0" * 64}).encode(),
        f"{key}.png": picture.getvalue(),
        f"{key}.txt": captions[0].encode(),
    }


def draw_crops(num: int, seed: int, size: tuple[int, int] = (24, 16)) -> Crops:
    """Return crops [top, left, height, width] in pixels; RandAugment does nothing to even ones."""
    random = np.random.default_rng(seed)
    crops: Crops = []
    for i in range(num):
        width, height = (int(random.integers(4, n + 1)) for n in size)
        left, top = (
            int(random.integers(0, size[0] - width + 1)),
            int(random.integers(0, size[1] - height + 1)),
        )
        crops.append(([top, left, height, width], [(0, 0.0), (6 * (i % 2), 0.5)]))
    return crops


def write_datacompdr(
    folder: Path, num: int, *, num_crops: int = 2, width: int = 16, num_texts: int = 3
) -> tuple[Path, NDArray[Any], NDArray[Any]]:
    """Write tars of 3 samples, every second in torch's format; return them, and what they hold.

    Returns:
        folder, (num, crops, width) and (num, texts, width), of norm sqrt 2 as two concatenated models have.
    """
    random = np.random.default_rng(1)
    own, _ = pairs(num, width, seed=1)
    images = np.sqrt(2) * unit(own[:, None] + 0.1 * random.normal(size=(num, num_crops, width)))
    texts = np.sqrt(2) * unit(own[:, None] + 0.1 * random.normal(size=(num, num_texts, width)))
    for first in range(0, num, 3):
        members: dict[str, bytes] = {}
        for i in range(first, min(first + 3, num)):
            members |= dr_sample(
                f"{i:08x}", i, images[i], texts[i], draw_crops(num_crops, i), in_torch=i % 2 == 1
            )
        write_tar(folder / f"{first // 3:08d}.tar", members)
    return folder, images, texts


def picture_size(data: bytes) -> tuple[int, int]:
    """Return (width, height)."""
    with Image.open(io.BytesIO(data)) as image:
        return image.size
