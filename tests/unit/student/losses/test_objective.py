"""What each term counts, ignores and is divided by."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from siglip2_cache.student.config import BankLabels
from siglip2_cache.student.losses.objective import (
    BankImages,
    Counts,
    LossInputs,
    Objective,
    TextColumns,
)
from siglip2_cache.student.positives import parse_positives
from siglip2_cache.student.terms import loss_terms

N, M, K, D, E = 4, 3, 5, 6, 4
SCALE, BIAS, BANK_SCALE, BANK_BIAS = 3.0, -1.0, 2.0, -0.5
TEACHER_SCALE, TEACHER_BIAS = 7.0, 2.0
AFFINITY_SCALE, RELATIONS_SCALE = 5.0, 4.0
CAPTION_N = torch.tensor([0, -1, 2, 0])
"""Images 0 and 3 share a text, image 1 has none."""

COUNTS = Counts(
    num_images=N,
    num_captioned=3,
    num_texts=M,
    caption_weight=torch.tensor(3.0),
    bank_caption_weight=torch.tensor(2.0),
)


def unit(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(*shape, generator=generator, dtype=torch.float64) + 0.4
    return F.normalize(rows, dim=-1)


X_ND, Y_MD, PX_NE, PY_ME = (
    unit(N, D, seed=1),
    unit(M, D, seed=2),
    unit(N, E, seed=3),
    unit(M, E, seed=4),
)
U_NE, V_ME, W_KE = unit(N, E, seed=5), unit(M, E, seed=6), unit(K, E, seed=7)
Q_ND, R_NE = unit(N, D, seed=8), unit(N, E, seed=9)
"""Images of a process before this one."""

BANK_CAPTION_N = torch.tensor([4, -1, -1, 1])


def pairs(*found: tuple[int, int]) -> Tensor:
    return torch.tensor(found, dtype=torch.int64).reshape(-1, 2).T


def rows_of(**changed: Any) -> LossInputs:
    given: dict[str, Any] = {
        "image_ND": X_ND,
        "mapped_image_NE": PX_NE,
        "mapped_text_E": PY_ME,
        "teacher_image_NE": U_NE,
        "target_image_NE": U_NE,
        "target_text_E": V_ME,
        "texts": TextColumns(
            text=Y_MD, caption_NC=CAPTION_N[:, None], matching_2P=pairs(), teacher_text_ME=V_ME
        ),
        "bank": TextColumns(
            text=W_KE, caption_NC=BANK_CAPTION_N[:, None], matching_2P=pairs(), teacher_text_ME=W_KE
        ),
        "counts": COUNTS,
        "scale": torch.tensor(SCALE, dtype=torch.float64),
        "bias": torch.tensor(BIAS, dtype=torch.float64),
        "own_texts": slice(0, M),
        "image_GD": torch.cat([Q_ND, X_ND]),
        "teacher_image_GE": torch.cat([R_NE, U_NE]),
        "first_image": N,
        "image_bank": BankImages(target_KE=W_KE, teacher_KE=W_KE),
        "bank_scale": torch.tensor(BANK_SCALE, dtype=torch.float64),
        "bank_bias": torch.tensor(BANK_BIAS, dtype=torch.float64),
    }
    return LossInputs(**{**given, **changed})


def objective_of(
    *terms: str,
    bank_labels: BankLabels = "soft",
    bank_threshold: float = 1.0,
    positives: str = "all",
    ignore_similar: float | None = None,
) -> Objective:
    weights: Mapping[str, float] = {term: float(term in terms) for term in loss_terms()}
    return Objective(
        weights=weights,
        teacher_scale=TEACHER_SCALE,
        teacher_bias=TEACHER_BIAS,
        bank_labels=bank_labels,
        bank_threshold=bank_threshold,
        positives=parse_positives(positives),
        ignore_similar=ignore_similar,
        affinity_scale=AFFINITY_SCALE,
        relations_scale=RELATIONS_SCALE,
    )


def value_of(term: str, rows: LossInputs | None = None, **settings: Any) -> float:
    found = objective_of(term, **settings).values(rows or rows_of())
    assert list(found) == [term]
    return float(found[term].value)


def hard_sum(
    z_NM: Tensor, positives: list[tuple[int, int]], ignored: set[tuple[int, int]]
) -> float:
    """Sum over the rows that have a positive."""
    total = 0.0
    for i, own in positives:
        for j in range(z_NM.shape[1]):
            if j == own:
                total += float(F.softplus(-z_NM[i, j]))
            elif (i, j) not in ignored:
                total += float(F.softplus(z_NM[i, j]))
    return total


Z_NM = SCALE * X_ND @ Y_MD.T + BIAS
BANK_NK = BANK_SCALE * PX_NE @ W_KE.T + BANK_BIAS
OWN = [(0, 0), (2, 2), (3, 0)]
BANK_OWN = [(0, 4), (3, 1)]


def soft_sum(z_NM: Tensor, text_ME: Tensor) -> float:
    p_NM = torch.sigmoid(TEACHER_SCALE * U_NE @ text_ME.T + TEACHER_BIAS)
    return float((F.softplus(z_NM) - p_NM * z_NM).sum())


def test_soft_is_divided_by_all_images_captioned_or_not() -> None:
    assert value_of("soft") == pytest.approx(soft_sum(Z_NM, V_ME) / N, rel=1e-12)


def test_contrastive_is_divided_by_captioned_images_and_leaves_the_others_out() -> None:
    assert value_of("contrastive") == pytest.approx(hard_sum(Z_NM, OWN, set()) / 3, rel=1e-12)


def test_cosine_divides_images_by_images_and_texts_by_texts_and_halves() -> None:
    images = (1 - (PX_NE * U_NE).sum(-1)).sum() / N
    texts = (1 - (PY_ME * V_ME).sum(-1)).sum() / M
    assert value_of("cosine") == pytest.approx(float(images + texts) / 2, rel=1e-12)


def test_cosine_of_an_image_tower_alone_is_not_halved() -> None:
    rows = rows_of(mapped_text_E=None, target_text_E=None)
    images = (1 - (PX_NE * U_NE).sum(-1)).sum() / N
    assert value_of("cosine", rows) == pytest.approx(float(images), rel=1e-12)


def test_a_soft_bank_is_divided_by_all_images() -> None:
    assert value_of("bank") == pytest.approx(soft_sum(BANK_NK, W_KE) / N, rel=1e-12)


def test_a_hard_bank_is_divided_by_images_whose_caption_is_in_it() -> None:
    expected = hard_sum(BANK_NK, BANK_OWN, set()) / 2
    assert value_of("bank", bank_labels="hard") == pytest.approx(expected, rel=1e-12)


def test_counts_are_those_of_all_processes_not_of_this_one() -> None:
    counts = Counts(
        num_images=40,
        num_captioned=30,
        num_texts=25,
        caption_weight=torch.tensor(30.0),
        bank_caption_weight=torch.tensor(20.0),
    )
    rows = rows_of(counts=counts)
    for term, factor in (("soft", 10), ("contrastive", 10)):
        assert value_of(term, rows) == pytest.approx(value_of(term) / factor, rel=1e-12)
    assert value_of("bank", rows) == pytest.approx(value_of("bank") / 10, rel=1e-12)
    hard = value_of("bank", rows, bank_labels="hard")
    assert hard == pytest.approx(value_of("bank", bank_labels="hard") / 10, rel=1e-12)
    images = (1 - (PX_NE * U_NE).sum(-1)).sum() / 40
    texts = (1 - (PY_ME * V_ME).sum(-1)).sum() / 25
    assert value_of("cosine", rows) == pytest.approx(float(images + texts) / 2, rel=1e-12)


def test_pairs_known_to_match_are_ignored_by_hard_labels_and_kept_by_soft_ones() -> None:
    known = {(0, 0), (0, 2), (1, 1), (3, 1)}  # an own caption is never ignored
    texts = replace(rows_of().texts, matching_2P=pairs(*sorted(known)))
    rows = rows_of(texts=texts)
    expected = hard_sum(Z_NM, OWN, {(0, 2), (3, 1)}) / 3
    assert value_of("contrastive", rows) == pytest.approx(expected, rel=1e-12)
    assert value_of("contrastive", rows) < value_of("contrastive")
    assert value_of("soft", rows) == value_of("soft")


def test_a_hard_bank_ignores_known_pairs_and_texts_too_like_the_own_caption() -> None:
    bank = rows_of().bank
    assert bank is not None
    rows = rows_of(bank=replace(bank, matching_2P=pairs((0, 1), (0, 4), (3, 2))))
    expected = hard_sum(BANK_NK, BANK_OWN, {(0, 1), (3, 2)}) / 2
    found = value_of("bank", rows, bank_labels="hard")
    assert found == pytest.approx(expected, rel=1e-12)

    cosines = W_KE @ W_KE.T
    threshold = float(cosines[4, :4].max()) - 1e-6  # text 4's nearest, and perhaps others of text 1
    alike = {(i, k) for i, own in BANK_OWN for k in range(K) if cosines[own, k] > threshold}
    expected = hard_sum(BANK_NK, BANK_OWN, alike | {(0, 1), (3, 2)}) / 2
    found = value_of("bank", rows, bank_labels="hard", bank_threshold=threshold)
    assert found == pytest.approx(expected, rel=1e-12)
    assert len(alike) > len(BANK_OWN)


P_NM = torch.sigmoid(TEACHER_SCALE * U_NE @ V_ME.T + TEACHER_BIAS)
BANK_P_NK = torch.sigmoid(TEACHER_SCALE * U_NE @ W_KE.T + TEACHER_BIAS)


@pytest.mark.parametrize("positives", ["all", "weighed", "above=0.5"])
@pytest.mark.parametrize("term", ["contrastive", "bank"])
def test_a_drawn_caption_counts_by_the_teachers_probability_of_it(
    term: str, positives: str
) -> None:
    z_NM, p_NM, own = {
        "contrastive": (Z_NM, P_NM, OWN),
        "bank": (BANK_NK, BANK_P_NK, BANK_OWN),
    }[term]
    p = {i: float(p_NM[i, j]) for i, j in own}
    if positives != "weighed":
        p = {i: float(positives == "all" or each > 0.5) for i, each in p.items()}
    total = 0.0
    for i, j_own in own:
        for j in range(z_NM.shape[1]):
            total += p[i] * float(F.softplus(-z_NM[i, j] if j == j_own else z_NM[i, j]))
    settings: dict[str, Any] = {"bank_labels": "hard", "positives": positives}
    objective, rows = objective_of(term, **settings), rows_of()
    assert rows.bank is not None
    weights = {
        name: objective.caption_weights(U_NE, columns)[0].sum()
        for name, columns in (("caption_weight", rows.texts), ("bank_caption_weight", rows.bank))
    }
    own_weight = weights["caption_weight" if term == "contrastive" else "bank_caption_weight"]
    assert float(own_weight) == pytest.approx(sum(p.values()), rel=1e-12)
    assert own_weight >= 1
    found = value_of(term, rows_of(counts=replace(COUNTS, **weights)), **settings)
    assert found == pytest.approx(total / max(1, sum(p.values())), rel=1e-12)


def test_some_but_not_all_captions_are_above_the_threshold_of_these_tests() -> None:
    for p_NM, own in ((P_NM, OWN), (BANK_P_NK, BANK_OWN)):
        assert len({bool(p_NM[i, j] > 0.5) for i, j in own}) == 2


@pytest.mark.parametrize("positives", ["weighed", "above=0.5"])
def test_weights_of_captions_carry_no_gradient_to_the_teacher(positives: str) -> None:
    teacher_NE, x_ND = U_NE.clone().requires_grad_(), X_ND.clone().requires_grad_()
    rows = rows_of(image_ND=x_ND, teacher_image_NE=teacher_NE)
    objective_of("contrastive", positives=positives).values(rows)["contrastive"].value.backward()
    assert teacher_NE.grad is None
    assert x_ND.grad is not None
    is_kept_N = (CAPTION_N >= 0) & ((P_NM[range(N), CAPTION_N] > 0.5) | (positives == "weighed"))
    assert torch.equal(x_ND.grad.abs().sum(dim=1) > 0, is_kept_N)


@pytest.mark.parametrize("positives", ["weighed", "above=0.5"])
def test_a_missing_target_shows_in_the_loss_and_does_not_drop_its_caption(positives: str) -> None:
    rows = rows_of(teacher_image_NE=torch.where(torch.arange(N)[:, None] == 2, torch.nan, U_NE))
    assert not math.isfinite(value_of("contrastive", rows, positives=positives))


@pytest.mark.parametrize("term", ["contrastive", "bank"])
def test_texts_and_images_that_the_teacher_finds_similar_are_no_negatives(term: str) -> None:
    z_NM, text_ME, own, other = {
        "contrastive": (Z_NM, V_ME, OWN, 1),
        "bank": (BANK_NK, W_KE, BANK_OWN, 2),
    }[term]
    # Besides these images there is one with another process: the same picture as image 3.
    image_GE, caption_G = torch.cat([U_NE, U_NE[3:]]), torch.full((N + 1,), -1)
    caption_G[N] = other
    for i, j in own:
        caption_G[i] = j
    above = 0.6
    by_text = {(i, j) for i, k in own for j, v in enumerate(text_ME) if v @ text_ME[k] > above}
    by_image = {
        (i, int(caption_G[g]))
        for i, _ in own
        for g, u in enumerate(image_GE)
        if caption_G[g] >= 0 and u @ U_NE[i] > above
    }
    assert by_text - by_image - set(own)
    assert other in {j for _, j in by_image - by_text - set(own)}
    rows = rows_of(teacher_image_GE=image_GE)
    assert rows.bank is not None
    rows = replace(
        rows,
        texts=replace(rows.texts, caption_GC=caption_G[:, None]),
        bank=replace(rows.bank, caption_GC=caption_G[:, None]),
    )
    settings: dict[str, Any] = {"bank_labels": "hard", "ignore_similar": above}
    expected = hard_sum(z_NM, own, by_text | by_image) / len(own)
    assert value_of(term, rows, **settings) == pytest.approx(expected, rel=1e-12)
    assert value_of(term, rows, **settings) < value_of(term, rows, bank_labels="hard")
    assert value_of("soft", rows, ignore_similar=above) == value_of("soft")


def test_the_floor_is_the_teachers_entropy_and_only_soft_terms_have_one() -> None:
    found = objective_of("soft", "cosine", "contrastive", "bank").values(rows_of())
    assert list(found) == ["soft", "cosine", "contrastive", "bank"]
    for term, text_ME in (("soft", V_ME), ("bank", W_KE)):
        p = torch.sigmoid(TEACHER_SCALE * U_NE @ text_ME.T + TEACHER_BIAS)
        entropy = -(p * p.log() + (1 - p) * (1 - p).log()).sum() / N
        floor = found[term].floor
        assert floor is not None
        assert float(floor) == pytest.approx(float(entropy), rel=1e-9)
        assert float(found[term].value) > float(floor)
    assert found["cosine"].floor is None
    assert found["contrastive"].floor is None
    hard = objective_of("bank", bank_labels="hard").values(rows_of())
    assert hard["bank"].floor is None


def test_a_teacher_for_a_student_reaches_the_floor() -> None:
    texts = replace(rows_of().texts, text=V_ME)
    rows = rows_of(
        image_ND=U_NE,
        texts=texts,
        scale=torch.tensor(TEACHER_SCALE, dtype=torch.float64),
        bias=torch.tensor(TEACHER_BIAS, dtype=torch.float64),
    )
    found = objective_of("soft").values(rows)["soft"]
    assert found.floor is not None
    assert float(found.value) == pytest.approx(float(found.floor), rel=1e-12)


def test_without_any_caption_hard_terms_are_nothing_and_the_others_stay() -> None:
    none = torch.full((N,), -1)
    rows = rows_of(
        texts=replace(
            rows_of().texts, text=Y_MD[:0], teacher_text_ME=V_ME[:0], caption_NC=none[:, None]
        ),
        mapped_text_E=PY_ME[:0],
        target_text_E=V_ME[:0],
        counts=Counts(num_images=N, num_captioned=0, num_texts=0, caption_weight=torch.tensor(0.0)),
    )
    assert value_of("contrastive", rows) == 0
    assert value_of("soft", rows) == 0
    images = (1 - (PX_NE * U_NE).sum(-1)).sum() / N
    assert value_of("cosine", rows) == pytest.approx(float(images) / 2, rel=1e-12)
    assert value_of("bank", rows) == value_of("bank")


def softmax_of(row: list[float]) -> list[float]:
    total = sum(map(math.exp, row))
    return [math.exp(each) / total for each in row]


def cross_entropy(target: list[float], logits: list[float]) -> float:
    return -sum(p * math.log(q) for p, q in zip(target, softmax_of(logits), strict=True))


def cosines(row: Tensor, columns: Tensor, scale: float) -> list[float]:
    return [scale * float(row @ column) for column in columns]


def affinity_of(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> float:
    """Mean over rows of the cross-entropy to the teacher's softmax; each is (rows, columns)."""
    return sum(
        cross_entropy(
            softmax_of(cosines(u, teacher[1], AFFINITY_SCALE)),
            cosines(x, student[1], AFFINITY_SCALE),
        )
        for x, u in zip(student[0], teacher[0], strict=True)
    )


