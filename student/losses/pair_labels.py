"""Labels of image-text pairs: hard (matching or not) or soft (the teacher's probability of a match).

Shape letters in this file:
    N = rows (images), M = columns (texts), C = rows of one chunk, E = the teacher's width,
    P = marked pairs, G = images of the whole batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...siglip import to_device, unit_rows
from .pairwise_sum import ChunkSums, as_scalar, check_counts, check_pair, compute_dtype, softplus


@dataclass(frozen=True, slots=True, eq=False)
class MarkedPairs:
    """Some pairs of an N x M matrix, each once, ascending by row."""

    row_P: Tensor
    """int64, on the host: what follows from the pairs is known without waiting for the device."""

    column_P: Tensor
    """Like row_P."""

    shape: tuple[int, int]
    """(N, M)."""

    def rows_with_a_pair(self) -> Tensor:
        """Return which rows have a marked pair, (N,) bool."""
        has_any_N = torch.zeros(self.shape[0], dtype=torch.bool)
        has_any_N[self.row_P] = True
        return has_any_N

    def chunks(self, chunk_size: int) -> list[tuple[Tensor, Tensor]]:
        """Return (row within the chunk, column) of the pairs, for each chunk of rows."""
        starts = torch.arange(chunk_size, max(self.shape[0], chunk_size), chunk_size)
        cuts = tuple(torch.searchsorted(self.row_P, starts).tolist())
        rows = torch.tensor_split(self.row_P % chunk_size, cuts)
        return list(zip(rows, torch.tensor_split(self.column_P, cuts), strict=True))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SoftLabels:
    """The teacher's probability of each pair, sigmoid(scale * cos(image, text) + bias)."""

    teacher_image_NE: Tensor
    """Any float dtype, need not be normalised; no gradient."""

    teacher_text_ME: Tensor
    """Like teacher_image_NE, one row for each column."""

    scale: Tensor | float
    """The teacher's, already exponentiated."""

    bias: Tensor | float
    """The teacher's."""

    def __post_init__(self) -> None:
        check_pair("teacher_image", self.teacher_image_NE, "teacher_text", self.teacher_text_ME)

    @property
    def dtype(self) -> torch.dtype:
        """float64 where a teacher embedding is float64, else float32."""
        return compute_dtype(self.teacher_image_NE, self.teacher_text_ME)

    def chunk_loss(
        self, num_rows: int, num_columns: int, *, dtype: torch.dtype, chunk_size: int
    ) -> "_SoftChunkLoss":
        """Return the loss of chunks of rows; see Labels.

        Raises:
            ValueError: the teacher's rows are not as many as the student's.
        """
        given = (len(self.teacher_image_NE), len(self.teacher_text_ME))
        check_counts(given, (num_rows, num_columns))
        image_NE = unit_rows(self.teacher_image_NE.detach().to(dtype))
        scale = as_scalar("teacher_scale", self.scale, dtype, image_NE.device).detach()
        return _SoftChunkLoss(
            image_NE * scale,
            unit_rows(self.teacher_text_ME.detach().to(dtype)),
            as_scalar("teacher_bias", self.bias, dtype, image_NE.device).detach(),
        )


@dataclass(frozen=True, slots=True, eq=False)
class _SoftChunkLoss:
    scaled_image_NE: Tensor
    text_ME: Tensor
    bias: Tensor

    def __call__(self, start: int, logits_CM: Tensor, *, needs_gradient: bool) -> ChunkSums:
        rows_CE = self.scaled_image_NE[start : start + len(logits_CM)]
        teacher_CM = torch.addmm(self.bias, rows_CE, self.text_ME.T)
        target_CM = teacher_CM.sigmoid()
        entropy = _cross_entropy_sum(teacher_CM, target_CM)
        del teacher_CM
        loss = _cross_entropy_sum(logits_CM, target_CM)
        gradient_CM = logits_CM.sigmoid_().sub_(target_CM) if needs_gradient else None
        return ChunkSums(loss, entropy, gradient_CM)


def _cross_entropy_sum(logits_CM: Tensor, target_CM: Tensor) -> Tensor:
    """Return the sum of softplus(z) - p z; it is the entropy of p if z are p's own logits."""
    return softplus(logits_CM).addcmul_(logits_CM, target_CM, value=-1).sum()


