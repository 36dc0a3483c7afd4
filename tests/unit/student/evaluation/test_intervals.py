"""Intervals against formulas, and against a bootstrap that computes every figure anew."""

from typing import Any

import numpy as np
import pytest
from kit.evaluations import embeddings, eval_set, unit_rows
from numpy.typing import NDArray

from siglip2_cache.student.evaluation.evaluate import evaluate
from siglip2_cache.student.evaluation.intervals import Figures
from siglip2_cache.student.evaluation.metrics import image_agreement, soft_loss_excess


def width(interval: list[float]) -> float:
    return interval[1] - interval[0]


def test_the_interval_of_a_rate_is_that_of_the_binomial_and_of_a_mean_that_of_the_normal() -> None:
    draw = np.random.default_rng(0)
    hits, values = draw.random(400) < 0.3, draw.normal(size=400)
    figures = Figures(np.arange(400))
    figures.add_mean(("rate",), np.arange(400), hits)
    figures.add_mean(("deep", "mean"), np.arange(400), values)
    found = figures.intervals(seed=0)
    rate = hits.mean()
    assert np.mean(found["rate"]) == pytest.approx(rate, abs=0.01)
    expected = 2 * 1.96 * np.sqrt(rate * (1 - rate) / 400)
    assert width(found["rate"]) == pytest.approx(expected, rel=0.1)
    assert width(found["deep"]["mean"]) == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert figures.intervals(seed=0) == found != figures.intervals(seed=1)
    assert width(figures.intervals(seed=0, level=0.5)["rate"]) < width(found["rate"]) / 2


def test_copies_of_a_picture_are_drawn_together() -> None:
    hits = np.random.default_rng(0).random(100) < 0.5

    def interval(times: int) -> list[float]:
        figures = Figures(np.repeat(np.arange(100), times))
        figures.add_mean(("rate",), np.arange(100 * times), np.repeat(hits, times))
        return figures.intervals(seed=0)["rate"]

    assert interval(9) == pytest.approx(interval(1))


def test_what_is_not_finite_is_left_out_and_what_is_never_defined_has_no_interval() -> None:
    figures = Figures(np.arange(3))
    figures.add_mean(("one",), np.array([0, 1, 2]), np.array([np.nan, 0.5, 0.5]))
    figures.add_mean(("none",), np.array([0]), np.array([np.nan]))
    figures.add_mean_of(("both",), [("one",), ("none",)])
    assert figures.intervals(seed=0) == {"one": [0.5, 0.5], "none": None, "both": None}
    assert Figures(np.arange(3)).intervals(seed=0) == {}


def test_a_mean_of_figures_is_of_the_same_resample() -> None:
    values = np.random.default_rng(0).normal(size=50)
    figures = Figures(np.arange(50))
    figures.add_mean(("a",), np.arange(50), values)
    figures.add_mean(("b",), np.arange(50), -values)
    figures.add_mean_of(("zero",), [("a",), ("b",)])
    assert figures.intervals(seed=0)["zero"] == pytest.approx([0, 0])


IMAGES = 80


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any, Any]:
    """80 images with a caption each, as a teacher and a student like it have them."""
    images, texts = unit_rows(0, (IMAGES, 5)), unit_rows(1, (IMAGES, 5))
    texts = (texts + 2 * images) / np.linalg.norm(texts + 2 * images, axis=1, keepdims=True)
    teacher = embeddings(images, texts)
    student = [side + 0.8 * unit_rows(2 + i, (IMAGES, 5)) for i, side in enumerate((images, texts))]
    student = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in student]
    numbers, none = np.arange(IMAGES), np.empty(0, np.int64)
    pairs = eval_set(
        rows_N=numbers, sha256_N=np.zeros((IMAGES, 32), np.uint8), picture_N=numbers,
        text_rows_M=numbers, image_P=numbers, text_P=numbers, lang_P=np.zeros(IMAGES, np.int32),
        langs=("en",), label_N=np.full(IMAGES, -1), class_Q=none, prompt_Q=none, lang_Q=(),
    )  # fmt: skip
    return embeddings(*student), teacher, pairs


