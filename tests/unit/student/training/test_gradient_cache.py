"""Gradients of a step: of the whole batch, exactly, in pieces of any size."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.steps import (
    WEIGHTS,
    Case,
    assert_same_gradients,
    gradients_of,
    on_device,
    pieces_of,
    plain_loss,
)
from kit.students import write_student
from torch.utils._python_dispatch import TorchDispatchMode

from siglip2_cache.store.format.teacher_record import PatchSettings
from siglip2_cache.student.data.batch import Batch
from siglip2_cache.student.distributed import Ranks
from siglip2_cache.student.positives import Positives
from siglip2_cache.student.training.distiller import Embedded
from siglip2_cache.student.training.gradient_cache import GradientCache, split_batch
from siglip2_cache.student.training.learnability import part_of_batch

pytestmark = pytest.mark.usefixtures("one_thread")

MORE_TEXTS = {"captions": (4, -1, 0), "num_texts": 6}
"""Images that could not be read leave their texts behind."""

TWO_CAPTIONS: dict[str, Any] = {
    "captions": ((0, 1), (-1, -1), (2, 0), (3, -1), (4, 3), (1, 5)),
    "num_texts": 6,
}

CASES: dict[str, dict[str, Any]] = {
    "two towers, learned map": {"projection": "learned"},
    "two towers, no map, hard bank": {"projection": "none", "bank_labels": "hard"},
    "two towers, pca map": {"projection": "pca"},
    "image tower, pca map": {"towers": "image", "projection": "pca"},
    "image tower, no map, hard bank": {
        "towers": "image",
        "projection": "none",
        "bank_labels": "hard",
    },
    "text tower, learned map": {"towers": "text", "projection": "learned"},
    "text tower, pca map, ignored, weighed": {
        "towers": "text",
        "projection": "pca",
        "ignore_similar": 0.35,
        "positives": Positives("weighed"),
    },
    "text tower, no map": {"towers": "text", "projection": "none", **MORE_TEXTS},
    "weighed captions, hard bank": {
        "projection": "none",
        "bank_labels": "hard",
        "positives": Positives("weighed"),
    },
    "similar texts and images ignored, hard bank": {
        "projection": "none",
        "bank_labels": "hard",
        "ignore_similar": 0.35,
    },
    "two captions an image": {**TWO_CAPTIONS, "bank_labels": "hard"},
    "two captions an image, above, ignored": {
        **TWO_CAPTIONS,
        "bank_labels": "hard",
        "positives": Positives("above", 0.3),
        "ignore_similar": 0.35,
    },
    "two captions an image, weighed": {
        **TWO_CAPTIONS,
        "towers": "image",
        "projection": "none",
        "positives": Positives("weighed"),
    },
    "more texts than images": {"projection": "learned", **MORE_TEXTS},
    "no captions": {"captions": (-1, -1, -1), "num_texts": 0},
}
DENSE = {
    dim: PatchSettings(grid=2, dim=dim, width=40, rms=1.7, kept=1.0, num_images=1)
    for dim in (5, 40)
}
"""Patch targets that are narrower and wider than a student."""
CASES |= {
    "dense targets": {"towers": "image", "projection": "pca", "patches": DENSE[5]},
    "wide dense targets, learned map": {"patches": DENSE[40], **MORE_TEXTS},
}
KINDS = ("tiny_student", "naflex_student")


@pytest.fixture(params=KINDS)
def student(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def dropping(
    tiny_checkpoint: Path, naflex_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A student of a kind whose attention drops a third of its weights."""
    folder = tmp_path_factory.mktemp("dropping")
    made = {
        kind: write_student(source, folder / kind, dropout=0.34)
        for kind, source in zip(KINDS, (tiny_checkpoint, naflex_checkpoint), strict=True)
    }
    return made.__getitem__


def by_hand(
    case: Case, size: int | None = None, dtype: torch.dtype = torch.float64
) -> tuple[float, dict[str, float], dict[str, torch.Tensor]]:
    """Total, terms and gradients by plain autograd through all pieces at once."""
    distiller = case.distiller(dtype)
    torch.manual_seed(5)
    batch = case.batch()
    total, terms = plain_loss(case, distiller, batch, pieces_of(batch, size))
    total.backward()
    values = {name: float(value.detach()) for name, value in terms.items()}
    return float(total.detach()), values, gradients_of(distiller)