@dataclass(frozen=True, slots=True, eq=False)
class AlikeTexts:
    """Texts, to find columns too similar to an own caption to be negatives."""

    text_ME: Tensor
    """Teacher embeddings of the columns."""

    above_cosine: float
    """A column whose cosine with an own caption is above it is ignored."""


@dataclass(frozen=True, slots=True, eq=False)
class AlikeImages:
    """Images, to find those too similar to a row's image for their captions to be negatives."""

    image_NE: Tensor
    """Teacher embeddings of the rows."""

    image_GE: Tensor
    """Teacher embeddings of all images that captions were drawn for."""

    caption_GC: Tensor
    """(G, C) int64 columns of each one's drawn captions, on the host; -1 for none."""

    above_cosine: float
    """The caption of an image whose cosine with the row's is above it is ignored."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HardLabels:
    """Pairs that match, pairs that do not match, and ignored pairs.

    A row without a positive is left out with all its negatives: an image without a caption has no hard
    labels. A positive is never ignored.
    """

    positive: MarkedPairs
    """Pairs that match; all others are negatives unless ignored."""

    ignored: MarkedPairs | None = None
    """Pairs left out of the sum."""

    alike: AlikeTexts | None = None
    """Also ignore pairs whose text is too similar to an own caption; None: do not."""

    alike_images: AlikeImages | None = None
    """Also ignore captions of images that are too similar to the row's; None: do not."""

    weight_N: Tensor | None = None
    """(N,) float weight of each row, positives and negatives; no gradient; None: 1."""

    positive_weight_P: Tensor | None = None
    """(P,) weight of each positive, where it is another than its row's; None: the row's."""

    @property
    def dtype(self) -> torch.dtype:
        """float32, which is enough for labels 0 and 1."""
        return torch.float32

    def num_labelled_rows(self) -> Tensor:
        """Return the number of rows with a positive, by which a mean divides; 0-dimensional int64."""
        return self.positive.rows_with_a_pair().sum()

    def chunk_loss(
        self, num_rows: int, num_columns: int, *, dtype: torch.dtype, chunk_size: int
    ) -> "_HardChunkLoss":
        """Return the loss of chunks of rows; see Labels.

        Raises:
            ValueError: the pairs are of another shape than N x M, or the weights than N.
        """
        shape = (num_rows, num_columns)
        for name, pairs in (("positive", self.positive), ("ignored", self.ignored)):
            if pairs is not None and pairs.shape != shape:
                raise ValueError(f"{name} pairs must be of shape {shape}, got {pairs.shape}")
        weight_N = self.weight_N
        if weight_N is not None and weight_N.shape != (num_rows,):
            raise ValueError(f"weights must be of shape ({num_rows},), got {tuple(weight_N.shape)}")
        return _HardChunkLoss(self, dtype, chunk_size)


