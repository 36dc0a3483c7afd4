"""Verifying a cache against its live teacher: embed some rows again and compare them with the targets."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..errors import SettingError
from ..images.image import DecodedBatch, DecodedImage, ImageRef, PixelFormat, decode_image
from ..siglip import PatchPooling
from ..store.cache import Cache
from ..store.format.layout import ArrayName
from ..store.format.manifest import Span, Unit
from ..store.format.teacher_record import TeacherRecord
from .executor.unit import unit_images
from .teacher.embedder import Embedder, split_images
from .teacher.identity import recorded_dtype
from .teacher.reload import LiveTeacher
from .teacher.siglip_teacher import load_teacher
from .teacher.teacher import TeacherFactory

TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-3, "float16": 5e-3}
"""Largest 1 - cosine due to another machine or batch size, by compute dtype. Measured on one machine:
float32 1e-6 (float16 storage), bfloat16 5e-5; a wrong recipe gives 1e-2 and more."""


_INT8 = 1e-3
"""The same due to patch targets being int8: 1e-5 to 1e-4 on views of many values."""


@dataclass(slots=True, kw_only=True)
class Cosines:
    """Cosines between stored and live embeddings."""

    count: int = 0
    min: float = 1.0
    mean: float = 1.0


@dataclass(slots=True)
class LiveCheck:
    """Result of a comparison with the live teacher."""

    teacher: str
    cosines: dict[ArrayName, Cosines] = field(default_factory=dict[ArrayName, Cosines])
    faults: list[str] = field(default_factory=list[str])


def verify_live(
    cache: Cache,
    num_rows: int,
    *,
    teacher: str | None = None,
    checkpoint: str | None = None,
    device: str = "auto",
    seed: int = 0,
    make_teacher: TeacherFactory = load_teacher,
) -> LiveCheck:
    """Embed random rows again, and return how they compare with the targets.

    Args:
        cache: the cache.
        num_rows: images, with all views, and texts; fewer if the cache has fewer.
        teacher: name in the cache; None: the only one.
        checkpoint: where the checkpoint is now; None: where it was when it was added.
        device: as for build.
        seed: random seed for choosing rows.
        make_teacher: loads the model.

    Raises:
        CheckpointError: the checkpoint is not found, or damaged.
        SettingError: it is not the one that the cache was made with.
    """
    if num_rows < 1:
        raise SettingError(f"sample must be at least 1 row, got {num_rows}")
    live = LiveTeacher(
        cache, teacher=teacher, checkpoint=checkpoint, device=device, make_teacher=make_teacher
    )
    record, embedder = live.record, live.embedder
    patch_map = cache.patch_map(record.name)
    if patch_map is not None:
        embedder.teacher.patches = PatchPooling(patch_map.settings.grid, patch_map.basis_PW)
    result = LiveCheck(record.name)
    chooser = np.random.default_rng(seed)
    for modality, targets in (
        ("image", cache.image_targets(record.name)),
        ("text", cache.text_targets(record.name)),
    ):
        rows = targets.available_rows()
        rows = np.sort(chooser.choice(rows, min(num_rows, len(rows)), replace=False))
        if len(rows) == 0:
            continue
        if modality == "image":
            form = live.pixel_format(cache.num_views)
            rows, live_NR = _embed_images(cache, record, rows, form, embedder, result)
            views = np.tile(np.arange(cache.num_views), len(rows))
            rows_N, E = np.repeat(rows, cache.num_views), record.embed_dim
            _compare("image", targets.read(rows_N, views), live_NR[:, :E], record, result)
            if patch_map is not None:
                stored = cache.patch_targets(record.name).read(rows_N, views)
                # With the grids: other ones are another teacher.
                found_NR = np.concatenate(
                    [stored.values_VCP.reshape(len(rows_N), -1), stored.grids_V2], 1
                )
                _compare("patch", found_NR, live_NR[:, E:], record, result)
        else:
            texts = cache.texts().filter(pl.col("text_row").is_in(rows.tolist()))
            ordered = texts.sort("text_row").collect()["text"].to_list()
            _compare("text", targets.read(rows), embedder.start_texts(ordered)(), record, result)
    return result


def _embed_images(
    cache: Cache,
    record: TeacherRecord,
    rows: NDArray[np.int64],
    form: PixelFormat,
    embedder: Embedder,
    result: LiveCheck,
) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
    """Return the rows whose images have not changed, and what the live teacher gives for their views."""
    size, _ = split_images(form.recipe, record.batch_size["image"], form.num_views)
    found: list[NDArray[np.float16]] = [np.empty((0, embedder.row_dim), np.float16)]
    sound: list[int] = []
    decoded: list[tuple[ImageRef, DecodedImage, NDArray[np.uint8]]] = []

    def embed() -> None:
        refs, images, pixels = zip(*decoded, strict=True)
        batch = DecodedBatch(None, refs, list(images), np.stack(pixels))
        found.append(embedder.start_images(*batch.flat_views())())
        decoded.clear()

    for row in rows.tolist():
        one = np.zeros(form.image_shape, np.uint8)
        [ref] = unit_images(cache, Unit(modality="image", number=-1, rows=Span(first=row, count=1)))
        image = decode_image(ref, form, one)
        if image.reason is not None or image.sha256 != _recorded_sha256(cache, record, row):
            key = cache.samples().filter(pl.col("row") == row).collect()["key"][0]
            why = image.reason or "its bytes are not those the teacher saw"
            result.faults.append(f"image {key!r} (row {row}): {why}")
            continue
        sound.append(row)
        decoded.append((ref, image, one))
        if len(decoded) == size:
            embed()
    if decoded:
        embed()
    return np.array(sound, np.int64), np.concatenate(found)


def _recorded_sha256(cache: Cache, record: TeacherRecord, row: int) -> bytes:
    seen = cache.seen(record.name, row // cache.shard_rows)
    return seen.filter(pl.col("row") == row)["sha256"][0]


def _compare(
    array: ArrayName,
    stored_ND: NDArray[Any],
    live_ND: NDArray[np.float16],
    record: TeacherRecord,
    result: LiveCheck,
) -> None:
    if len(stored_ND) == 0:
        return
    a, b = stored_ND.astype(np.float64), live_ND.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine_N = np.nan_to_num((a * b).sum(axis=1) / norms, nan=-1.0)
    result.cosines[array] = Cosines(
        count=len(cosine_N), min=float(cosine_N.min()), mean=float(cosine_N.mean())
    )
    rounding = _INT8 if array == "patch" else 0.0
    limit = 1 - TOLERANCE[recorded_dtype(record)] - rounding
    if cosine_N.min() < limit:
        result.faults.append(
            f"{array}: {int((cosine_N < limit).sum())} of {len(cosine_N)} embeddings differ from "
            f"the live teacher's, cosine {cosine_N.min():.6f} at worst where {limit} is expected"
        )