def computed(
    case: Case, size: int | None = None, dtype: torch.dtype = torch.float64
) -> tuple[Any, dict[str, torch.Tensor]]:
    distiller = case.distiller(dtype)
    loss = case.compute(distiller, size)
    return loss, gradients_of(distiller)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((KINDS[0], name) for name in CASES),
        *(
            (KINDS[1], name)
            for name in CASES
            if not any(word in name for word in ("bank", "two", "above", "text tower"))
        ),
    ],
)
def test_loss_and_gradients_are_those_of_the_formulas_whatever_the_pieces(
    request: pytest.FixtureRequest, kind: str, name: str
) -> None:
    case = Case(request.getfixturevalue(kind), **CASES[name])
    total, terms, expected = by_hand(case)
    whole_loss, whole = computed(case)
    assert whole_loss.values == pytest.approx(terms, rel=1e-9, abs=1e-12)
    assert whole_loss.total == pytest.approx(total, rel=1e-9)
    assert_same_gradients(whole, expected, 1e-9)
    recomputing = dataclasses.replace(case, has_checkpointing=True)
    for size in (3, 5):  # 7 images and 4 texts: 3 leaves a rest of 1, 5 a piece without a text
        loss, found = computed(recomputing, size)
        assert loss.values == pytest.approx(whole_loss.values, rel=1e-12)
        assert loss.gradient_norms == pytest.approx(whole_loss.gradient_norms, rel=1e-9)
        assert loss.counts == whole_loss.counts
        assert_same_gradients(found, whole, 1e-9)


def of_two_teachers(
    case: Case, weights: Sequence[float], size: int | None = None, batch: Batch | None = None
) -> tuple[Any, dict[str, torch.Tensor]]:
    """Loss and gradients of the two teachers, their terms times a weight."""
    distiller, batch = case.distiller(), case.batch() if batch is None else batch
    objectives = [
        dataclasses.replace(each, weights={name: w * x for name, x in each.weights.items()})
        for each, w in zip(case.objectives(), weights, strict=True)
    ]
    gradients = GradientCache(distiller, objectives, Ranks(), micro_batch_size=size)
    return gradients.compute(batch, case.all_labels(batch)).read(), gradients_of(distiller)


def test_two_teachers_are_the_sum_of_both(tiny_student: Path) -> None:
    case = Case(tiny_student, num_teachers=2)
    loss, found = of_two_teachers(case, (1, 1))
    first_loss, first = of_two_teachers(case, (1, 0))
    second_loss, second = of_two_teachers(case, (0, 1))
    assert loss.values == {**first_loss.values, **second_loss.values}
    assert loss.total == pytest.approx(first_loss.total + second_loss.total, rel=1e-12)
    assert loss.counts == first_loss.counts == second_loss.counts
    assert set(second_loss.values) == {
        f"{term}/second" for term in WEIGHTS if term != "contrastive"
    }
    without = ("cosine", "contrastive", "drrho")
    assert set(loss.floors) == {name for name in loss.values if not name.startswith(without)}
    summed = {name: first[name] + second[name] for name in found}
    assert_same_gradients(found, summed, 1e-12)
    assert (
        max(float(second[name].abs().max()) for name in ("projection_1.weight", "bank_bias_1")) > 0
    )
    pieces_loss, pieces = of_two_teachers(case, (1, 1), size=3)
    assert pieces_loss.values == pytest.approx(loss.values, rel=1e-12)
    assert_same_gradients(pieces, found, 1e-9)


def test_of_two_teachers_the_first_teaches_patches(tiny_student: Path) -> None:
    case = Case(tiny_student, num_teachers=2, patches=DENSE[40])
    loss, found = of_two_teachers(case, (1, 1), size=3)
    first_loss, first = of_two_teachers(case, (1, 0))
    assert "patch/second" not in loss.values
    assert loss.values["patch"] == pytest.approx(first_loss.values["patch"], rel=1e-12)
    name = "patch_head.map.0.weight"
    torch.testing.assert_close(found[name], first[name], rtol=1e-9, atol=1e-12)
    assert found[name].abs().max() > 0


