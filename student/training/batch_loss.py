"""The loss of one batch over all processes, as a function of its embeddings.

Shape letters in this file:
    N = this process's images, M = texts of all processes, D = the student's width, E = the teacher's.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..data.batch import Batch
from ..distributed import Ranks
from ..losses.objective import Counts, Objective, TermValue
from .distiller import Distiller, Embedded, EmbeddingGradient
from .teacher_part import BatchLabels, TeacherPart, in_double


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLoss:
    """The loss of a batch over all processes, by term."""

    total: float
    values: Mapping[str, float]
    """Each term, without its weight, by Objective.metric."""

    floors: Mapping[str, float]
    """Lowest possible value of each term whose targets are probabilities: the teacher's entropy."""

    gradient_norms: Mapping[str, float]
    """Norm of each weighted term's gradient by the unit rows of all images; of all texts, without an image
    tower."""

    counts: Counts
    caption_weight: float
    """That of the counts."""

    @property
    def is_finite(self) -> bool:
        """Whether every term is a finite number."""
        return all(map(math.isfinite, self.values.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLoss:
    """The loss of a batch as numbers on the device: nothing has waited for them."""

    numbers: Tensor
    """Value, floor and squared gradient norm of all T terms, then the caption weight of the counts:
    (3 T + 1,), float64 except on mps."""

    weights: Mapping[str, float]
    """Weight of each of the T terms, in order, by Objective.metric."""

    with_floor: Collection[str]
    """Terms that have a floor."""

    counts: Counts

    @property
    def is_finite(self) -> Tensor:
        """Whether every term is a finite number, a scalar bool on the device."""
        return self.numbers[: len(self.weights)].isfinite().all()

    def read(self, numbers: Sequence[float] | None = None) -> StepLoss:
        """Return the loss, after waiting for the device; given its numbers on the host, without."""
        T, terms = len(self.weights), list(self.weights)
        numbers = self.numbers.tolist() if numbers is None else numbers
        values, floors, squares = (
            dict(zip(terms, numbers[T * i : T * (i + 1)], strict=True)) for i in range(3)
        )
        return StepLoss(
            total=sum(weight * values[term] for term, weight in self.weights.items()),
            values=values,
            floors={term: floors[term] for term in terms if term in self.with_floor},
            gradient_norms={term: square**0.5 for term, square in squares.items()},
            counts=self.counts,
            caption_weight=numbers[3 * T],
        )


class BatchLoss:
    """The loss of one batch, computed once its embeddings are known."""

    def __init__(
        self,
        distiller: Distiller,
        objectives: Sequence[Objective],
        ranks: Ranks,
        batch: Batch,
        labels: Sequence[BatchLabels],
        map_ED: Tensor | None,
        *,
        num_micro_batches: int,
    ) -> None:
        """Exchange counts with the other processes, on the host: the device is not waited for.

        Args:
            distiller: what is trained.
            objectives: the terms of each teacher.
            ranks: this process among the others.
            batch: of this process.
            labels: of each teacher.
            map_ED: fixed map from the teacher's width to the student's, on the device; None: there is none.
            num_micro_batches: of this process.
        """
        self._distiller, self._ranks, self._batch = distiller, ranks, batch
        self._objectives = objectives
        self._parts = [
            TeacherPart(distiller, objective, ranks, batch, of_teacher, map_ED, teacher=i)
            for i, (objective, of_teacher) in enumerate(zip(objectives, labels, strict=True))
        ]
        own = [num_micro_batches, *(count for part in self._parts for count in part.own_counts)]
        by_rank = ranks.gather_numbers(own)
        self.is_one_micro_batch = all(counts[0] == 1 for counts in by_rank)
        """Whether every process has one micro-batch."""
        for i, part in enumerate(self._parts):
            first = 1 + 2 * i
            part.counts_by_rank = [(counts[first], counts[first + 1]) for counts in by_rank]
        self._result: DeviceLoss | None = None

    def result(self) -> DeviceLoss:
        """Return the loss that gradient() computed."""
        assert self._result is not None
        return self._result

    def gradient(self, embedded: Embedded) -> EmbeddingGradient:
        """Return the gradient by this process's embeddings and by the head, times world_size.

        Args:
            embedded: all images and texts of this process, without a graph.
        """
        distiller, ranks = self._distiller, self._ranks
        with torch.enable_grad():
            image_ND, text_MD = self._own_images(embedded), self._all_texts(embedded)
            leaves = [
                rows.requires_grad_()
                for rows, is_trained in (
                    (image_ND, distiller.has_image),
                    (text_MD, distiller.has_text),
                )
                if is_trained
            ]
            head, patch_N = distiller.head(), embedded.patch_N
            others = head if patch_N is None else [*head, patch_N.requires_grad_()]
            gradients = [torch.zeros_like(leaf) for leaf in (*leaves, *others)]
            values: dict[str, TermValue] = {}
            squares: list[Tensor] = []
            counts: Counts | None = None
            for part, objective in zip(self._parts, self._objectives, strict=True):
                rows = part.inputs(image_ND, text_MD)
                if counts is None:  # the first teacher, of which every image has targets
                    counts, rows = rows.counts, replace(rows, patch_N=patch_N)
                for term, value in objective.values(rows).items():
                    values[objective.metric(term)] = value
                    weighted = value.value * objective.weights[term]
                    by_term = part.gradient(term, weighted, [*leaves, *others], rows)
                    squares.append(self._square(by_term[0], leaves[0]))
                    for total, share in zip(gradients, by_term, strict=True):
                        if share is not None:
                            total += share
        assert counts is not None
        self._result = self._summed(values, squares, counts)
        by_text = None
        if distiller.has_text:
            by_text = ranks.sum(gradients[len(leaves) - 1])[self._own_texts] * ranks.world_size
        by_head = gradients[len(leaves) :][: len(head)]
        return EmbeddingGradient(
            image_ND=gradients[0] * ranks.world_size if distiller.has_image else None,
            patch_N=None if patch_N is None else gradients[-1] * ranks.world_size,
            text_MD=by_text,
            head=[gradient * ranks.world_size for gradient in by_head],
            is_last=True,
        )

    def fit_map(self, embedded: Embedded) -> None:
        """Fit the learned map of each teacher to these embeddings and all before."""
        for part in self._parts:
            part.fit_map(embedded, self._own_texts)

    @property
    def _own_texts(self) -> slice:
        bounds = self._batch.text_bounds
        return slice(int(bounds[self._ranks.rank]), int(bounds[self._ranks.rank + 1]))

    def _own_images(self, embedded: Embedded) -> Tensor:
        """Return (N, D): this process's images; the teacher's where there is no image tower."""
        if embedded.image_ND is None:
            return self._parts[0].target_images()
        return embedded.image_ND

    def _all_texts(self, embedded: Embedded) -> Tensor:
        """Return (M, D): the texts of all processes; the teacher's where there is no text tower."""
        if not self._distiller.has_text:
            return self._parts[0].target_texts()
        assert embedded.text_MD is not None
        counts = np.diff(self._batch.text_bounds).tolist()
        return self._ranks.gather_rows(embedded.text_MD, counts)

    def _square(self, by_rows: Tensor | None, rows: Tensor) -> Tensor:
        """Return this process's share of the squared norm of a gradient by all images, or all texts."""
        found = torch.zeros_like(rows) if by_rows is None else by_rows.detach().clone()
        if not self._distiller.has_image:  # each process has a part of the gradient by every text
            found = self._ranks.sum(found)[self._own_texts]
        return found.square().sum()

    def _summed(
        self, values: Mapping[str, TermValue], squares: Sequence[Tensor], counts: Counts
    ) -> DeviceLoss:
        zero = self._distiller.scale_and_bias[0].new_zeros(())
        parts = [each.value.detach() for each in values.values()]
        parts += [zero if each.floor is None else each.floor for each in values.values()]
        summed = self._ranks.sum(in_double(torch.stack([*parts, *squares])))
        weights = {
            each.metric(term): each.weights[term]
            for each in self._objectives
            for term in each.terms
        }
        return DeviceLoss(
            numbers=torch.cat([summed, counts.caption_weight[None].to(summed)]),
            weights={term: weights[term] for term in values},
            with_floor=[term for term, each in values.items() if each.floor is not None],
            counts=counts,
        )
