"""Batches built by hand, for a student of students.py, and the whole loss of one written out plainly.

Shape letters in this file:
    N = images, M = texts, K = texts of the bank, D = the student's width, E = the teacher's.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from siglip2_cache.siglip import (
    Checkpoint,
    NaflexRecipe,
    checkpoint_activations,
    load_trainable,
    resolve_checkpoint,
    vision_tower,
)
from siglip2_cache.store.format.teacher_record import PatchSettings
from siglip2_cache.student.data.batch import Batch, BatchTargets, PatchCells
from siglip2_cache.student.distributed import Ranks
from siglip2_cache.student.losses.objective import BankImages, Objective, TextColumns
from siglip2_cache.student.positives import ALL, Positives
from siglip2_cache.student.training.batch_loss import BatchLabels, StepLoss
from siglip2_cache.student.training.distiller import Distiller, MicroBatch, TeacherHead
from siglip2_cache.student.training.gradient_cache import GradientCache

WEIGHTS = {
    "soft": 1.0,
    "cosine": 0.7,
    "contrastive": 0.3,
    "bank": 0.5,
    "image_bank": 0.2,
    "affinity": 0.4,
    "relations": 0.6,
    "drrho": 0.35,
    "drrho_sigmoid": 0.15,
}
TEACHER_SCALE, TEACHER_BIAS, ALIKE = 12.0, -4.0, 0.3
AFFINITY_SCALE, RELATIONS_SCALE, DRRHO_SCALE = 9.0, 6.0, 8.0
PATCH_WEIGHT = 0.8
BANK_EXTRA = 6
"""Texts of the bank beside the batch's."""

GRIDS = [(2, 3), (4, 4), (1, 5), (3, 2), (4, 2), (2, 2), (3, 5)]


