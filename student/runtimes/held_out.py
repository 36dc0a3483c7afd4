"""Pictures and captions of a cache, in memory, that exported files and the student are compared on.

Shape letters in this file:
    N = images, M = texts, P = pairs of an image with its caption, D = embedding width, B = batch.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import ExportError
from ...siglip import (
    Checkpoint,
    NaflexRecipe,
    TextTokenizer,
    pool_images,
    pool_token_ids,
    unit_rows,
)
from ..evaluation.compare import EvalConfig, open_eval_set
from ..evaluation.pictures import decoded_pictures, picture_refs, read_texts

BATCH = 16
"""Images, and texts, in one forward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Decoded pictures and their captions."""

    pixels_N: NDArray[np.uint8]
    """(N, *view_shape) of the checkpoint's image recipe."""

    grids_N2: NDArray[np.int64] | None
    """(N, 2) rows and columns of patches; None for a fixed resolution."""

    texts: list[str]
    """M captions, each once."""

    image_P: NDArray[np.int64]
    text_P: NDArray[np.int64]
    picture_N: NDArray[np.int64]
    """(N,) equal for equal pictures."""

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
    """What the student, or a file of it, computes from a HeldOut."""

    images_ND: NDArray[np.float32]
    """Unit rows."""

    texts_MD: NDArray[np.float32]
    """Unit rows."""

    logit: tuple[float, float]
    """(scale, bias) that logits of the two are computed with, the scale exponentiated."""


def read_held_out(config: EvalConfig, checkpoint: Checkpoint) -> HeldOut:
    """Return the images of a split, or a sample of them, that can be decoded, and their captions.

    Raises:
        ExportError: no image can be decoded, or none has a caption.
    """
    cache, eval_set = open_eval_set(config, checkpoint)
    N = len(eval_set.rows_N)
    is_naflex = isinstance(checkpoint.image, NaflexRecipe)
    pixels_N = np.empty((N, *checkpoint.image.view_shape), np.uint8)
    grids_N2 = np.zeros((N, 2), np.int64)
    is_sound_N = np.zeros(N, np.bool_)
    for batch in decoded_pictures(
        checkpoint,
        picture_refs(cache, eval_set.rows_N),
        batch_size=config.batch_size,
        num_workers=config.num_decoders,
    ):
        rows = slice(batch.tag, batch.tag + len(batch.refs))
        pixels_N[rows], grids_N2[rows] = batch.flat_views()
        is_sound_N[rows] = [image.reason is None for image in batch.images]
    is_used_P = is_sound_N[eval_set.image_P]
    if not is_used_P.any():
        raise ExportError(
            f"none of the {N:,} {config.split} images of {cache.root} has a caption and can be decoded, so "
            "an export cannot be checked; name another cache with --check, or add --corpus-root OLD=NEW"
        )
    texts, text_P = np.unique(eval_set.text_P[is_used_P], return_inverse=True)
    return HeldOut(
        pixels_N=pixels_N[is_sound_N],
        grids_N2=grids_N2[is_sound_N] if is_naflex else None,
        texts=read_texts(cache, eval_set.text_rows_M[texts]),
        image_P=(np.cumsum(is_sound_N) - 1)[eval_set.image_P[is_used_P]],
        text_P=text_P.astype(np.int64),
        picture_N=eval_set.picture_N[is_sound_N],
    )


def student_outputs(model: Any, checkpoint: Checkpoint, held_out: HeldOut) -> Outputs:
    """Return what PyTorch computes, on the CPU in float32.

    Args:
        model: from load_model, of two towers.
        checkpoint: the one it was loaded from.
        held_out: pictures and captions.
    """
    tokenizer = TextTokenizer(checkpoint)
    images, texts = [], []
    with torch.inference_mode():
        for pixels_B, grids_B2 in held_out.image_batches():
            grids = None if grids_B2 is None else [(int(r), int(c)) for r, c in grids_B2]
            pooled = pool_images(
                model.vision_model, checkpoint, torch.from_numpy(pixels_B.copy()), grids
            )
            images.append(unit_rows(pooled).numpy())
        for batch in held_out.text_batches():
            pooled = pool_token_ids(model.text_model, torch.from_numpy(tokenizer(batch)))
            texts.append(unit_rows(pooled).numpy())
    return Outputs(
        images_ND=np.concatenate(images),
        texts_MD=np.concatenate(texts),
        logit=(float(model.logit_scale.double().exp()), float(model.logit_bias)),
    )
