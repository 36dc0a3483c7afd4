"""The shifted contrastive losses of DRRho: by hand, against autograd, and what they ignore."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from siglip2_cache.student.losses.drrho import EPSILON, ShiftedLabels
from siglip2_cache.student.losses.pair_labels import MarkedPairs
from siglip2_cache.student.losses.pairwise_sum import pairwise_sum

SCALE = 2.0


def at_angles(*degrees: float) -> Tensor:
    radians = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([radians.cos(), radians.sin()], dim=-1)


def labels_of(
    rows: Tensor,
    columns: Tensor,
    own: list[int],
    *,
    ignored: tuple[tuple[int, int], ...] = (),
    form: str = "softmax",
) -> ShiftedLabels:
    pairs = torch.tensor(ignored, dtype=torch.int64).reshape(-1, 2).T.contiguous()
    return ShiftedLabels(
        teacher_row_PE=rows,
        teacher_column_ME=columns,
        own_P=torch.tensor(own),
        ignored=MarkedPairs(pairs[0], pairs[1], (len(rows), len(columns))),
        weight_P=torch.tensor([1.0, 0.5, 2.0])[: len(rows)],
        scale=SCALE,
        form=form,  # type: ignore[arg-type]
    )


def cos(degrees: float) -> float:
    return math.cos(math.radians(degrees))


def test_one_row_by_hand() -> None:
    # Angles to the three texts: student 10, 50, 90; teacher 0, 60, 30. The own text is the first.
    student = at_angles(0), at_angles(10, 50, 90)
    teacher = at_angles(0), at_angles(0, 60, 30)
    own, first, second = cos(10) - cos(0), cos(50) - cos(60), cos(90) - cos(30)
    mean = (math.exp(2 * (first - own)) + math.exp(2 * (second - own))) / 2
    sums = pairwise_sum(*student, labels_of(*teacher, [0]), scale=SCALE, bias=0)
    assert sums.loss_sum.item() == pytest.approx(math.log(EPSILON + mean), rel=1e-12)
    sigmoid = labels_of(*teacher, [0], form="sigmoid")
    expected = math.log1p(math.exp(-(2 * own - math.log(2))))
    expected += sum(math.log1p(math.exp(2 * s - math.log(2))) for s in (first, second))
    found = pairwise_sum(*student, sigmoid, scale=SCALE, bias=0).loss_sum
    assert found.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
@pytest.mark.parametrize("chunk_size", [1, 2, 3])
def test_loss_and_gradient_are_those_of_autograd_in_any_chunks(form: str, chunk_size: int) -> None:
    draw = torch.Generator().manual_seed(3)
    x, y = (
        torch.randn(n, 4, generator=draw, dtype=torch.float64, requires_grad=True) for n in (3, 5)
    )
    u, v = (torch.randn(n, 6, generator=draw, dtype=torch.float64) for n in (3, 5))
    own, ignored = [1, 0, 1], ((0, 1), (0, 3), (2, 1), (2, 4))
    labels = labels_of(u, v, own, ignored=ignored, form=form)
    found = pairwise_sum(x, y, labels, scale=SCALE, bias=0, chunk_size=chunk_size).loss_sum
    student, teacher = (
        F.normalize(rows, dim=-1) @ F.normalize(columns, dim=-1).T
        for rows, columns in ((x, y), (u, v))
    )
    shifted, expected = SCALE * (student - teacher), torch.zeros((), dtype=torch.float64)
    for i, weight in enumerate((1.0, 0.5, 2.0)):
        others = [j for j in range(5) if j != own[i] and (i, j) not in ignored]
        z_own, z = shifted[i, own[i]], shifted[i, others]
        if form == "softmax":
            loss = torch.log(EPSILON + (z - z_own).exp().mean())
        else:
            log_odds = -math.log(len(others))
            loss = F.softplus(-z_own - log_odds) + F.softplus(z + log_odds).sum()
        expected = expected + weight * loss
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    for a, b in zip(
        torch.autograd.grad(found, [x, y]), torch.autograd.grad(expected, [x, y]), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_student_with_the_teachers_cosines_has_the_log_of_1_and_eps() -> None:
    rows = at_angles(0, 40, 100)
    sums = pairwise_sum(rows, rows, labels_of(rows, rows, [0, 1, 2]), scale=SCALE, bias=0)
    assert sums.loss_sum.item() == pytest.approx(3.5 * math.log1p(EPSILON), rel=1e-9)


def test_a_row_without_a_negative_has_no_gradient_and_no_nan() -> None:
    rows = at_angles(30).requires_grad_()
    labels = labels_of(at_angles(0), at_angles(0, 9), [0], ignored=((0, 0), (0, 1)))
    loss = pairwise_sum(rows, at_angles(10, 20), labels, scale=SCALE, bias=0).loss_sum
    loss.backward()
    assert loss.item() == pytest.approx(math.log(EPSILON))
    assert rows.grad is not None
    assert rows.grad.abs().max() == 0


def test_labels_of_another_number_of_rows_are_refused() -> None:
    rows = at_angles(0, 40)
    with pytest.raises(ValueError, match="teacher"):
        pairwise_sum(rows, rows, labels_of(rows[:1], rows, [0]), scale=SCALE, bias=0)
