"""A loss summed over all N x M pairs of rows and columns, a chunk of rows at a time.

Shape letters in this file:
    N = rows (images), M = columns (texts), C = rows of one chunk, D = embedding width.
"""

from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...siglip import unit_rows

CHUNK_NUM_BYTES = 32 * 2**20
"""Default size of a chunk's logits. A pass holds at most four such tensors, for any N."""

SOFTPLUS_THRESHOLD = 40.0
"""Above it softplus(z) is computed as z: exp(-40) = 4e-18 is below float64's rounding (torch's default of
20 has an error of 2e-9), and exp(40) = 2e17 is far from float32's overflow."""


@dataclass(frozen=True, slots=True, eq=False)
class ChunkSums:
    """Sums over the pairs of one chunk of rows."""

    loss: Tensor
    """Scalar: sum of the losses."""

    entropy: Tensor
    """Scalar: sum of the entropies of the targets, the lowest possible loss."""

    gradient_CM: Tensor | None
    """Derivative of the loss by the logits; None if no gradient is needed."""


class ChunkLoss(Protocol):
    """Computes the loss of consecutive rows from their logits."""

    def __call__(self, start: int, logits_CM: Tensor, *, needs_gradient: bool) -> ChunkSums:
        """Return the sums of rows start..start+C-1; may overwrite the logits."""
        ...


class Labels(Protocol):
    """Labels of pairs and the loss that goes with them: pair_labels.py, softmax_labels.py."""

    @property
    def dtype(self) -> torch.dtype:
        """float64 if a target is float64, else float32."""
        ...

    def chunk_loss(
        self, num_rows: int, num_columns: int, *, dtype: torch.dtype, chunk_size: int
    ) -> ChunkLoss:
        """Return a ChunkLoss for chunks that start at multiples of chunk_size.

        Raises:
            ValueError: the labels are of another shape than num_rows x num_columns.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class PairwiseSum:
    """Sums over all pairs, not divided by a count."""

    loss_sum: Tensor
    """Scalar with a gradient to images, texts, scale and bias."""

    entropy_sum: Tensor
    """Scalar without gradient: the lowest possible loss_sum; 0 for hard labels."""


def pairwise_sum(
    image_ND: Tensor,
    text_MD: Tensor,
    labels: Labels,
    *,
    scale: Tensor | float,
    bias: Tensor | float,
    chunk_size: int | None = None,
) -> PairwiseSum:
    """Return the labels' loss of the logits scale * cos(image, text) + bias, summed.

    It is a plain sum over rows, so blocks of rows (the images of one process and the texts of all) add up
    to the whole, gradients included; the caller divides by the counts of the whole.

    No N x M tensor is held and nothing is computed twice: for each chunk of rows the logits are computed,
    their losses added up, and, if a gradient is needed, their share of the gradients of images, texts, scale
    and bias is accumulated at once (the upstream gradient is one number, so backward only multiplies). That
    is one matrix product fewer than recomputing the logits in backward, at the cost of keeping the two
    gradients, (N + M) x D. The gradient cannot be differentiated again.

    Args:
        image_ND: any float dtype, need not be normalised.
        text_MD: like image_ND.
        labels: labels of the N x M pairs.
        scale: factor of the cosines, exponentiated; a number or a tensor of one.
        bias: a number or a tensor of one.
        chunk_size: rows whose logits exist at once; None: as many as fill CHUNK_NUM_BYTES.

    Returns:
        Scalars in float64 if an embedding of student or teacher is float64, else in float32, under
        autocast too. Matrix products use torch's float32 matmul precision: with "high" or "medium" a
        CUDA device rounds the cosines to 10 or 7 bits, which a scale of 115 makes visible in the logits.

    Raises:
        ValueError: shapes do not fit, a tensor is not floating, or chunk_size is below 1.
    """
    check_pair("image", image_ND, "text", text_MD)
    dtype = torch.promote_types(compute_dtype(image_ND, text_MD), labels.dtype)
    N, M = len(image_ND), len(text_MD)
    chunk_size = chunk_rows(M, dtype) if chunk_size is None else chunk_size
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    with torch.autocast(image_ND.device.type, enabled=False):
        loss_sum, entropy_sum = cast(
            "tuple[Tensor, Tensor]",
            _PairwiseSum.apply(
                unit_rows(image_ND.to(dtype)),
                unit_rows(text_MD.to(dtype)),
                as_scalar("scale", scale, dtype, image_ND.device),
                as_scalar("bias", bias, dtype, image_ND.device),
                labels.chunk_loss(N, M, dtype=dtype, chunk_size=chunk_size),
                chunk_size,
                torch.is_grad_enabled(),
            ),
        )
    return PairwiseSum(loss_sum, entropy_sum)


class _PairwiseSum(torch.autograd.Function):
    """(loss sum, entropy sum) of unit rows; the gradients are computed in forward."""

    @staticmethod
    def forward(
        ctx: Any,
        image_ND: Tensor,
        text_MD: Tensor,
        scale: Tensor,
        bias: Tensor,
        chunk_loss: ChunkLoss,
        chunk_size: int,
        is_grad_enabled: bool,
    ) -> tuple[Tensor, Tensor]:
        # ctx.needs_input_grad is True under no_grad too
        needs = [is_grad_enabled and need for need in ctx.needs_input_grad[:4]]
        gradients = _Gradients(image_ND, text_MD, scale, needs)
        loss, entropy = scale.new_zeros(()), scale.new_zeros(())
        for start in range(0, len(image_ND), chunk_size):
            scaled_CD = image_ND[start : start + chunk_size] * scale
            logits_CM = torch.addmm(bias, scaled_CD, text_MD.T)
            sums = chunk_loss(start, logits_CM, needs_gradient=any(needs))
            loss += sums.loss
            entropy += sums.entropy
            if sums.gradient_CM is not None:
                gradients.add(start, scaled_CD, sums.gradient_CM)
            del logits_CM, sums  # before those of the next chunk
        ctx.save_for_backward(*gradients.finished())
        ctx.mark_non_differentiable(entropy)
        return loss, entropy

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]: once_differentiable has no name for ctx
        ctx: Any, *upstream: Tensor
    ) -> tuple[Tensor | None, ...]:
        saved = cast("tuple[Tensor | None, ...]", ctx.saved_tensors)
        grads = [None if gradient is None else gradient * upstream[0] for gradient in saved]
        return (*grads, None, None, None)


class _Gradients:
    """Accumulates the needed ones of the gradients of images, texts, scale and bias."""

    def __init__(self, image_ND: Tensor, text_MD: Tensor, scale: Tensor, needs: list[bool]) -> None:
        self._needs = needs
        needs_image, needs_text, needs_scale, needs_bias = needs
        self._image_ND, self._text_MD, self._scale = image_ND, text_MD, scale
        # By the left side of the cosines, before the factor scale: the gradient of scale needs it too.
        self._left_ND = torch.empty_like(image_ND) if needs_image or needs_scale else None
        self._by_text_MD = torch.zeros_like(text_MD) if needs_text else None
        self._by_bias = scale.new_zeros(()) if needs_bias else None

    def add(self, start: int, scaled_CD: Tensor, gradient_CM: Tensor) -> None:
        """Add the chunk of rows that begins at start."""
        if self._left_ND is not None:
            stop = start + len(gradient_CM)
            torch.mm(gradient_CM, self._text_MD, out=self._left_ND[start:stop])
        if self._by_text_MD is not None:
            self._by_text_MD.addmm_(gradient_CM.T, scaled_CD)
        if self._by_bias is not None:
            self._by_bias += gradient_CM.sum()

    def finished(self) -> tuple[Tensor | None, ...]:
        """Return the four gradients; None for those not needed."""
        by_image_ND, by_scale = None, None
        if self._left_ND is not None:
            if self._needs[2]:
                by_scale = (self._left_ND * self._image_ND).sum()
            if self._needs[0]:
                by_image_ND = self._left_ND.mul_(self._scale)
        return by_image_ND, self._by_text_MD, by_scale, self._by_bias


def softplus(logits: Tensor) -> Tensor:
    """Return log(1 + exp(logits)), accurate to rounding in float32 and float64."""
    return F.softplus(logits, threshold=SOFTPLUS_THRESHOLD)


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Return float64 if one of the tensors is float64, else float32."""
    is_double = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if is_double else torch.float32