@dataclass(frozen=True)
class Case:
    """A student and what it is taught, small but whole."""

    student: Path
    towers: Literal["both", "image", "text"] = "both"
    projection: Literal["learned", "pca", "none"] = "learned"
    bank_labels: Literal["soft", "hard"] = "soft"
    positives: Positives = ALL
    ignore_similar: float | None = None
    captions: Sequence[int | tuple[int, ...]] = (0, -1, 1, 0, 2, -1, 3)
    """Which text, or texts, each image drew; -1: none. Images 0 and 3 share one."""

    num_texts: int = 4
    num_teachers: int = 1
    """The second is of another width, and has no target of image 2 and text 1."""

    seed: int = 0
    patches: PatchSettings | None = None
    """Patch targets of the teacher; None: there is no such term."""

    compute_dtype: str = "float32"
    has_checkpointing: bool = False

    @property
    def checkpoint(self) -> Checkpoint:
        return _resolved(self.student)

    @property
    def teacher_dim(self) -> int:
        return {"learned": 24, "pca": 40, "none": self.checkpoint.embed_dim}[self.projection]

    def distiller(self, dtype: torch.dtype = torch.float64) -> Distiller:
        torch.manual_seed(self.seed)
        model = copy.deepcopy(_loaded(self.student, self.towers))
        if self.has_checkpointing:
            checkpoint_activations(model)
        distiller = Distiller(
            model,
            self.checkpoint,
            towers=self.towers,
            compute_dtype=self.compute_dtype,
            logit_scale=2.0,
            logit_bias=-1.5,
            teachers=[
                TeacherHead(
                    embed_dim=self.teacher_dim - 5 * i if self.projection == "learned" else None,
                    bank=(1.7 - 0.3 * i, -1.0),
                )
                for i in range(self.num_teachers)
            ],
            patches=self.patches,
        )
        return distiller.to(dtype)

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the terms; each bank is compared with the rows of one tower."""
        absent = {"both": [], "image": ["image_bank"], "text": ["bank"]}[self.towers]
        patch = {} if self.patches is None else {"patch": PATCH_WEIGHT}
        return WEIGHTS | dict.fromkeys(absent, 0.0) | patch

    @property
    def drawn(self) -> NDArray[np.int64]:
        width = max(1, *map(len, self.own_texts))
        rows = [[*own, *(-1,) * (width - len(own))] for own in self.own_texts]
        return np.array(rows, np.int64).reshape(-1, width)

    @property
    def own_texts(self) -> list[tuple[int, ...]]:
        """The texts that each image drew."""
        rows = [(each,) if isinstance(each, int) else each for each in self.captions]
        return [tuple(text for text in row if text >= 0) for row in rows]

    def objectives(self) -> list[Objective]:
        return [self.objective(i) for i in range(self.num_teachers)]

    def objective(self, teacher: int = 0) -> Objective:
        half = {name: weight / 2 for name, weight in self.weights.items()} | {
            "contrastive": 0.0,
            "patch": 0.0,
        }
        return Objective(
            weights=half if teacher else self.weights,
            teacher="second" if teacher else None,
            teacher_scale=TEACHER_SCALE - 3 * teacher,
            teacher_bias=TEACHER_BIAS,
            bank_labels=self.bank_labels,
            bank_threshold=ALIKE,
            positives=self.positives,
            ignore_similar=self.ignore_similar,
            affinity_scale=AFFINITY_SCALE,
            relations_scale=RELATIONS_SCALE,
            drrho_scale=DRRHO_SCALE,
        )

    def fixed_map(self) -> Tensor | None:
        if self.projection != "pca":
            return None
        drawn = np.random.default_rng(99).normal(size=(self.teacher_dim, self.checkpoint.embed_dim))
        return torch.from_numpy(np.linalg.qr(drawn)[0].astype(np.float32))

    def batch(self, step: int = 0) -> Batch:
        """The global batch of one process; other pixels, texts and targets each step."""
        draw = np.random.default_rng([self.seed, step])
        N, M = len(self.captions), self.num_texts
        recipe = self.checkpoint.image
        grids = None
        pixels = draw.integers(0, 256, (N, *recipe.view_shape), np.uint8)
        if isinstance(recipe, NaflexRecipe):
            grids = np.array([GRIDS[(i + step) % len(GRIDS)] for i in range(N)], np.int64)
            pixels[np.arange(pixels.shape[1])[None, :] >= grids.prod(axis=1)[:, None]] = 0
        ids = draw.integers(4, 500, (M, self.checkpoint.max_text_tokens))
        return Batch(
            step=step,
            epoch=0,
            positions_N=np.arange(N),
            views_N=np.zeros(N, np.int64),
            pixels_N=None if self.towers == "text" else torch.from_numpy(pixels),
            grids_N2=None if self.towers == "text" else grids,
            caption_NC=self.drawn,
            text_rows_M=np.arange(M),
            text_bounds=np.array([0, M]),
            ids_ML=None if self.towers == "image" else torch.from_numpy(ids),
            targets=[
                BatchTargets(
                    image_NE=unit_rows(draw, N, self.teacher_dim - 5 * i),
                    text_ME=unit_rows(draw, M, self.teacher_dim - 5 * i),
                    has_image_N=np.arange(N) != 2 if i else None,
                    has_text_M=np.arange(M) != 1 if i else None,
                )
                for i in range(self.num_teachers)
            ],
            patches=self._patch_cells(np.random.default_rng([self.seed, step, 2]), N),
            skipped=[],
        )

    def _patch_cells(self, draw: np.random.Generator, count: int) -> PatchCells | None:
        """Views in turn have a whole grid of cells and fewer; what is beyond their cells is zeros."""
        if self.patches is None:
            return None
        side = self.patches.grid
        grids_N2 = np.array([[(side, side), (1, side), (side, 1)][i % 3] for i in range(count)])
        shape = (count, self.patches.num_cells, self.patches.dim)
        values_NCP = draw.normal(size=shape) * self.patches.rms
        values_NCP[np.arange(shape[1]) >= grids_N2.prod(axis=1)[:, None]] = 0
        return PatchCells(torch.from_numpy(values_NCP).half(), grids_N2)

    def matching_pairs(self) -> set[tuple[int, int]]:
        """Own captions, and one more text of image 1 (which drew none), 2 and 4."""
        own = {(i, text) for i, texts in enumerate(self.own_texts) for text in texts}
        more = {(i, i % self.num_texts) for i in (1, 2, 4) if self.num_texts}
        return own | {(i, text) for i, text in more if i < len(self.captions)}

    def all_labels(self, batch: Batch, dtype: torch.dtype = torch.float64) -> list[BatchLabels]:
        return [self.labels(batch, dtype, i) for i in range(self.num_teachers)]

    def labels(
        self, batch: Batch, dtype: torch.dtype = torch.float64, teacher: int = 0
    ) -> BatchLabels:
        """The bank has the batch's texts but for the first, and others."""
        draw = np.random.default_rng([self.seed, batch.step, 1])
        taught = batch.taught(teacher)
        extra = unit_rows(draw, BANK_EXTRA, self.teacher_dim - 5 * teacher)
        teacher_KE = torch.cat([taught.text_ME[1:], extra]).to(dtype)
        map_ED = self.fixed_map()
        caption_NC = torch.from_numpy(taught.caption_NC)
        images, texts = taught.positions_N.tolist(), taught.text_rows_M.tolist()
        known = {
            (images.index(i), texts.index(text))
            for i, text in self.matching_pairs()
            if i in images and text in texts
        }
        return BatchLabels(
            matching_2P=_pairs(known),
            bank=TextColumns(
                text=teacher_KE if map_ED is None else teacher_KE @ map_ED.to(dtype),
                caption_NC=(caption_NC - 1).clamp(min=-1),
                matching_2P=_pairs({(i, text - 1) for i, text in known if text >= 1}),
                teacher_text_ME=teacher_KE,
            ),
            image_bank=self._bank_images(extra.flip(0).to(dtype)),
        )

    def _bank_images(self, teacher_KE: Tensor) -> BankImages | None:
        if self.towers == "image":
            return None
        map_ED = self.fixed_map()
        target_KE = teacher_KE if map_ED is None else teacher_KE @ map_ED.to(teacher_KE)
        return BankImages(target_KE=target_KE, teacher_KE=teacher_KE)

    def compute(
        self,
        distiller: Distiller,
        micro_batch_size: int | None = None,
        *,
        ranks: Ranks | None = None,
        batch: Batch | None = None,
    ) -> StepLoss:
        """Compute gradients by the code under test."""
        batch = self.batch() if batch is None else batch
        gradients = GradientCache(
            distiller,
            self.objectives(),
            ranks or Ranks(),
            micro_batch_size=micro_batch_size,
            map_ED=self.fixed_map(),
        )
        torch.manual_seed(5)
        dtype = distiller.scale_and_bias[0].dtype
        return gradients.compute(batch, self.all_labels(batch, dtype)).read()