def test_a_second_teacher_of_weight_0_changes_nothing(tiny_student: Path) -> None:
    loss, found = of_two_teachers(Case(tiny_student, num_teachers=2), (1, 0))
    alone_loss, alone = computed(Case(tiny_student))
    assert loss.total == alone_loss.total
    assert loss.gradient_norms == alone_loss.gradient_norms
    assert all(torch.equal(found[name], gradient) for name, gradient in alone.items())


def test_rows_that_a_teacher_has_no_target_of_are_in_none_of_its_terms(tiny_student: Path) -> None:
    case = Case(tiny_student, num_teachers=2)
    batch = case.batch()
    for targets in batch.targets[1:]:  # what a cache gives where there is no target
        targets.image_NE[2], targets.text_ME[1] = torch.nan, torch.nan
    loss, found = of_two_teachers(case, (0, 1), batch=batch)
    # The same batch without these rows, of which the teacher has all targets.
    empty = Embedded(image_ND=None, text_MD=None)
    has = np.arange(7) != 2, np.arange(4) != 1
    without, _ = part_of_batch(batch, empty, *has, 0)
    without.targets[1] = dataclasses.replace(without.targets[1], has_image_N=None, has_text_M=None)
    expected_loss, expected = of_two_teachers(case, (0, 1), batch=without)
    assert loss.values == pytest.approx(expected_loss.values, rel=1e-12)
    assert_same_gradients(found, expected, 1e-9)


def test_in_float32_pieces_give_the_gradient_to_float32(student: Path) -> None:
    for has_checkpointing in (False, True):
        case = Case(student, has_checkpointing=has_checkpointing)
        _, expected = computed(case, dtype=torch.float32)
        for size in (1, 3):
            _, found = computed(case, size, dtype=torch.float32)
            assert_same_gradients(found, expected, 1e-5)


@pytest.mark.parametrize(
    ("kind", "towers", "has_checkpointing"),
    [(KINDS[0], "both", False), (KINDS[0], "both", True), (KINDS[1], "image", True)],
)
def test_the_second_pass_drops_what_the_first_dropped(
    dropping: Callable[[str], Path], kind: str, towers: Any, has_checkpointing: bool
) -> None:
    case = Case(
        dropping(kind),
        towers=towers,
        projection="learned" if towers == "both" else "pca",
        has_checkpointing=has_checkpointing,
    )
    total, _, expected = by_hand(case, 3)
    loss, found = computed(case, 3)
    assert loss.total == pytest.approx(total, rel=1e-9)
    assert_same_gradients(found, expected, 1e-9)
    # The test sees what it is meant to see: without dropout the gradient is another.
    without = case.distiller().eval()
    case.compute(without, 3)
    with pytest.raises(AssertionError, match="off by"):
        assert_same_gradients(gradients_of(without), expected, 1e-3)


def test_after_a_step_torch_has_drawn_only_once(dropping: Callable[[str], Path]) -> None:
    case = Case(dropping("tiny_student"))
    states: list[torch.Tensor] = []
    for batch_of in (lambda: case.compute(case.distiller(), 3), lambda: by_hand(case, 3)):
        batch_of()
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_both_passes_see_the_same_autocast(student: Path) -> None:
    case = Case(student, compute_dtype="bfloat16")
    total, _, expected = by_hand(case, 3, torch.float32)
    loss, found = computed(case, 3, torch.float32)
    assert loss.total == pytest.approx(total, rel=1e-6)
    # Rounding of the last bit of float32 may turn one of bfloat16, 2^-8.
    assert_same_gradients(found, expected, 5e-3)
    exact = by_hand(dataclasses.replace(case, compute_dtype="float32"), 3, torch.float32)[2]
    with pytest.raises(AssertionError, match="off by"):
        assert_same_gradients(found, exact, 1e-2)


def test_gradient_norms_are_of_each_weighted_term_by_the_images(tiny_student: Path) -> None:
    case = Case(tiny_student)
    distiller, batch = case.distiller(), case.batch()
    embed = distiller.embed
    kept: list[torch.Tensor] = []

    def embed_and_keep(piece: Any) -> Any:
        found = embed(piece)
        kept.append(found.image_ND)
        return found

    distiller.embed = embed_and_keep  # type: ignore[method-assign]
    _, terms = plain_loss(case, distiller, batch, pieces_of(batch, None))
    [x_ND] = kept
    expected: dict[str, float] = {}
    for name, value in terms.items():
        [by_ND] = torch.autograd.grad(
            value * WEIGHTS[name], x_ND, retain_graph=True, materialize_grads=True
        )
        along_ND = (by_ND * x_ND).sum(-1, keepdim=True) * x_ND  # a unit row cannot go there
        expected[name] = (by_ND - along_ND).norm().item()
    loss, _ = computed(case)
    assert loss.gradient_norms == pytest.approx(expected, rel=1e-9)