class _HardChunkLoss:
    def __init__(self, labels: HardLabels, dtype: torch.dtype, chunk_size: int) -> None:
        self._chunk_size = chunk_size
        self._positives = labels.positive.chunks(chunk_size)
        has_positive_N = labels.positive.rows_with_a_pair()
        self._has_positive_N = None if bool(has_positive_N.all()) else has_positive_N
        self._ignored = None if labels.ignored is None else labels.ignored.chunks(chunk_size)
        self._weight_N = None if labels.weight_N is None else labels.weight_N.detach().to(dtype)
        self._positive_weights: Sequence[Tensor] | None = None
        if labels.positive_weight_P is not None:
            sizes = [len(row_P) for row_P, _ in self._positives]
            self._positive_weights = labels.positive_weight_P.detach().to(dtype).split(sizes)
        self._alike = labels.alike
        if self._alike is not None:
            self._unit_text_ME = unit_rows(self._alike.text_ME.detach().to(dtype))
        self._alike_images = labels.alike_images
        if self._alike_images is not None:
            image_GE, caption_GC = self._alike_images.image_GE, self._alike_images.caption_GC
            is_drawn_GC = caption_GC >= 0
            self._unit_image_NE = unit_rows(self._alike_images.image_NE.detach().to(dtype))
            row_P = to_device(is_drawn_GC.nonzero()[:, 0], image_GE.device)
            self._unit_image_PE = unit_rows(image_GE.detach()[row_P].to(dtype))
            self._column_P = to_device(caption_GC[is_drawn_GC], image_GE.device)

    def __call__(self, start: int, logits_CM: Tensor, *, needs_gradient: bool) -> ChunkSums:
        positive = self._of_chunk(self._positives, start, logits_CM.device)
        factor_CM = self._factor(start, logits_CM, positive)
        opposite_P = -logits_CM[positive]
        loss_CM = softplus(logits_CM)
        loss_CM[positive] = softplus(opposite_P)
        if (
            factor_CM is not None
        ):  # not masked_fill, so that a NaN in an ignored pair shows: 0 x NaN is NaN
            loss_CM.mul_(factor_CM)
        loss = loss_CM.sum()
        del loss_CM
        gradient_CM = None
        if needs_gradient:
            gradient_CM = logits_CM.sigmoid_()
            gradient_CM[positive] = -opposite_P.sigmoid()
            if factor_CM is not None:
                gradient_CM.mul_(factor_CM)
        return ChunkSums(loss, loss.new_zeros(()), gradient_CM)

    def _factor(
        self, start: int, logits_CM: Tensor, positive: tuple[Tensor, Tensor]
    ) -> Tensor | None:
        """Return how much each pair counts, (C, M) or (C, 1); None: each counts 1."""
        keep_CM = self._keep(start, logits_CM, positive)
        if self._weight_N is None:
            return keep_CM
        weight_C1 = self._weight_N[start : start + len(logits_CM), None]
        factor = weight_C1 if keep_CM is None else weight_C1 * keep_CM
        if self._positive_weights is not None:
            factor = factor.expand(logits_CM.shape).clone()
            factor[positive] = self._positive_weights[start // self._chunk_size]
        return factor

    def _keep(
        self, start: int, logits_CM: Tensor, positive: tuple[Tensor, Tensor]
    ) -> Tensor | None:
        """Return which pairs count, (C, M) or (C, 1) bool; None: all."""
        stop = start + len(logits_CM)
        keep_CM = None
        if self._ignored is not None:
            keep_CM = torch.ones_like(logits_CM, dtype=torch.bool)
            keep_CM[self._of_chunk(self._ignored, start, logits_CM.device)] = False
        if self._alike is not None:
            unlike_CM = ~self._alike_columns(logits_CM, positive, self._alike.above_cosine)
            keep_CM = unlike_CM if keep_CM is None else keep_CM & unlike_CM
        if self._alike_images is not None:
            unlike_CM = ~self._columns_of_alike(start, logits_CM, self._alike_images.above_cosine)
            keep_CM = unlike_CM if keep_CM is None else keep_CM & unlike_CM
        if keep_CM is not None:
            keep_CM[positive] = True
        if self._has_positive_N is not None:
            has_positive_C1 = to_device(self._has_positive_N[start:stop, None], logits_CM.device)
            keep_CM = has_positive_C1 if keep_CM is None else keep_CM & has_positive_C1
        return keep_CM

    def _of_chunk(
        self, pairs: list[tuple[Tensor, Tensor]], start: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        rows, columns = pairs[start // self._chunk_size]
        return to_device(rows, device), to_device(columns, device)

    def _alike_columns(
        self, logits_CM: Tensor, positive: tuple[Tensor, Tensor], above_cosine: float
    ) -> Tensor:
        """Return which columns are too similar to one of the row's own captions, (C, M) bool."""
        C = len(logits_CM)
        alike_CM = torch.zeros_like(logits_CM, dtype=torch.bool)
        # As many captions at once as the chunk has rows, so that the cosines are no larger than the logits.
        for row_P, column_P in zip(*(index.split(C) for index in positive), strict=True):
            cosine_PM = self._unit_text_ME[column_P] @ self._unit_text_ME.T
            alike_CM.index_add_(0, row_P, cosine_PM > above_cosine)  # a sum of bools is their OR
        return alike_CM

    def _columns_of_alike(self, start: int, logits_CM: Tensor, above_cosine: float) -> Tensor:
        """Return which columns are captions of images too similar to the row's, (C, M) bool."""
        C, M = logits_CM.shape
        image_CE = self._unit_image_NE[start : start + C]
        alike_CM = torch.zeros_like(logits_CM, dtype=torch.bool)
        # As many images at once as there are columns, so that the cosines are no larger than the logits.
        parts = (each.split(max(M, 1)) for each in (self._unit_image_PE, self._column_P))
        for image_PE, column_P in zip(*parts, strict=True):
            alike_CM.index_add_(1, column_P, image_CE @ image_PE.T > above_cosine)
        return alike_CM
