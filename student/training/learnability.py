"""Selecting a batch from a larger one by learnability: hard for the student, easy for the teacher.

A pair of an image and its caption is worth training on if the student's loss of it is high and the teacher's
is low, together with the other pairs of the batch:

    D_ij = softplus(-s_ij z_ij) - softplus(-s_ij a_ij)      s = +1 for own pairs, -1 for others

with the logits z of the student and a of the teacher; D is 0 for pairs that match but were not drawn. Pairs
are drawn in chunks, the first with probability ~ exp(D_kk), each later one ~ exp(g_k), where g_k is D_kk
plus the sum of D_kj + D_jk over all pairs j drawn so far.

Source: JEST, Evans et al. 2024, arXiv:2406.17711, and its use with a teacher's scores, ACID, Udandarao et al.
2024, arXiv:2411.18674.

Shape letters in this file:
    N = images, M = texts, P = captioned images, C = pairs of one chunk, D, E = widths
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...siglip import unit_rows
from ..data.batch import Batch, among
from ..data.random_draws import step_seed
from ..distributed import Ranks
from ..losses.pairwise_sum import softplus
from .distiller import Embedded

NUM_CHUNKS = 16
"""Chunks that a batch is drawn in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Images and texts of a batch in two spaces, and which match."""

    student: tuple[Tensor, Tensor]
    """Rows of images, (N, D), and of texts, (M, D)."""

    teacher: tuple[Tensor, Tensor]
    """(N, E) and (M, E)."""

    student_logit: tuple[float, float]
    """Scale, exponentiated, and bias."""

    teacher_logit: tuple[float, float]
    caption_N: Tensor
    """int64 text drawn for each image; -1 for none."""

    matching_2K: Tensor
    """int64 (image, text) of pairs that match, drawn or not."""

    def learnability(self, images_P: Tensor, texts_C: Tensor) -> Tensor:
        """Return D of some images and some drawn texts, (P, C); of a match that was not drawn it is 0."""
        is_own_PC = self.caption_N[images_P][:, None] == texts_C
        sign_PC = torch.where(is_own_PC, -1.0, 1.0)  # -s

        def loss(rows: tuple[Tensor, Tensor], logit: tuple[float, float]) -> Tensor:
            image_PD, text_CD = unit_rows(rows[0][images_P]), unit_rows(rows[1][texts_C])
            return softplus((logit[0] * image_PD @ text_CD.T + logit[1]) * sign_PC)

        found_PC = loss(self.student, self.student_logit)
        found_PC -= loss(self.teacher, self.teacher_logit)
        return found_PC.masked_fill_(self._matches(images_P, texts_C) & ~is_own_PC, 0)

    def own(self, images_P: Tensor) -> Tensor:
        """Return D of images and their own captions, (P,)."""
        texts_P = self.caption_N[images_P]
        total_P = torch.zeros(len(images_P), dtype=self.student[0].dtype, device=images_P.device)
        for (image, text), (scale, bias), factor in (
            (self.student, self.student_logit, 1),
            (self.teacher, self.teacher_logit, -1),
        ):
            cosine_P = (unit_rows(image[images_P]) * unit_rows(text[texts_P])).sum(-1)
            total_P += factor * softplus(-(scale * cosine_P + bias))
        return total_P

    def _matches(self, images_P: Tensor, texts_C: Tensor) -> Tensor:
        texts_U, which_C = torch.unique(texts_C, return_inverse=True)
        row_N = torch.full_like(self.caption_N, -1)
        row_N[images_P] = torch.arange(len(images_P), device=images_P.device)
        column_M = torch.full((len(self.teacher[1]),), -1, device=images_P.device)
        column_M[texts_U] = torch.arange(len(texts_U), device=images_P.device)
        row_K, column_K = row_N[self.matching_2K[0]], column_M[self.matching_2K[1]]
        is_here_K = (row_K >= 0) & (column_K >= 0)
        found_PU = torch.zeros(
            len(images_P), len(texts_U), dtype=torch.bool, device=images_P.device
        )
        found_PU[row_K[is_here_K], column_K[is_here_K]] = True
        return found_PU[:, which_C]


def select_learnable(
    pairs: Pairs, count: int, generator: torch.Generator, *, num_chunks: int = NUM_CHUNKS
) -> Tensor:
    """Return the images of ``count`` pairs drawn by learnability, ascending, (count,) int64.

    Where fewer images have a caption, all of these and others at random.

    Args:
        pairs: the batch to draw from.
        count: images to return, at most N.
        generator: on the CPU.
        num_chunks: chunks they are drawn in; the last may be smaller.
    """
    is_captioned_N = pairs.caption_N >= 0
    images_P = is_captioned_N.nonzero()[:, 0]
    if len(images_P) <= count:
        others = (~is_captioned_N).nonzero()[:, 0]
        drawn = torch.randperm(len(others), generator=generator)[: count - len(images_P)]
        return torch.cat([images_P, others[drawn.to(others.device)]]).sort().values
    texts_P = pairs.caption_N[images_P]
    gain_P = pairs.own(images_P)
    is_drawn_P = torch.zeros_like(gain_P, dtype=torch.bool)
    size = -(-count // num_chunks)
    for first in range(0, count, size):
        uniform_P = torch.rand(len(gain_P), generator=generator, dtype=torch.float64)
        gumbel_P = -torch.log(-torch.log(uniform_P.clamp_(1e-300))).to(gain_P)
        key_P = (gain_P + gumbel_P).masked_fill(is_drawn_P, -torch.inf)
        new_C = key_P.topk(min(size, count - first)).indices
        is_drawn_P[new_C] = True
        gain_P = gain_P + pairs.learnability(images_P, texts_P[new_C]).sum(1)
        gain_P = gain_P + pairs.learnability(images_P[new_C], texts_P).sum(0)
    return images_P[is_drawn_P]


class LearnabilitySelection:
    """Draws the images of each step of a training, the same in every process."""

    def __init__(
        self,
        ranks: Ranks,
        *,
        count: int,
        seed: int,
        teacher_logit: tuple[float, float],
    ) -> None:
        """Remember the settings.

        Args:
            ranks: this process among the others; the first draws for all.
            count: images of a step over all processes.
            seed: random seed; a draw depends on it, the step and the embeddings.
            teacher_logit: scale, exponentiated, and bias of the first teacher, which judges.
        """
        self._ranks, self._count, self._seed = ranks, count, seed
        self._teacher_logit = teacher_logit

    def choose(
        self,
        batch: Batch,
        embedded: Embedded,
        matching_2K: NDArray[np.int64],
        student_logit: tuple[float, float],
    ) -> tuple[Batch, Embedded]:
        """Return this process's part of the images drawn, their captions, and the rows of both.

        Args:
            batch: of this process, larger than a step's.
            embedded: rows of its images and own texts, (N, D) each, on the training's device.
            matching_2K: (image, text) of pairs of its images and all texts that match.
            student_logit: scale, exponentiated, and bias of the student.
        """
        image_ND, text_MD, ranks = embedded.image_ND, embedded.text_MD, self._ranks
        assert image_ND is not None and text_MD is not None
        # One caption an image: TrainConfig refuses more.
        found = ranks.gather_objects((batch.caption_NC[:, 0], matching_2K))
        counts = [len(caption_N) for caption_N, _ in found]
        starts = np.concatenate([[0], np.cumsum(counts)])
        device, teacher = image_ND.device, batch.targets[0]
        caption_G = torch.from_numpy(np.concatenate([caption_N for caption_N, _ in found]))
        offsets = [np.array([[start], [0]]) for start in starts]
        matching = [own + offset for (_, own), offset in zip(found, offsets, strict=False)]
        pairs = Pairs(
            student=(
                ranks.gather_rows(image_ND, counts),
                ranks.gather_rows(text_MD, np.diff(batch.text_bounds).tolist()),
            ),
            teacher=(
                ranks.gather_rows(teacher.image_NE.to(device).to(image_ND), counts),
                teacher.text_ME.to(device).to(image_ND),
            ),
            student_logit=student_logit,
            teacher_logit=self._teacher_logit,
            caption_N=caption_G.to(device),
            matching_2K=torch.from_numpy(np.concatenate(matching, axis=1)).to(device),
        )
        chosen_G = np.zeros(len(caption_G), np.bool_)
        chosen_G[ranks.broadcast(self._draw(pairs, batch.step) if ranks.is_first else None)] = True
        used = caption_G[torch.from_numpy(chosen_G)].numpy()
        texts_M = np.zeros(len(batch.text_rows_M), np.bool_)
        texts_M[used[used >= 0]] = True
        own = slice(int(starts[ranks.rank]), int(starts[ranks.rank + 1]))
        return part_of_batch(batch, embedded, chosen_G[own], texts_M, ranks.rank)

    def _draw(self, pairs: Pairs, step: int) -> NDArray[np.int64]:
        generator = torch.Generator().manual_seed(step_seed(self._seed, step, 0xAC1D))
        count = min(self._count, len(pairs.caption_N))
        return select_learnable(pairs, count, generator).cpu().numpy()


def part_of_batch(
    batch: Batch,
    embedded: Embedded,
    own_N: NDArray[np.bool_],
    texts_M: NDArray[np.bool_],
    rank: int,
) -> tuple[Batch, Embedded]:
    """Return some images and texts of a batch, with their rows.

    Args:
        batch: of one process.
        embedded: rows of its images and own texts.
        own_N: which of its images.
        texts_M: which texts of all processes, among them the captions of its images.
        rank: of the process.
    """
    bounds = batch.text_bounds
    caption_NC, new_bounds = among(texts_M, batch.caption_NC[own_N], bounds)
    own_texts = torch.from_numpy(texts_M[bounds[rank] : bounds[rank + 1]])
    image_ND, text_MD, patch_N = embedded.image_ND, embedded.text_MD, embedded.patch_N
    own_images = torch.from_numpy(own_N)
    part = replace(
        batch,
        positions_N=batch.positions_N[own_N],
        views_N=batch.views_N[own_N],
        pixels_N=None if batch.pixels_N is None else batch.pixels_N[own_images],
        grids_N2=None if batch.grids_N2 is None else batch.grids_N2[own_N],
        caption_NC=caption_NC,
        text_rows_M=batch.text_rows_M[texts_M],
        text_bounds=new_bounds,
        ids_ML=None if batch.ids_ML is None else batch.ids_ML[own_texts],
        targets=[each.select(own_N, texts_M) for each in batch.targets],
        patches=None if batch.patches is None else batch.patches.part(own_N),
    )
    rows = Embedded(
        image_ND=None if image_ND is None else image_ND[own_images.to(image_ND.device)],
        text_MD=None if text_MD is None else text_MD[own_texts.to(text_MD.device)],
        patch_N=None if patch_N is None else patch_N[own_images.to(patch_N.device)],
    )
    return part, rows