def chunk_rows(num_columns: int, dtype: torch.dtype) -> int:
    """Return the number of rows of logits that fill CHUNK_NUM_BYTES, at least one."""
    return max(1, CHUNK_NUM_BYTES // (max(num_columns, 1) * dtype.itemsize))


def as_scalar(name: str, value: Tensor | float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a number, or a tensor of one element with its gradient, as a 0-dimensional tensor.

    Raises:
        ValueError: a tensor does not have one element.
    """
    if not isinstance(value, Tensor):
        return torch.full((), value, dtype=dtype, device=device)
    if value.numel() != 1:
        raise ValueError(f"{name} must be one number, got a tensor of shape {tuple(value.shape)}")
    return value.reshape(()).to(device=device, dtype=dtype)


def check_counts(teacher: tuple[int, int], student: tuple[int, int]) -> None:
    """Check that the teacher's embeddings are as many as the student's; each is (rows, columns).

    Raises:
        ValueError: they are not; the message has both.
    """
    if teacher != student:
        raise ValueError(
            f"teacher embeddings are of {teacher[0]} rows and {teacher[1]} columns, "
            f"the student's of {student[0]} and {student[1]}"
        )


def check_pair(left_name: str, left: Tensor, right_name: str, right: Tensor) -> None:
    """Check for two float matrices of one width.

    Raises:
        ValueError: they are not; the message has both shapes, or the dtype.
    """
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[1]:
        raise ValueError(
            f"{left_name} and {right_name} must be matrices of one width, "
            f"got {tuple(left.shape)} and {tuple(right.shape)}"
        )
    for name, tensor in ((left_name, left), (right_name, right)):
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {tensor.dtype}")
