"""The embeddings that are evaluated: the teacher's from the cache, a student's from pixels and texts.

Shape letters in this file:
    N = images, M = texts, D = embedding width, E = that of the teacher, B = batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import TrainError
from ...images.image import DecodedBatch, ImageRef
from ...progress import Display, TaskProgress
from ...siglip import (
    Checkpoint,
    NaflexRecipe,
    TextTokenizer,
    autocast,
    pool_images,
    pool_token_ids,
    text_tower,
    towers_of,
    uncompiled,
    unit_rows,
    vision_tower,
)
from ...store.cache import Cache
from .pictures import decoded_pictures

if TYPE_CHECKING:
    from torch import Tensor

    from ..distributed import Ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """One model's embeddings of some images and texts."""

    name: str
    images_ND: NDArray[np.float32]
    """Unit rows; NaN where the model has none."""

    texts_MD: NDArray[np.float32]
    """Unit rows; NaN where the model has none, all NaN without a text tower."""

    logit_scale: float | None
    """Logit scale as stored, a logarithm; None if the model has no logits."""

    logit_bias: float | None

    faults: Mapping[int, str] = field(default_factory=dict[int, str])
    """Reason why an image has no embedding, by row of the cache."""

    sha256: Mapping[int, bytes] = field(default_factory=dict[int, bytes])
    """Hash of the bytes of each image that this process has read, by row of the cache."""

    @property
    def logit(self) -> tuple[float, float] | None:
        """(scale, bias) of the logits, the scale exponentiated."""
        if self.logit_scale is None or self.logit_bias is None:
            return None
        return float(np.exp(self.logit_scale)), self.logit_bias


def teacher_embeddings(
    cache: Cache, teacher: str | None, rows_N: NDArray[np.int64], text_rows_M: NDArray[np.int64]
) -> Embeddings:
    """Return a teacher's embeddings of whole images and of texts, read from the cache.

    Args:
        cache: the cache.
        teacher: name of the teacher; None: the only one.
        rows_N: images; those without a target become NaN.
        text_rows_M: texts; those without a target become NaN.
    """
    record = cache.teacher(teacher)
    images_ND, _ = cache.image_targets(record.name).read_masked(rows_N)
    texts_MD, _ = cache.text_targets(record.name).read_masked(text_rows_M)
    return Embeddings(
        name=record.name,
        images_ND=unit_rows_float32(images_ND),
        texts_MD=unit_rows_float32(texts_MD),
        logit_scale=record.logit_scale,
        logit_bias=record.logit_bias,
    )


