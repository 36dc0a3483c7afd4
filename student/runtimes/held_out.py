"""Pictures and captions of a cache, in memory, that exported files and the student are compared on.

Shape letters in this file:
    N = images, M = texts, P = pairs of an image with its caption, D = embedding width, E = that of the
    teacher, B = batch.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import ExportError, SettingError
from ...siglip import (
    Checkpoint,
    NaflexRecipe,
    TextTokenizer,
    pool_images,
    pool_token_ids,
    text_tower,
    unit_rows,
    vision_tower,
)
from ...store.cache import Cache
from ..evaluation.compare import EvalConfig, eval_pictures, open_eval_set
from ..evaluation.embeddings import Embeddings, teacher_embeddings, unit_rows_float32
from ..evaluation.eval_set import CacheEvalSet
from ..evaluation.pictures import decoded_pictures, read_texts

BATCH = 16
"""Images, and texts, in one forward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Decoded pictures and their captions."""

    pixels_N: NDArray[np.uint8]
    """(N, *view_shape) of the checkpoint's image recipe; of a text tower alone none, (0,)."""

    grids_N2: NDArray[np.int64] | None
    """(N, 2) rows and columns of patches; None for a fixed resolution."""

    texts: list[str]
    """M captions, each once; of an image tower alone none."""

    image_P: NDArray[np.int64]
    text_P: NDArray[np.int64]
    picture_N: NDArray[np.int64]
    """(N,) equal for equal pictures."""

    is_held_out: bool = True
    """Whether they were held out of the training."""

    teacher: Embeddings | None = None
    """The teacher's embeddings of these images and texts, if the student's are compared with them."""

    def image_batches(self) -> list[tuple[NDArray[np.uint8], NDArray[np.int64] | None]]:
        """Return pixels and grids of at most BATCH images each."""
        starts = range(0, len(self.pixels_N), BATCH)
        grids = self.grids_N2
        return [
            (self.pixels_N[i : i + BATCH], None if grids is None else grids[i : i + BATCH])
            for i in starts
        ]

    def text_batches(self) -> list[list[str]]:
        """Return at most BATCH texts each."""
        return [self.texts[i : i + BATCH] for i in range(0, len(self.texts), BATCH)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What the student, or a file of it, computes from a HeldOut. A tower that it lacks has no rows."""

    images_ND: NDArray[np.float32]
    """Unit rows."""

    texts_MD: NDArray[np.float32]
    """Unit rows."""

    logit: tuple[float, float] | None
    """(scale, bias) that logits of the two are computed with, the scale exponentiated; None: it has none."""

    mapped: "tuple[NDArray[np.float32], NDArray[np.float32]] | None" = None
    """(N, E) and (M, E) unit rows in the teacher's space, of images and texts; None: there is no map."""

    @property
    def in_teacher_space(self) -> "tuple[NDArray[np.float32], NDArray[np.float32]]":
        """The rows of images and texts as a query of the teacher's index has them."""
        return self.mapped or (self.images_ND, self.texts_MD)


def read_held_out(
    config: EvalConfig, checkpoint: Checkpoint, *, has_teacher: bool = False
) -> HeldOut:
    """Return the images of a split, or a sample of them, that can be decoded, and their captions.

    Where the split has no image, all are taken: files are compared with the student, not judged. No image is
    decoded for a text tower alone, and an image tower alone needs no captions.

    Args:
        config: cache, split and number of images.
        checkpoint: the student.
        has_teacher: whether to read the teacher's embeddings of them too.

    Raises:
        ExportError: no image can be decoded, or none has a caption.
    """
    try:
        cache, eval_set = open_eval_set(config, checkpoint)
    except SettingError:
        if config.split == "all":
            raise
        cache, eval_set = open_eval_set(replace(config, split="all"), checkpoint)
    pixels_N, grids_N2, is_sound_N = _read_pixels(config, checkpoint, cache, eval_set)
    is_used_P = is_sound_N[eval_set.image_P] & checkpoint.has_text
    if not (is_used_P if checkpoint.has_text else is_sound_N).any():
        raise ExportError(
            f"none of the {len(is_sound_N):,} {config.split} images of {cache.root} "
            f"{'has a caption and ' * checkpoint.has_text}can be decoded, so an export cannot be checked; "
            "name another cache with --check, or add --corpus-root OLD=NEW"
        )
    texts, text_P = np.unique(eval_set.text_P[is_used_P], return_inverse=True)
    rows_N, text_rows_M = eval_set.rows_N[is_sound_N], eval_set.text_rows_M[texts]
    return HeldOut(
        pixels_N=pixels_N,
        grids_N2=grids_N2,
        texts=read_texts(cache, text_rows_M),
        image_P=(np.cumsum(is_sound_N) - 1)[eval_set.image_P[is_used_P]],
        text_P=text_P.astype(np.int64),
        picture_N=eval_set.picture_N[is_sound_N],
        is_held_out=eval_set.split == "val",
        teacher=teacher_embeddings(cache, config.teacher, rows_N, text_rows_M)
        if has_teacher
        else None,
    )


def _read_pixels(
    config: EvalConfig, checkpoint: Checkpoint, cache: Cache, eval_set: CacheEvalSet
) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None, NDArray[np.bool_]]:
    """Return pixels and grids of the images that can be decoded, and which of all images these are."""
    N = len(eval_set.rows_N)
    if not checkpoint.has_image:
        return np.empty(0, np.uint8), None, np.ones(N, np.bool_)
    pixels_N = np.empty((N, *checkpoint.image.view_shape), np.uint8)
    grids_N2 = np.zeros((N, 2), np.int64)
    is_sound_N = np.zeros(N, np.bool_)
    for batch in decoded_pictures(
        checkpoint,
        eval_pictures(config, cache, eval_set),
        batch_size=config.batch_size,
        num_workers=config.num_decoders,
    ):
        rows = slice(batch.tag, batch.tag + len(batch.refs))
        pixels_N[rows], grids_N2[rows] = batch.flat_views()
        is_sound_N[rows] = [image.reason is None for image in batch.images]
    is_naflex = isinstance(checkpoint.image, NaflexRecipe)
    return pixels_N[is_sound_N], grids_N2[is_sound_N] if is_naflex else None, is_sound_N