def on_device(labels: Sequence[BatchLabels], device: str) -> list[BatchLabels]:
    """Return labels whose rows are on a device; what matches stays on the host."""

    def moved(part: Any) -> Any:
        rows = {
            name: getattr(part, name).to(device)
            for name in ("text", "teacher_text_ME", "target_KE", "teacher_KE")
            if hasattr(part, name)
        }
        return None if part is None else replace(part, **rows)

    return [
        replace(each, bank=moved(each.bank), image_bank=moved(each.image_bank)) for each in labels
    ]


@lru_cache
def _resolved(student: Path) -> Checkpoint:
    return resolve_checkpoint(str(student))


@lru_cache
def _loaded(student: Path, towers: Literal["both", "image", "text"]) -> Any:
    return load_trainable(_resolved(student), towers=towers, is_new=False)


def unit_rows(draw: np.random.Generator, count: int, width: int) -> Tensor:
    """Return float16 rows that are alike enough for probabilities between 0 and 1."""
    rows = torch.from_numpy(draw.normal(size=(count, width)) + 0.6)
    return F.normalize(rows, dim=-1).half()


def _pairs(pairs: set[tuple[int, int]]) -> Tensor:
    return torch.tensor(sorted(pairs), dtype=torch.int64).reshape(-1, 2).T.contiguous()


