"""Fitting the scale and bias of a teacher that has none: own pairs against other pairs.

A logit is scale * cosine + bias, its sigmoid the probability that an image and a text are a pair. Each own
pair stands against 32,767 other pairs, as in a batch of SigLIP: the bias of another ratio would be shifted
by its logarithm.

Shape letters in this file: N = pairs, D = embed_dim.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import SettingError

MAX_PAIRS = 1024
"""A million cosines; a fit takes seconds."""

_MIN_PAIRS = 8
_OTHERS = 32_767
_GROUPS = 4
_STEPS = 100
_REMEDY = "give --logit-scale and --logit-bias, which the model's authors publish"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitFit:
    """Scale and bias, and how well they fit."""

    logit_scale: float
    """A logarithm."""

    logit_bias: float
    scale_error: float
    """Standard error of ``logit_scale``; 0 if it was given."""

    bias_error: float
    num_pairs: int
    own: float
    """Mean probability of the own pairs."""

    loss: float
    """Mean logistic loss of a pair, in nats, relative to that of the ratio of pairs alone."""

    def line(self) -> str:
        """Return the fit as a line for people."""
        return (
            f"logits     scale {math.exp(self.logit_scale):.2f} (logarithm {self.logit_scale:.4f} +- "
            f"{self.scale_error:.4f}), bias {self.logit_bias:.2f} +- {self.bias_error:.2f}, fitted to "
            f"{self.num_pairs:,} own against other pairs: own pairs get probability {self.own:.2f}, the "
            f"loss is {self.loss:.1%} of that without the embeddings"
        )


def fit_logits(
    images_ND: NDArray[np.float32],
    texts_ND: NDArray[np.float32],
    *,
    logit_scale: float | None = None,
    logit_bias: float | None = None,
) -> LogitFit:
    """Return the scale and bias that fit best, by logistic regression on the cosine.

    The standard errors are those of a jackknife over four groups of pairs.

    Args:
        images_ND: unit rows, one of each pair, at least 8.
        texts_ND: unit rows, all different texts.
        logit_scale: a scale to keep, a logarithm; None: fit it.
        logit_bias: a bias to keep; None: fit it.

    Raises:
        SettingError: there are too few pairs, or own pairs are not nearer than others.

    Source:
        Targets that keep the fit finite where all own pairs are nearer than all others: J. Platt,
        Probabilistic outputs for support vector machines, 1999.
    """
    count = len(images_ND)
    if count < _MIN_PAIRS:
        raise SettingError(
            f"only {count} images have an embedding and a caption with one, and a fit of the scale and "
            f"bias needs {_MIN_PAIRS}; {_REMEDY}"
        )
    cosine_NN = images_ND @ texts_ND.T
    own_N = np.diagonal(cosine_NN)
    others = (float(cosine_NN.sum()) - float(own_N.sum())) / (count * (count - 1))
    if own_N.mean() <= others:
        raise SettingError(
            f"images are no nearer to their own captions than to others (mean cosine {own_N.mean():.3f} "
            f"and {others:.3f}); are the embeddings of one model, and joined to the right keys? If so, "
            f"{_REMEDY}"
        )
    fit = partial(
        _fit, scale=None if logit_scale is None else math.exp(logit_scale), bias=logit_bias
    )
    scale, bias, loss = fit(cosine_NN)
    groups = np.arange(count) % _GROUPS
    parts = [fit(cosine_NN[np.ix_(groups != g, groups != g)])[:2] for g in range(_GROUPS)]
    spread = np.array([(math.log(s), b) for s, b in parts])
    errors = np.sqrt((_GROUPS - 1) / _GROUPS * ((spread - spread.mean(0)) ** 2).sum(0))
    without = _loss_of_ratio()
    return LogitFit(
        logit_scale=math.log(scale),
        logit_bias=bias,
        scale_error=float(errors[0]),
        bias_error=float(errors[1]),
        num_pairs=count,
        own=float(_sigmoid(scale * own_N + bias).mean()),
        loss=loss / without,
    )


def _fit(
    cosine_NN: NDArray[np.float32], *, scale: float | None, bias: float | None
) -> tuple[float, float, float]:
    """Return scale, bias and the mean loss of an own pair with its others, by Newton's method."""
    count = len(cosine_NN)
    is_own = np.eye(count, dtype=np.bool_)
    weight = np.where(is_own, 1.0, _OTHERS / (count - 1)).ravel()
    wanted = np.where(is_own, (count + 1) / (count + 2), 1 / (count * _OTHERS + 2)).ravel()
    x = cosine_NN.ravel().astype(np.float64)
    free = np.array([scale is None, bias is None])
    at = np.array([10.0 if scale is None else scale, -10.0 if bias is None else bias])

    def loss_at(at: NDArray[np.float64]) -> float:
        z = at[0] * x + at[1]
        return float((weight * (np.logaddexp(0, z) - wanted * z)).sum())

    loss = loss_at(at)
    for _ in range(_STEPS if free.any() else 0):
        p = _sigmoid(at[0] * x + at[1])
        slope, curve = weight * (p - wanted), weight * p * (1 - p)
        gradient = np.array([(slope * x).sum(), slope.sum()])[free]
        h01 = (curve * x).sum()
        hessian = np.array([[(curve * x * x).sum(), h01], [h01, curve.sum()]])
        step = np.zeros(2)
        step[free] = np.linalg.solve(
            hessian[np.ix_(free, free)] + 1e-9 * np.eye(int(free.sum())), gradient
        )
        size = 1.0
        while (new := loss_at(at - size * step)) > loss and size > 1e-6:
            size /= 2
        if loss - new <= 1e-10 * abs(loss):
            break
        at, loss = at - size * step, new
    if at[0] <= 0:
        raise SettingError(
            f"the fit gives a scale of {at[0]:.3g}, which is not above 0: own pairs are not nearer than "
            f"others; {_REMEDY}"
        )
    return float(at[0]), float(at[1]), loss / count


def _loss_of_ratio() -> float:
    """Return the loss of an own pair with its others if only their ratio is known."""
    share = 1 / (_OTHERS + 1)
    return -math.log(share) - _OTHERS * math.log1p(-share)


def _sigmoid(z: NDArray[Any]) -> NDArray[np.float64]:
    return 0.5 * (1 + np.tanh(0.5 * z))
