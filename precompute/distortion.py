"""Measuring what int8 targets change, on a sample of the corpus, before a teacher is added."""

import math
from dataclasses import replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..images.image import DecodedBatch, ImageRef, PixelFormat, decode_image
from ..images.pixels import Decode
from ..store.cache import Cache
from ..store.format.catalog import read_part
from ..store.format.manifest import Span, Unit
from ..store.format.row_encoding import RowCodec
from ..store.format.teacher_record import Distortion
from ..store.targets.distortion import measure_distortion
from .executor.unit import unit_images
from .teacher.embedder import Embedder, is_unit
from .teacher.teacher import Teacher

_MOST_PAIRS, _LEAST_PAIRS, _SHARE = 256, 32, 8
"""An eighth of a small corpus is embedded twice, 256 pairs of a large one. 256 x 256 logits determine the
share of the KL divergence within a tenth."""


def measure_on_sample(
    cache: Cache, codec: RowCodec, teacher: Teacher, *, batch_size: int, decode: Decode
) -> Distortion:
    """Return what a codec changes for a live teacher, on images of the cache with a caption of each.

    Args:
        cache: the cache, planned.
        codec: how rows would be stored.
        teacher: the teacher.
        batch_size: images, and texts, in one forward pass.
        decode: how images are decoded.
    """
    rows_N, text_rows_N = _choose_pairs(cache)
    size = max(1, min(batch_size, len(rows_N)))  # a pass is padded to it
    embedder = Embedder(teacher, size, size)
    images_NE = embed_images(cache, rows_N, embedder, decode)
    texts_NE = _embed_texts(cache, text_rows_N, embedder)
    is_image_N, is_text_N = is_unit(images_NE), is_unit(texts_NE)
    if len(rows_N) == len(text_rows_N):
        is_image_N = is_text_N = is_image_N & is_text_N
    return measure_distortion(
        codec,
        images_NE[is_image_N],
        texts_NE[is_text_N],
        scale=math.exp(teacher.logit_scale),
        bias=teacher.logit_bias,
    )


def _choose_pairs(cache: Cache) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows of images and the text_row of a caption of each, evenly spaced in the first catalog part.

    Without captions there are only images, without images nothing.
    """
    table = "captions" if cache.manifest.parts("captions") else "samples"
    parts = cache.manifest.parts(table)
    if not parts:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    frame = read_part(table, cache.part_file(parts[0])).unique("row", keep="first").sort("row")
    most = max(_LEAST_PAIRS, min(_MOST_PAIRS, frame.height // _SHARE))
    chosen = np.unique(np.linspace(0, frame.height - 1, min(most, frame.height)).astype(np.int64))
    frame = frame[chosen]
    texts = frame["text_row"].to_numpy() if table == "captions" else np.empty(0, np.int64)
    return frame["row"].to_numpy(), texts


def embed_images(
    cache: Cache, rows_N: NDArray[np.int64], embedder: Embedder, decode: Decode
) -> NDArray[np.float16]:
    """Return the teacher's rows of whole images, (N, row_dim); NaN where one cannot be decoded."""
    form = PixelFormat(num_views=1, recipe=embedder.teacher.image, decode=decode)
    images_NE = np.full((len(rows_N), embedder.row_dim), np.nan, np.float16)
    for first in range(0, len(rows_N), embedder.image_batch):
        batch = slice(first, first + embedder.image_batch)
        refs = [_whole_image(cache, row) for row in rows_N[batch].tolist()]
        pixels = np.zeros((len(refs), *form.image_shape), np.uint8)
        images = [decode_image(ref, form, room) for ref, room in zip(refs, pixels, strict=True)]
        good = [i for i, image in enumerate(images) if image.reason is None]
        if good:
            decoded = DecodedBatch(None, refs, images, pixels)
            images_NE[batch][good] = embedder.start_images(*decoded.flat_views())()[good]
    return images_NE


def _whole_image(cache: Cache, row: int) -> ImageRef:
    one = Unit(modality="image", number=-1, rows=Span(first=row, count=1))
    [ref] = unit_images(cache, one)
    return replace(ref, boxes=ref.boxes[:1])


def _embed_texts(
    cache: Cache, text_rows_N: NDArray[np.int64], embedder: Embedder
) -> NDArray[np.float16]:
    """Return the embeddings of texts, (N, E)."""
    if len(text_rows_N) == 0:
        return np.empty((0, embedder.teacher.embed_dim), np.float16)
    low, high = int(text_rows_N.min()), int(text_rows_N.max())
    wanted = pl.col("text_row").is_in(np.unique(text_rows_N).tolist())
    texts = cache.table("texts", Span(first=low, count=high - low + 1)).filter(wanted).collect()
    by_row = dict(texts.select("text_row", "text").iter_rows())
    return embedder.start_texts([by_row[row] for row in text_rows_N.tolist()])()
