"""Fitting scale and bias: recovered where they are known, finite where pairs are separated, refused."""

import math

import numpy as np
import pytest
from kit.embeddings import pairs, unit

from siglip2_cache.errors import SettingError
from siglip2_cache.precompute.importing.fit import fit_logits


def gaussian_pairs(num: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs whose cosines are normal: .5 +- .1 of own pairs, 0 +- .1 of others."""
    random = np.random.default_rng(0)
    width = 100  # the cosine of random unit rows has standard deviation .1
    images = unit(random.normal(size=(num, width)))
    noise = random.normal(size=(num, width))
    noise -= (noise * images).sum(1, keepdims=True) * images
    cosine = np.clip(0.5 + 0.1 * random.normal(size=(num, 1)), -1, 1)
    texts = cosine * images + np.sqrt(1 - cosine**2) * unit(noise)
    return images.astype(np.float32), texts.astype(np.float32)


def test_the_fit_is_bayes_rule_where_the_cosines_are_normal() -> None:
    # log p(own)/p(other) = (c - 0)^2/2s^2 - (c - m)^2/2s^2 + log ratio = (m/s^2) c - m^2/2s^2 - log 32767
    found = fit_logits(*gaussian_pairs(400))
    scale, bias = 0.5 / 0.01, -(0.5**2) / (2 * 0.01) - math.log(32_767)
    assert math.exp(found.logit_scale) == pytest.approx(scale, rel=0.2)
    assert found.logit_bias == pytest.approx(bias, rel=0.2)
    assert 0 < found.scale_error < 0.2
    assert 0 < found.loss < 1
    line = found.line()
    assert line.startswith("logits     scale ")
    assert "fitted to 400 own against other pairs" in line


def test_a_given_scale_or_bias_is_kept_and_the_other_is_fitted() -> None:
    both = gaussian_pairs(200)
    of_scale = fit_logits(*both, logit_scale=math.log(50))
    assert (of_scale.logit_scale, of_scale.scale_error) == (pytest.approx(math.log(50)), 0)
    assert of_scale.logit_bias == pytest.approx(-22.9, rel=0.1)
    of_bias = fit_logits(*both, logit_bias=-22.9)
    assert (of_bias.logit_bias, of_bias.bias_error) == (-22.9, 0)
    assert math.exp(of_bias.logit_scale) == pytest.approx(50, rel=0.15)


def test_pairs_that_are_separated_have_a_finite_fit() -> None:
    images = np.eye(16, dtype=np.float32)
    found = fit_logits(images, images)
    assert 1 < math.exp(found.logit_scale) < 1000
    assert found.own > 0.5


def test_a_fit_that_means_nothing_is_refused() -> None:
    images, texts = (rows.astype(np.float32) for rows in pairs(7, 8))
    with pytest.raises(
        SettingError, match="only 7 images have an embedding and a caption with one"
    ):
        fit_logits(images, texts)
    images, texts = (rows.astype(np.float32) for rows in pairs(40, 32))
    with pytest.raises(
        SettingError, match="images are no nearer to their own captions than to others"
    ):
        fit_logits(images, -texts)