def test_affinity_is_over_all_texts_of_an_image_and_all_processes_images_of_a_text() -> None:
    rows = rows_of()
    images, teacher_images = rows.all_images()
    by_image = affinity_of((X_ND, Y_MD), (U_NE, V_ME)) / N
    by_text = affinity_of((Y_MD, images), (V_ME, teacher_images)) / M
    assert value_of("affinity") == pytest.approx((by_image + by_text) / 2, rel=1e-12)


def relations_of(x: Tensor, columns: Tensor, u: Tensor, teacher: Tensor, first: int) -> float:
    total = 0.0
    for i in range(len(x)):
        others = [j for j in range(len(columns)) if j != first + i]
        total += cross_entropy(
            softmax_of(cosines(u[i], teacher[others], RELATIONS_SCALE)),
            cosines(x[i], columns[others], RELATIONS_SCALE),
        )
    return total


def test_relations_are_over_all_others_of_the_modality() -> None:
    images, teacher_images = rows_of().all_images()
    of_images = relations_of(X_ND, images, U_NE, teacher_images, N) / N
    of_texts = relations_of(Y_MD, Y_MD, V_ME, V_ME, 0) / M
    assert value_of("relations") == pytest.approx((of_images + of_texts) / 2, rel=1e-12)
    alone = rows_of(mapped_text_E=None, target_text_E=None)
    assert value_of("relations", alone) == pytest.approx(of_images, rel=1e-12)


