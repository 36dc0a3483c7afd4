"""The module that is trained: the student, the map to the teacher's width, scales and biases.

Shape letters in this file:
    N = images, M = texts, L = text tokens, D = the student's width, E = the teacher's.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...siglip import (
    Checkpoint,
    Towers,
    autocast,
    encode_images,
    on_device,
    pool_token_ids,
    pool_tokens,
    text_tower,
    to_device,
    unit_rows,
    vision_tower,
)
from ...store.format.teacher_record import PatchSettings
from ..data.batch import PatchCells
from ..distributed import Ranks
from ..losses.learned_map import LearnedMap
from ..losses.patch import PatchHead
from .patch_dropout import PatchDropout


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Images and texts of one forward pass, on the host or on the device."""

    pixels_N: Tensor | None
    """uint8 (N, *view_shape); None where the student has no image tower."""

    grids: Sequence[tuple[int, int]] | None
    """Rows and columns of patches of each image; None for a student of fixed resolution."""

    ids_ML: Tensor | None
    """Token ids int64; None where the student has no text tower."""

    num_images: int
    """Images before the padding, which comes after them."""

    num_texts: int

    patches: PatchCells | None = None
    """Patch targets of its images, without padding; None unless a term needs them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """Unit rows of a micro-batch."""

    image_ND: Tensor | None
    """None without an image tower."""

    text_MD: Tensor | None
    """None without a text tower."""

    patch_N: Tensor | None = None
    """The loss of each image by its patches; None without patch targets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherHead:
    """What the head has for one teacher."""

    embed_dim: int | None
    """E, if a map to it is learned; None: there is no such map."""

    bank: tuple[float, float] | None
    """Initial (log scale, bias) of the bank terms; None: there are no such terms."""


