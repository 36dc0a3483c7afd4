"""How much stored rows, or mapped ones, change the soft targets of the teacher.

Shape letters in this file:
    N = images, and as many texts, row i a caption of image i; B = pairs of a batch; E, D = widths.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import BuildError, SettingError
from ..format.row_encoding import RowCodec
from ..format.teacher_record import Distortion, TeacherRecord

BUDGET = 0.001
"""Largest share of the KL divergence, unless the user sets another."""

_BATCH = 1024


def check_budget(budget: float) -> None:
    """Check a largest share of the KL divergence that a user set.

    Raises:
        SettingError: it is not above 0 and at most 1.
    """
    if not 0 < budget <= 1:
        raise SettingError(
            f"targets budget must be above 0 and at most 100 %, got {100 * budget:g} %"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftTargetError:
    """Change of the teacher's probabilities over all pairs of random batches."""

    kl_share: float
    """KL divergence from the changed probabilities to the teacher's, as a share of the teacher's entropy,
    which is the floor of the soft term (docs/reference/objectives.md)."""

    largest_logit_error: float


def soft_target_error(
    before: tuple[NDArray[np.floating], NDArray[np.floating]],
    after: tuple[NDArray[np.floating], NDArray[np.floating]],
    *,
    scale: float,
    bias: float,
    seed: int = 0,
) -> SoftTargetError:
    """Return how the probabilities ``sigmoid(scale * cosine + bias)`` of all pairs in a batch change.

    Args:
        before: images and texts (N, E), row i a pair. The same array twice: rows of one modality, which are
            not compared with themselves.
        after: the same rows (N, D), encoded and decoded, or mapped.
        scale: scale of the logits, exponentiated.
        bias: their bias.
        seed: random seed of the batches, of at most 1,024 pairs.
    """
    is_same = before[0] is before[1]
    order_N = np.random.default_rng(seed).permutation(len(before[0]))
    kl = entropy = largest = 0.0
    for batch_B in np.array_split(order_N, max(1, -(-len(order_N) // _BATCH))):
        teacher_BB, changed_BB = (
            scale * (_unit_rows(images[batch_B]) @ _unit_rows(texts[batch_B]).T) + bias
            for images, texts in (before, after)
        )
        keep_BB = ~np.eye(len(batch_B), dtype=np.bool_) if is_same else np.s_[:]
        a, z = teacher_BB[keep_BB], changed_BB[keep_BB]
        # By the logarithms of both outcomes: neither cancels where p is near 0 or 1.
        p, q = _sigmoid(a), _sigmoid(-a)
        kl += float((p * (_softplus(-z) - _softplus(-a)) + q * (_softplus(z) - _softplus(a))).sum())
        entropy += float((p * _softplus(-a) + q * _softplus(a)).sum())
        largest = max(largest, float(np.abs(z - a).max(initial=0.0)))
    share = max(0.0, kl / entropy) if entropy > 0 else 0.0
    return SoftTargetError(kl_share=share, largest_logit_error=largest)


def measure_distortion(
    codec: RowCodec,
    images_NE: NDArray[np.float16],
    texts_NE: NDArray[np.float16],
    *,
    scale: float,
    bias: float,
) -> Distortion:
    """Return what storing rows by a codec changes.

    Args:
        codec: the codec.
        images_NE: embeddings; with none, the texts are compared with each other.
        texts_NE: row i is a caption of image i; with none, the images are compared with each other.
        scale: scale of the logits, exponentiated.
        bias: their bias.
    """
    is_pair = len(images_NE) > 0 and len(texts_NE) > 0
    alone = images_NE if len(images_NE) else texts_NE
    before = (images_NE, texts_NE) if is_pair else (alone, alone)
    after = codec.decode(codec.encode(before[0])), codec.decode(codec.encode(before[1]))
    error = soft_target_error(before, after, scale=scale, bias=bias)
    squared = [squared_error(old, new) for old, new in zip(before, after, strict=True)]
    return Distortion(
        kl_share=error.kl_share,
        largest_logit_error=error.largest_logit_error,
        mean_squared_error=sum(squared) / max(1, 2 * len(before[0])),
        num_images=len(images_NE),
        num_texts=len(texts_NE),
    )


def refuse_distortion(found: Distortion, budget: float, name: str) -> None:
    """Refuse targets whose soft targets change too much.

    Args:
        found: what they change.
        budget: largest share of the KL divergence.
        name: name of the targets.

    Raises:
        SettingError: the share is above the budget.
    """
    if found.kl_share > budget:
        raise SettingError(
            f"{name} targets change the soft targets by {100 * found.kl_share:.3f} % of their entropy, "
            f"above the budget of {100 * budget:.3f} %; use --targets float16, or a larger --targets-budget"
        )


def distortion_line(found: Distortion, name: str) -> str:
    """Return what targets change, as a line for people."""
    return (
        f"{name} targets change the soft targets by {100 * found.kl_share:.4f} % of their entropy, "
        f"a logit by at most {found.largest_logit_error:.3f} (measured on {found.num_images:,} images and "
        f"{found.num_texts:,} texts)"
    )


def refuse_distorted_rows(
    record: TeacherRecord, what: str, squared: float, num_vectors: int, budget: float
) -> None:
    """Refuse rows that encoding changes much more than those measured when the teacher was added.

    Args:
        record: the teacher.
        what: the rows, for the message.
        squared: summed squared_error of the rows.
        num_vectors: vectors in that sum.
        budget: largest share of the KL divergence.

    Raises:
        BuildError: the share is above the budget, by the mean squared error, which it is proportional to.
    """
    measured = record.distortion
    if measured is None or not (num_vectors and measured.mean_squared_error):
        return
    share = measured.kl_share * squared / num_vectors / measured.mean_squared_error
    if share > budget:
        raise BuildError(
            f"{what}: {record.encoding.name} targets change the soft targets by about "
            f"{100 * share:.3f} % of their entropy, above the budget of {100 * budget:.3f} %; use float16 "
            "targets in another cache, or a larger --targets-budget"
        )


def squared_error(before: NDArray[np.float16], after: NDArray[np.float16]) -> float:
    """Return the summed squared norm of the differences of rows."""
    return float(
        np.square(before.astype(np.float32) - after.astype(np.float32)).sum(dtype=np.float64)
    )


def _unit_rows(rows_BD: NDArray[np.floating]) -> NDArray[np.float64]:
    rows = rows_BD.astype(np.float64)
    norm_B1 = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norm_B1 == 0, 1.0, norm_B1)


def _softplus(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.logaddexp(0.0, logits)


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(-_softplus(-logits))