def resampled(figure: Any) -> NDArray[np.float64]:
    """A figure of 300 resamples of the images, computed anew."""
    draw = np.random.default_rng(5)
    return np.array([figure(draw.integers(0, IMAGES, IMAGES)) for _ in range(300)])


def test_the_correlation_of_cosines_has_the_interval_of_a_whole_bootstrap(
    models: tuple[Any, Any, Any],
) -> None:
    student, teacher, pairs = models
    found = evaluate(student, teacher, pairs)["intervals"]["image_correlation"]
    above = np.triu_indices(IMAGES, 1)

    def anew(drawn: NDArray[np.int64]) -> float:
        x, y = (side.images_ND[drawn] for side in (student, teacher))
        is_pair = drawn[above[0]] != drawn[above[1]]  # an image and itself are no pair
        return float(np.corrcoef((x @ x.T)[above][is_pair], (y @ y.T)[above][is_pair])[0, 1])

    expected = np.quantile(resampled(anew), (0.025, 0.975))
    assert image_agreement(student.images_ND, teacher.images_ND).correlation == pytest.approx(
        np.mean(found), abs=0.02
    )
    np.testing.assert_allclose(found, expected, atol=0.15 * width(list(expected)))


def test_the_soft_loss_has_the_interval_of_a_whole_bootstrap(models: tuple[Any, Any, Any]) -> None:
    student, teacher, pairs = models
    found = evaluate(student, teacher, pairs)["intervals"]["soft_loss_excess"]

    def anew(drawn: NDArray[np.int64]) -> float:
        sides = [(side.images_ND[drawn], side.texts_MD[drawn]) for side in (student, teacher)]
        return float(
            soft_loss_excess(*sides, student_logit=student.logit, teacher_logit=teacher.logit) or 0
        )

    values = resampled(anew)
    assert width(found) == pytest.approx(width(np.quantile(values, (0.025, 0.975))), rel=0.2)


def test_every_figure_has_an_interval_around_it_at_the_same_place(
    models: tuple[Any, Any, Any],
) -> None:
    for student, teacher, pairs in (models, of_classes_and_languages()):
        found = evaluate(student, teacher, pairs)
        intervals = leaves(found.pop("intervals"))
        figures = {path: value for path, value in leaves(found).items() if isinstance(value, float)}
        assert intervals.keys() == figures.keys()
        for path, (low, high) in intervals.items():
            assert low - 0.02 <= figures[path] <= high + 0.02, path


def of_classes_and_languages() -> tuple[Any, Any, Any]:
    """60 images, each fifth a copy of the one before; captions in two languages, some shared; classes."""
    count = 60
    images = unit_rows(0, (count, 4))
    images[4::5] = images[3::5]
    texts = unit_rows(1, (2 * count + 6, 4))
    image_P = np.repeat(np.arange(count), 2)
    text_P = np.stack([np.arange(count) // 2, count + np.arange(count)], axis=1).ravel()
    texts[text_P] += images[image_P]
    texts[-6:] += images[:6]
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    picture_N = np.arange(count)
    picture_N[4::5] = picture_N[3::5]
    label_N = (images @ texts[-6:].T).argmax(axis=1) % 3
    pairs = eval_set(
        rows_N=np.arange(count), sha256_N=np.zeros((count, 32), np.uint8), picture_N=picture_N,
        text_rows_M=np.arange(len(texts)), image_P=image_P, text_P=text_P,
        lang_P=np.tile([0, 1], count).astype(np.int32), langs=("de", "en"), label_N=label_N,
        class_Q=np.tile(np.arange(3), 2), prompt_Q=np.arange(2 * count, 2 * count + 6),
        lang_Q=("de", "de", "de", "en", "en", "en"),
    )  # fmt: skip
    noise = [side + 0.3 * unit_rows(9, side.shape) for side in (images, texts)]
    noise = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in noise]
    return embeddings(*noise), embeddings(images, texts), pairs


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {
        k: v for name, inner in value.items() for k, v in leaves(inner, f"{path}/{name}").items()
    }