def part_of(
    batch: Batch, labels: Sequence[BatchLabels], images: slice, texts: Sequence[int], rank: int
) -> tuple[Batch, list[BatchLabels]]:
    """Return what one rank has of a global batch: some images, texts[rank] to below texts[rank + 1]."""
    first, end = texts[rank], texts[rank + 1]
    part = replace(
        batch,
        positions_N=batch.positions_N[images],
        views_N=batch.views_N[images],
        pixels_N=None if batch.pixels_N is None else batch.pixels_N[images],
        grids_N2=None if batch.grids_N2 is None else batch.grids_N2[images],
        caption_NC=batch.caption_NC[images],
        text_bounds=np.array(texts),
        ids_ML=None if batch.ids_ML is None else batch.ids_ML[first:end],
        targets=[
            replace(
                each,
                image_NE=each.image_NE[images],
                has_image_N=None if each.has_image_N is None else each.has_image_N[images],
            )
            for each in batch.targets
        ],
        patches=None if batch.patches is None else batch.patches.part(images),
    )
    return part, [
        _part_of_labels(of_teacher, each.has_image_N, images)
        for of_teacher, each in zip(labels, batch.targets, strict=True)
    ]


def _part_of_labels(
    labels: BatchLabels, has_image_N: NDArray[np.bool_] | None, images: slice
) -> BatchLabels:
    if has_image_N is not None:
        images = slice(*(int(has_image_N[:at].sum()) for at in (images.start, images.stop)))
    bank = labels.bank
    assert bank is not None
    own_bank = replace(
        bank, caption_NC=bank.caption_NC[images], matching_2P=_own(bank.matching_2P, images)
    )
    return replace(labels, matching_2P=_own(labels.matching_2P, images), bank=own_bank)


def _own(matching_2P: Tensor, images: slice) -> Tensor:
    is_own = (matching_2P[0] >= images.start) & (matching_2P[0] < images.stop)
    return matching_2P[:, is_own] - torch.tensor([[images.start], [0]])