class Distiller(nn.Module):
    """All trainable parameters. Those outside of the student's towers are the *head*."""

    def __init__(
        self,
        model: nn.Module,
        checkpoint: Checkpoint,
        *,
        towers: Towers,
        compute_dtype: str,
        logit_scale: float,
        logit_bias: float,
        teachers: Sequence[TeacherHead],
        patches: PatchSettings | None = None,
    ) -> None:
        """Add the head to a model from load_trainable.

        Args:
            model: the student.
            checkpoint: its checkpoint.
            towers: the towers it has.
            compute_dtype: dtype of the forward pass; parameters keep theirs.
            logit_scale: initial scale of the student, a logarithm.
            logit_bias: initial bias of the student.
            teachers: what the head has for each.
            patches: patch targets of the first teacher; None: no term needs them.
        """
        super().__init__()
        self.model: Any = model
        self._checkpoint, self._compute_dtype = checkpoint, compute_dtype
        self.has_image, self.has_text = towers != "text", towers != "image"
        owner = self._owner
        if owner is self:
            self.logit_scale = nn.Parameter(torch.zeros(1))
            self.logit_bias = nn.Parameter(torch.zeros(1))
        with torch.no_grad():
            owner.logit_scale.fill_(logit_scale)
            owner.logit_bias.fill_(logit_bias)
        self.patch_dropout: PatchDropout | None = None
        self._num_teachers = len(teachers)
        self.projection: LearnedMap | None = None  # the first teacher's
        for i, teacher in enumerate(teachers):
            if teacher.embed_dim is not None:
                learned = LearnedMap(checkpoint.embed_dim, teacher.embed_dim)
                setattr(self, _name("projection", i), learned)
            if teacher.bank is not None:
                for name, value in zip(("bank_scale", "bank_bias"), teacher.bank, strict=True):
                    setattr(self, _name(name, i), nn.Parameter(torch.tensor([value])))
        self.patch_head = None
        if patches is not None:
            self.patch_head = PatchHead(checkpoint.embed_dim, patches.dim, rms=patches.rms)

    @property
    def scale_and_bias(self) -> tuple[Tensor, Tensor]:
        """Scale, as a logarithm, and bias of the student."""
        owner = self._owner
        return owner.logit_scale, owner.logit_bias

    @property
    def _owner(self) -> Any:
        """The module that has scale and bias: a tower alone has none."""
        return self.model if self.has_image and self.has_text else self

    def head(self) -> list[Tensor]:
        """Return the parameters that enter the loss directly, not through an embedding."""
        banks = [each for i in range(self._num_teachers) for each in self.bank_logit(i) or ()]
        return [*self.scale_and_bias, *self.maps(), *banks]

    def learned_map(self, teacher: int) -> LearnedMap | None:
        """Return the map to the width of a teacher, counted from 0; None without one."""
        return getattr(self, _name("projection", teacher), None)

    def maps(self) -> list[Tensor]:
        """Return the parameters of the learned maps; empty without one."""
        maps = map(self.learned_map, range(self._num_teachers))
        return [each.weight for each in maps if each is not None]

    def bank_logit(self, teacher: int) -> tuple[Tensor, Tensor] | None:
        """Return scale, as a logarithm, and bias of the bank terms of a teacher; None without these."""
        names = (_name(name, teacher) for name in ("bank_scale", "bank_bias"))
        scale, bias = (getattr(self, name, None) for name in names)
        return None if scale is None or bias is None else (scale, bias)

    def map_images(self, rows_ND: Tensor, teacher: int = 0) -> Tensor:
        """Return image rows mapped to a teacher's width, (N, E); unchanged without a map."""
        learned = self.learned_map(teacher)
        return rows_ND if learned is None else learned(rows_ND)

    def map_texts(self, rows_MD: Tensor, teacher: int = 0) -> Tensor:
        """Return text rows mapped by the same map, (M, E), so that x.y is trained too."""
        return self.map_images(rows_MD, teacher)

    def fit_maps(
        self,
        images: tuple[Tensor, Tensor] | None,
        texts: tuple[Tensor, Tensor] | None,
        ranks: Ranks,
        teacher: int = 0,
    ) -> None:
        """Fit a learned map to all rows so far; each argument is (student's rows, teacher's rows)."""
        learned = self.learned_map(teacher)
        assert learned is not None
        for rows in (images, texts):
            if rows is not None:
                learned.add_rows(*rows, ranks)
        learned.fit()

    def embed(self, micro_batch: MicroBatch) -> Embedded:
        """Return unit rows with their graph, in float32, or float64 for a model in float64."""
        with self._autocast():
            image_ND = text_MD = patch_N = None
            if micro_batch.pixels_N is not None:
                image_ND, patch_N = self._embed_images(micro_batch.pixels_N, micro_batch)
            if micro_batch.ids_ML is not None:
                text_MD = self._embed_texts(micro_batch.ids_ML, micro_batch.num_texts)
        return Embedded(image_ND=image_ND, text_MD=text_MD, patch_N=patch_N)

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.scale_and_bias[0].device

    def forward(self, micro_batch: MicroBatch, backward: "Backward") -> Tensor:
        """Return a scalar whose gradient is this micro-batch's share of the loss's.

        It is what a backward pass starts from, not the loss's value: the loss is a function of the
        embeddings of all micro-batches of all processes, and the gradient by these is known.
        """
        found = self.embed(micro_batch)
        gradient = backward(found)
        total = self.scale_and_bias[0].new_zeros(())
        for rows, by_rows in (
            (found.image_ND, gradient.image_ND),
            (found.text_MD, gradient.text_MD),
            (found.patch_N, gradient.patch_N),
        ):
            if rows is not None:
                assert by_rows is not None
                total = total + (rows * by_rows).sum()
        for parameter, by_parameter in zip(self.head(), gradient.head, strict=False):
            total = total + (parameter * by_parameter).sum()
        lacks_rows = any(
            rows is not None and not len(rows) for rows in (found.image_ND, found.text_MD)
        )
        if gradient.is_last and lacks_rows:
            moving = (p for p in self.parameters() if p.requires_grad)
            total = total + sum(p.reshape(-1)[0] * 0.0 for p in moving)
        return total

    def _embed_images(
        self, pixels_N: Tensor, micro_batch: MicroBatch
    ) -> tuple[Tensor, Tensor | None]:
        """Return the unit rows of images, and their losses by their patches if there are targets."""
        N, patches = micro_batch.num_images, micro_batch.patches
        if not N:
            no_rows = self._no_rows()
            return no_rows, None if patches is None else no_rows[:, 0]
        pixels_N = pixels_N.to(self.device, non_blocking=True)
        tower = vision_tower(self.model)
        encoded = encode_images(tower, self._checkpoint, pixels_N, micro_batch.grids)
        rows_ND = unit_rows(encoded.pooled_BD[:N])
        if patches is None or self.patch_head is None:
            return rows_ND, None
        tokens_NLD, grids = encoded.tokens_BND[:N], encoded.grids[:N]
        return rows_ND, self._patch_losses(self.patch_head, tokens_NLD, grids, patches)

    def _patch_losses(
        self,
        head: PatchHead,
        tokens_NLD: Tensor,
        grids: Sequence[tuple[int, int]],
        patches: PatchCells,
    ) -> Tensor:
        is_double = tokens_NLD.dtype == torch.float64
        teacher_NCP = to_device(patches.values_NCP, self.device)
        teacher_NCP = teacher_NCP.double() if is_double else teacher_NCP.float()
        cells = [(int(rows), int(columns)) for rows, columns in patches.grids_N2]
        num_cells_N = on_device(patches.grids_N2.prod(axis=1), teacher_NCP)
        with torch.autocast(self.device.type, enabled=False):
            tokens_NLD = tokens_NLD if is_double else tokens_NLD.float()
            cells_NCD = pool_tokens(tokens_NLD, grids, cells, teacher_NCP.shape[1])
        return head.loss(cells_NCD, teacher_NCP, num_cells_N)

    def _embed_texts(self, ids_ML: Tensor, num_texts: int) -> Tensor:
        if not num_texts:
            return self._no_rows()
        ids_ML = ids_ML.to(self.device, non_blocking=True)
        return unit_rows(pool_token_ids(text_tower(self.model), ids_ML)[:num_texts])

    def _no_rows(self) -> Tensor:
        """Return (0, D): the attention of transformers takes no empty batch."""
        return self.scale_and_bias[0].new_zeros(0, self._checkpoint.embed_dim)

    def _autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.device.type, self._compute_dtype)


def _name(name: str, teacher: int) -> str:
    """Return the name of a parameter of a teacher; the first one's are named as in older checkpoints."""
    return name if teacher == 0 else f"{name}_{teacher}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingGradient:
    """Gradient of the loss by the embeddings of a micro-batch, times world_size, since DDP takes the mean."""

    image_ND: Tensor | None
    text_MD: Tensor | None
    patch_N: Tensor | None = None
    head: Sequence[Tensor] = ()
    """By each parameter of Distiller.head; empty except for the last micro-batch."""

    is_last: bool = False
    """Whether this is the last micro-batch. In that one every parameter gets a gradient, if only of 0: DDP
    waits for each, and Adam's momentum must not depend on which texts a process has."""


Backward = Callable[[Embedded], EmbeddingGradient]
"""From a micro-batch's embeddings to the gradient by them."""