def test_counts_are_of_images_that_could_be_used(tiny_student: Path) -> None:
    loss, _ = computed(Case(tiny_student))
    counts = loss.counts
    assert (counts.num_images, counts.num_captioned, counts.num_texts) == (7, 5, 4)
    assert counts.caption_weight == 5
    assert counts.bank_caption_weight == 3  # text 0, of two images, is not in the bank


def test_pieces_hold_each_image_and_each_text_once(naflex_student: Path) -> None:
    for settings, size, expected in (
        ({}, 3, [(3, 3), (3, 1), (1, 0)]),
        (MORE_TEXTS, 2, [(2, 2), (1, 2), (0, 2)]),
        ({}, None, [(7, 4)]),
    ):
        batch: Batch = Case(naflex_student, **settings).batch()
        pieces = split_batch(batch, size)
        sizes = [(len(p.pixels_N), 0 if p.ids_ML is None else len(p.ids_ML)) for p in pieces]
        assert sizes == expected
        assert torch.equal(torch.cat([p.pixels_N for p in pieces]), batch.pixels_N)
        assert batch.ids_ML is not None
        assert torch.equal(torch.cat([p.ids_ML for p in pieces]), batch.ids_ML)


def test_more_images_than_a_compiled_layer_is_padded_to_are_cut_to_that_size(
    naflex_student: Path,
) -> None:
    """As the larger batch that learnability selects from, and a process's uneven part of what it selects."""
    pieces = split_batch(Case(naflex_student).batch(), None, (5, 5))
    assert [(p.num_images, p.num_texts) for p in pieces] == [(5, 4), (2, 0)]
    for piece in pieces:
        assert piece.pixels_N is not None
        assert piece.ids_ML is not None or not piece.num_texts
        assert len(piece.pixels_N) == 5


class NoWait(TorchDispatchMode):
    """Fails where a copy to the device would wait for the work that the device has."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].device.type == "cpu":
            is_to_device = torch.device(kwargs.get("device") or "cpu").type == "meta"
            assert not is_to_device or kwargs.get("non_blocking"), args[0]
        return func(*args, **kwargs)


@pytest.mark.parametrize(
    ("settings", "size"),
    [*((settings, 3) for settings in CASES.values()), ({}, None), ({"num_teachers": 2}, 3)],
)
def test_a_step_reads_nothing_from_the_device_and_waits_for_no_copy(
    tiny_student: Path,
    settings: dict[str, Any],
    size: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The device ``meta`` has no values: whatever reads one fails."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    case = Case(tiny_student, **settings)
    distiller = case.distiller(torch.float32).to("meta")
    labels = on_device(case.all_labels(case.batch(), torch.float32), "meta")
    gradients = GradientCache(
        distiller, case.objectives(), Ranks(), micro_batch_size=size, map_ED=case.fixed_map()
    )
    with NoWait():
        loss = gradients.compute(case.batch(), labels)
        norm = torch.nn.utils.clip_grad_norm_(distiller.parameters(), 1.0)
        is_finite = loss.is_finite & norm.isfinite()
    assert is_finite.device.type == "meta"
    with pytest.raises(RuntimeError):
        loss.read()


@pytest.mark.parametrize("tower", ["vision_model", "text_model"])
@pytest.mark.parametrize("size", [1, 2])
def test_a_piece_with_rows_of_a_frozen_tower_alone_is_passed_over(
    tiny_student: Path, tower: str, size: int
) -> None:
    more = MORE_TEXTS if tower == "text_model" else {}
    case = Case(tiny_student, **more)
    found: list[dict[str, torch.Tensor]] = []
    for micro_batch_size in (None, size):
        distiller = case.distiller()
        getattr(distiller.model, tower).requires_grad_(False)
        case.compute(distiller, micro_batch_size)
        found.append(gradients_of(distiller))
    assert_same_gradients(found[1], found[0], 1e-9)