def student_outputs(
    model: Any,
    checkpoint: Checkpoint,
    held_out: HeldOut,
    map_ED: NDArray[np.float32] | None = None,
) -> Outputs:
    """Return what PyTorch computes, on the CPU in float32.

    Args:
        model: from load_model.
        checkpoint: the one it was loaded from.
        held_out: pictures and captions.
        map_ED: map to the teacher's space; None: there is none.
    """
    images = texts = [np.empty((0, checkpoint.embed_dim), np.float32)]
    with torch.inference_mode():
        if checkpoint.has_image:
            tower = vision_tower(model)
            images = [_image_rows(tower, checkpoint, *batch) for batch in held_out.image_batches()]
        if checkpoint.has_text:
            tower, tokenizer = text_tower(model), TextTokenizer(checkpoint)
            texts = [_text_rows(tower, tokenizer(batch)) for batch in held_out.text_batches()]
    images_ND, texts_MD = np.concatenate(images), np.concatenate(texts)
    has_logit = hasattr(model, "logit_scale")
    return Outputs(
        images_ND=images_ND,
        texts_MD=texts_MD,
        logit=(float(model.logit_scale.double().exp()), float(model.logit_bias))
        if has_logit
        else None,
        mapped=None
        if map_ED is None
        else (unit_rows_float32(images_ND @ map_ED.T), unit_rows_float32(texts_MD @ map_ED.T)),
    )


def _image_rows(
    tower: Any,
    checkpoint: Checkpoint,
    pixels_B: NDArray[np.uint8],
    grids_B2: NDArray[np.int64] | None,
) -> NDArray[np.float32]:
    grids = None if grids_B2 is None else [(int(r), int(c)) for r, c in grids_B2]
    pooled_BD = pool_images(tower, checkpoint, torch.from_numpy(pixels_B.copy()), grids)
    return unit_rows(pooled_BD).numpy()


def _text_rows(tower: Any, ids_BL: NDArray[np.int64]) -> NDArray[np.float32]:
    return unit_rows(pool_token_ids(tower, torch.from_numpy(ids_BL))).numpy()