def student_embeddings(
    model: Any,
    checkpoint: Checkpoint,
    refs: Sequence[ImageRef],
    texts: Sequence[str],
    *,
    device: str,
    compute_dtype: str,
    batch_size: int,
    num_workers: int,
    name: str | None = None,
    sha256_N: NDArray[np.uint8] | None = None,
    images_ND: NDArray[np.float32] | None = None,
    texts_MD: NDArray[np.float32] | None = None,
    logit: tuple[float, float] | None = None,
    progress: TaskProgress | None = None,
    hint: str = "; if the corpus has moved, add --corpus-root OLD=NEW",
    ranks: "Ranks | None" = None,
) -> Embeddings:
    """Return a model's embeddings of the whole images, from their files, and of the texts.

    Each process embeds some of the batches and returns all rows. A batch has the rows that it has with one
    process, so the embeddings are equal.

    Args:
        model: a SiglipModel or Siglip2Model, or the vision or text model of either, on the device. It runs
            in eval mode without gradients; its mode is restored.
        checkpoint: defines preprocessing and tokenizer.
        refs: the N images; their views are not used.
        texts: the M texts.
        device: device of the model.
        compute_dtype: dtype of the forward pass, one of siglip.COMPUTE_DTYPES.
        batch_size: images, and texts, in one forward pass.
        num_workers: decoding processes; 0: decode in this process.
        name: name of the result; None: the checkpoint's.
        sha256_N: (N, 32) expected hash of each image's bytes; others get no embedding. None: no check.
        images_ND: unit rows of the images, for a model without an image tower; None: NaN.
        texts_MD: unit rows of the texts, for a model without a text tower; None: NaN.
        logit: (logit_scale, a logarithm, and logit_bias), for a model without them, or whose own are rounded
            to a half dtype. None: the model's.
        progress: shows how many are done; None: nothing is shown.
        hint: remedy where none of the images can be read.
        ranks: processes that all call this with equal arguments; None: this one alone.

    Raises:
        TrainError: none of the images can be read.
    """
    from ..distributed import Ranks

    runner = _Runner(
        checkpoint,
        device,
        compute_dtype,
        batch_size,
        num_workers,
        progress or TaskProgress(Display()),
        hint,
        ranks or Ranks(),
    )
    was_training = model.training
    model.eval()
    try:
        with uncompiled():  # batches have other shapes than in training
            has, faults = towers_of(model), dict[int, str]()
            if has != "text":
                images_ND, faults = runner.images(vision_tower(model), refs, sha256_N)
            if has != "image":
                texts_MD = runner.texts(text_tower(model), texts)
    finally:
        model.train(was_training)
    if logit is None and hasattr(model, "logit_scale"):
        logit = (float(model.logit_scale.detach()), float(model.logit_bias.detach()))
    return Embeddings(
        name=name or checkpoint.name,
        images_ND=_or_nan(images_ND, len(refs), checkpoint),
        texts_MD=_or_nan(texts_MD, len(texts), checkpoint),
        logit_scale=logit[0] if logit else None,
        logit_bias=logit[1] if logit else None,
        faults=faults,
        sha256=runner.sha256,
    )