def plain_loss(
    case: Case, distiller: Distiller, batch: Batch, pieces: Sequence[MicroBatch]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a batch with its graph, and each term: dense, the formulas as they stand."""
    tokens: list[Tensor] = []
    if (
        case.patches is not None
    ):  # heard, not computed again: positions of NaFlex have float32 gradients
        norm = vision_tower(distiller.model).post_layernorm
        hook = norm.register_forward_hook(lambda module, inputs, output: tokens.append(output))
    found = [distiller.embed(piece) for piece in pieces]
    if case.patches is not None:
        hook.remove()
    log_scale, bias = distiller.scale_and_bias
    dtype = bias.dtype
    u_NE = F.normalize(batch.targets[0].image_NE.to(dtype), dim=-1)
    v_ME = F.normalize(batch.targets[0].text_ME.to(dtype), dim=-1)
    map_ED = case.fixed_map()

    def target(rows: Tensor) -> Tensor:
        return rows if map_ED is None else F.normalize(rows @ map_ED.to(dtype), dim=-1)

    def mapped(rows: Tensor) -> Tensor:
        return rows if distiller.projection is None else rows @ distiller.projection.weight.T

    images, texts = ([getattr(e, name) for e in found] for name in ("image_ND", "text_MD"))
    x_ND = target(u_NE) if case.towers == "text" else torch.cat(images)
    y_MD = target(v_ME) if case.towers == "image" else torch.cat(texts)
    if case.towers == "text":
        y_MD = F.normalize(mapped(y_MD), dim=-1)
    z_NM = log_scale.exp() * x_ND @ y_MD.T + bias
    p_NM = torch.sigmoid(TEACHER_SCALE * u_NE @ v_ME.T + TEACHER_BIAS)
    N, M = z_NM.shape
    bank = case.labels(batch, dtype).bank
    assert bank is not None
    w_KE = F.normalize(bank.teacher_text_ME.to(dtype), dim=-1)
    bank_NK = (
        z_NM.new_zeros(N, len(w_KE))
        if case.towers == "text"
        else (
            distiller.bank_scale.exp() * F.normalize(mapped(x_ND), dim=-1) @ target(w_KE).T
            + distiller.bank_bias
        )
    )
    drawn = case.own_texts
    similar = _similar(case, drawn, u_NE, v_ME)
    terms = {
        "soft": (F.softplus(z_NM) - p_NM * z_NM).sum() / N,
        "cosine": _one_minus_cos(y_MD, target(v_ME))
        if case.towers == "text"
        else _one_minus_cos(mapped(x_ND), target(u_NE)),
        "contrastive": _hard(
            z_NM,
            drawn,
            case.matching_pairs() | similar,
            _weights(case, drawn, p_NM),
        ),
    }
    if case.towers == "both":
        terms["cosine"] = (
            terms["cosine"] + _one_minus_cos(mapped(y_MD), target(v_ME)) * (M > 0)
        ) / 2
    q_NK = torch.sigmoid(TEACHER_SCALE * u_NE @ w_KE.T + TEACHER_BIAS)
    if case.bank_labels == "soft":
        terms["bank"] = (F.softplus(bank_NK) - q_NK * bank_NK).sum() / N
    else:
        own = [tuple(text - 1 for text in texts if text >= 1) for texts in drawn]
        ignored = {(i, text - 1) for i, text in case.matching_pairs() if text >= 1}
        alike_KK = w_KE @ w_KE.T > ALIKE
        ignored |= {
            (i, k) for i, texts in enumerate(own) for text in texts for k in _true(alike_KK[text])
        }
        ignored |= _similar(case, own, u_NE, w_KE)
        terms["bank"] = _hard(bank_NK, own, ignored, _weights(case, own, q_NK))
    uv_NM, xy_NM = (AFFINITY_SCALE * cosine for cosine in (u_NE @ v_ME.T, x_ND @ y_MD.T))
    terms["affinity"] = (_softmax(uv_NM, xy_NM) + _softmax(uv_NM.T, xy_NM.T)) / 2
    terms |= _drrho(case, DRRHO_SCALE * (x_ND @ y_MD.T - u_NE @ v_ME.T))
    relations = {"image": _relations(u_NE, x_ND), "text": _relations(v_ME, y_MD)}
    relations["both"] = (relations["image"] + relations["text"]) / 2
    terms["relations"] = relations[case.towers]
    if case.towers != "image":
        texts_ME = y_MD if case.towers == "text" else mapped(y_MD)
        terms["image_bank"] = _image_bank(case, distiller, batch, texts_ME, v_ME, target)
    if case.patches is not None:
        terms["patch"] = _dense(case.patches, distiller, batch, pieces, tokens)
    terms = {name: value for name, value in terms.items() if case.weights[name]}
    total = sum((case.weights[name] * value for name, value in terms.items()), x_ND.new_zeros(()))
    return total, terms


def _dense(
    patches: PatchSettings,
    distiller: Distiller,
    batch: Batch,
    pieces: Sequence[MicroBatch],
    tokens: Sequence[Tensor],
) -> Tensor:
    """Return the mean over images of that over cells of .9 (1 - cos) + .1 smooth L1, image by image.

    ``tokens`` are the hidden states of the images of each piece.
    """
    assert batch.patches is not None
    assert distiller.patch_head is not None
    found: list[Tensor] = []
    for piece, tokens_NLD in zip(pieces, tokens, strict=True):
        side = round(tokens_NLD.shape[1] ** 0.5)
        grids = piece.grids or [(side, side)] * len(tokens_NLD)
        for tokens_LD, grid in zip(tokens_NLD, grids, strict=True):
            i = len(found)
            rows, columns = (int(n) for n in batch.patches.grids_N2[i])
            own_LD = tokens_LD[: grid[0] * grid[1]].T.reshape(1, -1, *grid)
            pooled_CD = F.adaptive_avg_pool2d(own_LD, (rows, columns)).flatten(2)[0].T
            student_CP = distiller.patch_head.map(pooled_CD)
            teacher_CP = batch.patches.values_NCP[i, : rows * columns].to(student_CP) / patches.rms
            cosine_C = F.cosine_similarity(student_CP, teacher_CP, dim=-1)
            huber = F.huber_loss(student_CP, teacher_CP)
            found.append(0.9 * (1 - cosine_C.mean()) + 0.1 * huber)
    return torch.stack(found).sum() / len(batch.caption_NC)


def _true(row: Tensor) -> list[int]:
    return row.nonzero()[:, 0].tolist()


def _one_minus_cos(student: Tensor, teacher: Tensor) -> Tensor:
    if not len(student):
        return student.new_zeros(())
    return (1 - F.cosine_similarity(student, teacher, dim=-1)).mean()


def _image_bank(
    case: Case,
    distiller: Distiller,
    batch: Batch,
    mapped_ME: Tensor,
    v_ME: Tensor,
    target: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return the soft sigmoid loss of the texts and the images of the bank, divided by the texts."""
    images = case.labels(batch, v_ME.dtype).image_bank
    assert images is not None
    w_KE = F.normalize(images.teacher_KE, dim=-1)
    z_MK = distiller.bank_scale.exp() * F.normalize(mapped_ME, dim=-1) @ target(w_KE).T
    z_MK = z_MK + distiller.bank_bias
    p_MK = torch.sigmoid(TEACHER_SCALE * v_ME @ w_KE.T + TEACHER_BIAS)
    return (F.softplus(z_MK) - p_MK * z_MK).sum() / max(1, len(v_ME))


def _softmax(teacher_NM: Tensor, student_NM: Tensor) -> Tensor:
    """Return the mean cross-entropy of the rows' softmaxes."""
    if not student_NM.numel():
        return student_NM.new_zeros(())
    return F.cross_entropy(student_NM, teacher_NM.softmax(-1))


def _relations(teacher: Tensor, student: Tensor) -> Tensor:
    """Return the mean cross-entropy of each row's softmax over the other rows."""
    n = len(student)
    if n < 2:
        return student.new_zeros(())
    is_other = ~torch.eye(n, dtype=torch.bool)
    cosines = ((each @ each.T)[is_other].reshape(n, n - 1) for each in (teacher, student))
    return _softmax(*(RELATIONS_SCALE * each for each in cosines))


def _drrho(case: Case, shifted_NM: Tensor) -> dict[str, Tensor]:
    """Return both terms of DRRho, pair by pair."""
    zero, drawn, matching = shifted_NM.new_zeros(()), case.own_texts, case.matching_pairs()
    softmax, sigmoid, num_captioned = zero, zero, sum(map(bool, drawn))
    for i, texts in enumerate(drawn):
        for own in texts:
            z_own, weight = shifted_NM[i, own], 1 / len(texts)
            others = [j for j in range(shifted_NM.shape[1]) if (i, j) not in matching]
            images = [k for k in range(len(drawn)) if own not in drawn[k]]
            for z in (shifted_NM[i, others], shifted_NM[images, own]):
                mean = (z - z_own).exp().sum() / max(1, len(z))
                softmax = softmax + weight * torch.log(1e-4 + mean) / 2
            z, log_odds = shifted_NM[i, others], -math.log(max(1, len(others)))
            loss = F.softplus(-z_own - log_odds) + F.softplus(z + log_odds).sum()
            sigmoid = sigmoid + weight * loss
    count = max(1, num_captioned)
    return {"drrho": softmax / count / DRRHO_SCALE, "drrho_sigmoid": sigmoid / count}


def _similar(
    case: Case, captions: Sequence[Sequence[int]], u_NE: Tensor, v_ME: Tensor
) -> set[tuple[int, int]]:
    """Return the pairs of an image and a text that is similar to its captions or of a similar image."""
    above, found = case.ignore_similar, set[tuple[int, int]]()
    for i, texts in enumerate(captions):
        if above is None or not texts:
            continue
        for own in texts:
            found |= {(i, j) for j, v in enumerate(v_ME) if float(v @ v_ME[own]) > above}
        for u, others in zip(u_NE, captions, strict=True):
            if float(u @ u_NE[i]) > above:
                found |= {(i, j) for j in others}
    return found


def _weights(case: Case, captions: Sequence[Sequence[int]], p_NM: Tensor) -> list[dict[int, float]]:
    """Return how much each image's captions count."""
    kind, above = case.positives.kind, case.positives.above

    def weight(p: float) -> float:
        return p if kind == "weighed" else float(kind == "all" or p > above)

    return [
        {text: weight(float(p_NM[i, text])) for text in texts} for i, texts in enumerate(captions)
    ]


def _hard(
    z_NM: Tensor,
    captions: Sequence[Sequence[int]],
    ignored: set[tuple[int, int]],
    weights: Sequence[Mapping[int, float]],
) -> Tensor:
    """Return the sigmoid loss over captioned images, pair by pair."""
    total, count = z_NM.new_zeros(()), 0.0
    for i, texts in enumerate(captions):
        of_image = sum(weights[i].values()) / max(1, len(texts))
        count += of_image
        for j in range(z_NM.shape[1]) if texts else ():
            if j in texts:
                total = total - weights[i][j] * F.logsigmoid(z_NM[i, j])
            elif (i, j) not in ignored:
                total = total - of_image * F.logsigmoid(-z_NM[i, j])
    return total / max(1, count)


def pieces_of(batch: Batch, size: int | None) -> list[MicroBatch]:
    """Return consecutive pieces of at most so many images and texts."""
    N, M = (0 if rows is None else len(rows) for rows in (batch.pixels_N, batch.ids_ML))
    size = size or max(N, M)
    cuts = [slice(start, start + size) for start in range(0, max(N, M), size)]
    return [
        MicroBatch(
            pixels_N=None if batch.pixels_N is None else batch.pixels_N[cut],
            grids=None if batch.grids_N2 is None else [tuple(g) for g in batch.grids_N2[cut]],
            ids_ML=None if batch.ids_ML is None else batch.ids_ML[cut],
            num_images=0 if batch.pixels_N is None else len(batch.pixels_N[cut]),
            num_texts=0 if batch.ids_ML is None else len(batch.ids_ML[cut]),
            patches=None if batch.patches is None else batch.patches.part(cut),
        )
        for cut in cuts
    ]


def gradients_of(distiller: Distiller) -> dict[str, Tensor]:
    """Return the gradient of every parameter; what has none has one of 0."""
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in distiller.named_parameters()
    }


def assert_same_gradients(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float
) -> None:
    """Each parameter's, to a share of its own largest entry, or of a hundredth of the largest of all
    where its own is nearly 0 by cancellation (keys' biases, whose true gradient is 0)."""
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 0
    for name, gradient in expected.items():
        scale = max(float(gradient.abs().max()), largest / 100)
        error = float((found[name] - gradient).abs().max()) / scale
        assert error <= tolerance, f"{name}: off by {error:.2g} of {scale:.2g}"