def test_a_batch_of_one_image_and_one_text_has_no_relations_and_no_nan() -> None:
    texts = replace(rows_of().texts, text=Y_MD[:1], teacher_text_ME=V_ME[:1])
    x_ND = X_ND[:1].clone().requires_grad_()
    rows = rows_of(
        image_ND=x_ND,
        image_GD=X_ND[:1],
        teacher_image_NE=U_NE[:1],
        teacher_image_GE=U_NE[:1],
        first_image=0,
        own_texts=slice(0, 1),
        texts=texts,
    )
    value = objective_of("relations").values(rows)["relations"].value
    value.backward()
    assert value.item() == 0
    assert x_ND.grad is not None
    assert not x_ND.grad.any()


def test_an_image_bank_is_divided_by_the_texts() -> None:
    z_MK = BANK_SCALE * PY_ME @ W_KE.T + BANK_BIAS
    p_MK = torch.sigmoid(TEACHER_SCALE * V_ME @ W_KE.T + TEACHER_BIAS)
    expected = float((F.softplus(z_MK) - p_MK * z_MK).sum()) / M
    assert value_of("image_bank") == pytest.approx(expected, rel=1e-12)


def test_the_softmax_terms_reach_their_floor_at_the_teacher() -> None:
    rows = rows_of(
        image_ND=U_NE,
        texts=replace(rows_of().texts, text=V_ME),
        image_GD=rows_of().teacher_image_GE,
        mapped_text_E=V_ME,
    )
    found = objective_of("affinity", "relations").values(rows)
    away = objective_of("affinity", "relations").values(rows_of())
    assert list(found) == ["affinity", "relations"]
    for term, each in found.items():
        assert each.floor is not None
        assert float(each.value) == pytest.approx(float(each.floor), rel=1e-12)
        assert float(away[term].value) > float(each.floor) + 1e-3


@pytest.mark.filterwarnings("error")
def test_the_pairs_of_a_large_batch_are_cut_into_chunks_without_a_warning() -> None:
    caption_NC = torch.arange(1200).reshape(600, 2)
    texts = replace(
        rows_of().texts, caption_NC=caption_NC, text=Y_MD[:1].expand(1200, -1), matching_2P=pairs()
    )
    positive = texts.hard_labels(600).positive
    assert [len(row_P) for row_P, _ in positive.chunks(250)] == [500, 500, 200]