def unit_rows_float32(rows_ND: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Return rows of norm 1 in float32; NaN stays NaN, a row of zeros becomes NaN."""
    wide_ND = rows_ND.astype(np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        return wide_ND / np.linalg.norm(wide_ND, axis=1, keepdims=True)


def _or_nan(
    rows_ND: NDArray[np.float32] | None, num_rows: int, checkpoint: Checkpoint
) -> NDArray[np.float32]:
    if rows_ND is not None:
        return rows_ND
    return np.full((num_rows, checkpoint.embed_dim), np.nan, np.float32)


def num_missing(rows_ND: NDArray[np.float32]) -> int:
    """Return the number of rows without an embedding."""
    return int(np.sum(~np.isfinite(rows_ND).all(axis=1)))


def has_texts(texts_MD: NDArray[np.float32]) -> bool:
    """Return whether there is any row with an embedding."""
    return num_missing(texts_MD) < len(texts_MD)


@dataclass(frozen=True, slots=True)
class _Runner:
    """Runs the towers over images and texts."""

    checkpoint: Checkpoint
    device: str
    compute_dtype: str
    batch_size: int
    num_workers: int
    progress: TaskProgress
    hint: str
    ranks: "Ranks"
    sha256: dict[int, bytes] = field(default_factory=dict[int, bytes])

    def images(
        self, tower: Any, refs: Sequence[ImageRef], sha256_N: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.float32], dict[int, str]]:
        """Return (N, D) unit rows, NaN for images that cannot be used, and the reasons by row."""
        own = self._own(len(refs))
        known_N = None if sha256_N is None else sha256_N[own]

        def embed() -> tuple[NDArray[np.float32], dict[int, str]]:
            return self._own_images(tower, [refs[int(i)] for i in own], known_N)

        images_ND, faults = self.ranks.run_together(embed)
        for found in self.ranks.gather_objects(faults):
            faults |= found
        images_ND = self._all(images_ND, len(refs))
        if refs and np.isnan(images_ND).all():
            row = refs[0].row
            error = TrainError(
                f"none of {len(refs):,} images can be used (row {row}: {faults.get(row)}){self.hint}"
            )
            raise self.ranks.error_of_first(error)
        return images_ND, faults

    def texts(self, tower: Any, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return (M, D) unit rows."""
        own = [texts[int(i)] for i in self._own(len(texts))]
        rows_MD = self.ranks.run_together(lambda: self._own_texts(tower, own))
        return self._all(rows_MD, len(texts))

    def _own(self, num_rows: int) -> NDArray[np.int64]:
        """Return the rows of this process: every world_size-th batch."""
        rows = np.arange(num_rows)
        return rows[rows // self.batch_size % self.ranks.world_size == self.ranks.rank]

    def _all(self, own_ND: NDArray[np.float32], num_rows: int) -> NDArray[np.float32]:
        """Return the rows of all processes, in order."""
        import torch

        whose_N = np.arange(num_rows) // self.batch_size % self.ranks.world_size
        counts = np.bincount(whose_N, minlength=self.ranks.world_size).tolist()
        rows_ND = np.empty((num_rows, self.checkpoint.embed_dim), np.float32)
        gathered = self.ranks.gather_rows(torch.from_numpy(own_ND), counts)
        rows_ND[np.argsort(whose_N, kind="stable")] = gathered.numpy()
        return rows_ND

    def _own_images(
        self, tower: Any, refs: Sequence[ImageRef], sha256_N: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.float32], dict[int, str]]:
        images_ND = np.full((len(refs), self.checkpoint.embed_dim), np.nan, np.float32)
        faults: dict[int, str] = {}
        batches = decoded_pictures(
            self.checkpoint, refs, batch_size=self.batch_size, num_workers=self.num_workers
        )
        self.progress.start("evaluating: images", len(refs))
        for batch in batches:
            first: int = batch.tag
            known = None if sha256_N is None else sha256_N[first : first + len(batch.refs)]
            found = _faults(batch, known)
            hashes = zip(batch.refs, batch.images, strict=True)
            self.sha256.update((ref.row, image.sha256) for ref, image in hashes if image.sha256)
            sound = [i for i, ref in enumerate(batch.refs) if ref.row not in found]
            if sound:
                images_ND[first + np.array(sound)] = self._unit_rows(
                    lambda: _pool(tower, self.checkpoint, batch, sound, self.device)  # noqa: B023
                )
            faults |= found
            self.progress.advance(len(batch.refs))
        return images_ND, faults

    def _own_texts(self, tower: Any, texts: Sequence[str]) -> NDArray[np.float32]:
        import torch

        tokenizer = TextTokenizer(self.checkpoint)
        found = [np.empty((0, self.checkpoint.embed_dim), np.float32)]
        self.progress.start("evaluating: texts", len(texts))
        for first in range(0, len(texts), self.batch_size):
            ids = tokenizer(list(texts[first : first + self.batch_size]))
            ids_BL = torch.from_numpy(ids).to(self.device)
            found.append(self._unit_rows(lambda: pool_token_ids(tower, ids_BL)))  # noqa: B023
            self.progress.advance(len(ids))
        return np.concatenate(found)

    def _unit_rows(self, pool: "Callable[[], Tensor]") -> NDArray[np.float32]:
        import torch

        with torch.no_grad(), autocast(torch.device(self.device).type, self.compute_dtype):
            return unit_rows(pool()).float().cpu().numpy()


def _faults(batch: DecodedBatch, sha256_B: NDArray[np.uint8] | None) -> dict[int, str]:
    """Return the reasons why images of a batch cannot be used, by row."""
    found: dict[int, str] = {}
    for i, (ref, image) in enumerate(zip(batch.refs, batch.images, strict=True)):
        if image.reason is not None:
            found[ref.row] = image.reason
        elif sha256_B is not None and image.sha256 != (ref.sha256 or sha256_B[i].tobytes()):
            found[ref.row] = "its bytes are not those the teacher saw"
    return found


def _pool(
    tower: Any, checkpoint: Checkpoint, batch: DecodedBatch, sound: list[int], device: str
) -> "Tensor":
    """Return the (B, D) pooled output of some images of a batch."""
    import torch

    pixels_B, grids_B2 = batch.flat_views()
    pixels_B, grids_B2 = pixels_B[sound], grids_B2[sound]
    is_naflex = isinstance(checkpoint.image, NaflexRecipe)
    grids = [(int(rows), int(columns)) for rows, columns in grids_B2] if is_naflex else None
    return pool_images(tower, checkpoint, torch.from_numpy(pixels_B).to(device), grids)
