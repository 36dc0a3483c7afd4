"""The losses, against cases by hand, other people's code, and formulas written out in full."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.losses import (
    cosine_distillation_loss,
    diagonal_pairs,
    hard_bank_loss,
    hard_labels,
    marked_pairs,
    sigmoid_loss,
    soft_bank_loss,
    soft_sigmoid_distillation_loss,
    soft_target_entropy,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import SiglipConfig, SiglipModel

from siglip2_cache.student.losses.cosine import cosine_distillation_sum
from siglip2_cache.student.losses.pair_labels import AlikeImages, HardLabels, SoftLabels
from siglip2_cache.student.losses.pairwise_sum import CHUNK_NUM_BYTES, chunk_rows, pairwise_sum

F64 = torch.float64
IMAGES = torch.tensor([[1, 2, 3], [-1, 0, 2], [2, -2, 1], [0, 1, -3]], dtype=F64)
TEXTS = torch.tensor([[1, 1, 3], [-2, 1, 2], [2, -1, 0], [1, 1, -2]], dtype=F64)


@dataclass(frozen=True)
class Batch:
    """Five images and seven texts of a student (width 6) and a teacher (width 4), float64."""

    image: Tensor
    text: Tensor
    teacher_image: Tensor
    teacher_text: Tensor
    scale: Tensor
    bias: Tensor

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.image, self.text, self.scale, self.bias


def make_batch(num_images: int = 5, num_texts: int = 7, dtype: torch.dtype = F64) -> Batch:
    generator = torch.Generator().manual_seed(7)

    def rows(num_rows: int, width: int) -> Tensor:
        return torch.randn(num_rows, width, generator=generator, dtype=F64).to(dtype)

    return Batch(
        rows(num_images, 6).requires_grad_(),
        rows(num_texts, 6).requires_grad_(),
        rows(num_images, 4),
        rows(num_texts, 4),
        torch.tensor(6.5, dtype=dtype, requires_grad=True),
        torch.tensor(-2.5, dtype=dtype, requires_grad=True),
    )


TEACHER = {"teacher_scale": 9.0, "teacher_bias": -3.0}
# Image 3 has no caption; 0 and 4 share text 6; text 1 is another caption of image 2.
POSITIVE = torch.zeros(5, 7, dtype=torch.bool)
POSITIVE[[0, 1, 2, 4], [6, 0, 3, 6]] = True
IGNORE = torch.zeros(5, 7, dtype=torch.bool)
IGNORE[[0, 2, 3, 4], [5, 1, 2, 6]] = True  # (4, 6) is a positive too: it counts


WEIGHTS = torch.tensor([0.5, 1.0, 0.0, 0.7, 0.25], dtype=F64)
"""Of images; that of image 3, which has no caption, counts for nothing."""


def loss_of_pair(z: float, p: float) -> float:
    """Binary cross-entropy of one pair in plain Python."""
    q = 1 / (1 + math.exp(-z))
    return -p * math.log(q) - (1 - p) * math.log(1 - q)


def logit(x: Tensor, y: Tensor, scale: float, bias: float) -> float:
    dot = sum(a * b for a, b in zip(x.tolist(), y.tolist(), strict=True))
    lengths = [math.sqrt(sum(a * a for a in v.tolist())) for v in (x, y)]
    return scale * dot / (lengths[0] * lengths[1]) + bias


def with_grads(loss: Tensor, leaves: tuple[Tensor, ...]) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def hard(batch: Batch, **settings: Any) -> Tensor:
    return sigmoid_loss(
        batch.image,
        batch.text,
        scale=batch.scale,
        bias=batch.bias,
        **({"positive_NM": POSITIVE, "ignore_NM": IGNORE} | settings),
    )


def weighed(batch: Batch, **settings: Any) -> Tensor:
    return hard(batch, weight_N=WEIGHTS, **settings)


OTHER_CAPTIONS = torch.tensor([6, 0, 3, -1, 5, 2, 1])[:, None]
"""Of seven images of another process, for which the teacher's texts stand."""


def unlike(batch: Batch, **settings: Any) -> Tensor:
    """Captions of images that the teacher finds similar are ignored."""
    alike = AlikeImages(batch.teacher_image, batch.teacher_text, OTHER_CAPTIONS, 0.4)
    return hard(batch, alike_images=alike, **settings)


def soft(batch: Batch, **settings: Any) -> Tensor:
    return soft_sigmoid_distillation_loss(
        batch.image,
        batch.text,
        batch.teacher_image,
        batch.teacher_text,
        scale=batch.scale,
        bias=batch.bias,
        **(TEACHER | settings),
    )


def soft_bank(batch: Batch, **settings: Any) -> Tensor:
    """Rows are the student's images, the columns the batch's texts, which get no gradient."""
    images = batch.text[:5].detach().flip(0)  # of the bank's width
    given = {"scale": batch.scale, "bias": batch.bias, **TEACHER}
    return soft_bank_loss(batch.image, batch.text, images, **(given | settings))


def hard_bank(batch: Batch, **settings: Any) -> Tensor:
    given = {"positive_NM": POSITIVE, "ignore_NM": IGNORE, "alike_above_cosine": 0.3}
    given |= {"scale": batch.scale, "bias": batch.bias}
    return hard_bank_loss(batch.image, batch.text, **(given | settings))


def dense(batch: Batch, target: Tensor, keep: Tensor, divisor: int) -> Tensor:
    """Any of the pairwise losses, all pairs at once, through autograd."""
    cosine = F.normalize(batch.image, dim=-1) @ F.normalize(batch.text, dim=-1).T
    logits = batch.scale * cosine + batch.bias
    losses = -target * F.logsigmoid(logits) - (1 - target) * F.logsigmoid(-logits)
    return losses[keep].sum() / divisor


# --- cases by hand, and other people's code


def test_the_worked_case() -> None:
    loss = sigmoid_loss(IMAGES, TEXTS, scale=10.0, bias=-10.0)
    assert loss.item() == pytest.approx(1.2287398656809403, abs=1e-12)


def test_the_sigmoid_loss_is_algorithm_1_of_the_paper() -> None:
    # Its pseudocode with an exponentiated t: logits = zimg @ ztxt.T * t + b,
    # labels = 2 * eye(n) - ones(n), loss = -sum(log_sigmoid(labels * logits)) / n.
    batch = make_batch(7, 7)
    x, y = (F.normalize(rows, dim=-1) for rows in (batch.image, batch.text))
    labels = 2 * torch.eye(7, dtype=F64) - 1
    logits = x @ y.T * batch.scale + batch.bias
    expected = -F.logsigmoid(labels * logits).sum() / 7
    loss = sigmoid_loss(batch.image, batch.text, scale=batch.scale, bias=batch.bias)
    for ours, theirs in zip(
        with_grads(loss, batch.leaves), with_grads(expected, batch.leaves), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_the_sigmoid_loss_is_that_of_transformers() -> None:
    tower: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = SiglipConfig(
        text_config=tower | {"vocab_size": 30, "max_position_embeddings": 6},
        vision_config=tower | {"image_size": 8, "patch_size": 4},
    )
    torch.manual_seed(0)
    model = SiglipModel(config).double().eval()
    with torch.no_grad():
        model.logit_scale.fill_(math.log(20))
        model.logit_bias.fill_(-4)
    output = model(
        input_ids=torch.randint(0, 30, (5, 6)),
        pixel_values=torch.randn(5, 3, 8, 8, dtype=F64),
        return_loss=True,
    )
    loss = sigmoid_loss(
        output.image_embeds,
        output.text_embeds,
        scale=model.logit_scale.exp(),
        bias=model.logit_bias,
    )
    assert loss.item() == pytest.approx(output.loss.item(), rel=1e-12)
    parameters = tuple(p for p in model.parameters() if p.requires_grad)
    theirs = torch.autograd.grad(output.loss, parameters, retain_graph=True)
    for ours, expected in zip(torch.autograd.grad(loss, parameters), theirs, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)


def test_hard_labels_by_hand_with_shared_ignored_and_missing_captions() -> None:
    batch = make_batch()
    total = 0.0
    for i in (0, 1, 2, 4):  # image 3 has no caption: its negatives do not count either
        for j in range(7):
            if POSITIVE[i, j] or not IGNORE[i, j]:
                z = logit(batch.image[i], batch.text[j], 6.5, -2.5)
                total += loss_of_pair(z, float(POSITIVE[i, j]))
    assert hard(batch).item() == pytest.approx(total / 4, abs=1e-12)


def test_a_weight_counts_for_the_positive_and_the_negatives_of_its_row() -> None:
    batch = make_batch()
    total = 0.0
    for i in (0, 1, 2, 4):
        for j in range(7):
            if POSITIVE[i, j] or not IGNORE[i, j]:
                z = logit(batch.image[i], batch.text[j], 6.5, -2.5)
                total += float(WEIGHTS[i]) * loss_of_pair(z, float(POSITIVE[i, j]))
    loss, by_image, *_ = with_grads(weighed(batch), batch.leaves)
    assert loss.item() == pytest.approx(total / 4, abs=1e-12)
    assert (by_image.abs().sum(dim=1) > 0).tolist() == [True, True, False, False, True]


def test_captions_of_similar_images_by_hand() -> None:
    batch = make_batch()
    total, num_ignored = 0.0, 0
    for i in (0, 1, 2, 4):
        cosines = [logit(batch.teacher_image[i], other, 1, 0) for other in batch.teacher_text]
        similar = {OTHER_CAPTIONS[g].item() for g in range(7) if cosines[g] > 0.4}
        for j in range(7):
            if POSITIVE[i, j] or not (IGNORE[i, j] or j in similar):
                z = logit(batch.image[i], batch.text[j], 6.5, -2.5)
                total += loss_of_pair(z, float(POSITIVE[i, j]))
            num_ignored += j in similar and not (IGNORE[i, j] or POSITIVE[i, j])
    assert num_ignored >= 2
    assert unlike(batch).item() == pytest.approx(total / 4, abs=1e-12)


def test_soft_labels_and_their_entropy_by_hand() -> None:
    batch = make_batch()
    total = floor = 0.0
    for i in range(5):
        for j in range(7):
            a = logit(batch.teacher_image[i], batch.teacher_text[j], 9, -3)
            p = 1 / (1 + math.exp(-a))
            total += loss_of_pair(logit(batch.image[i], batch.text[j], 6.5, -2.5), p)
            floor += -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert soft(batch).item() == pytest.approx(total / 5, abs=1e-12)
    entropy = soft_target_entropy(batch.teacher_image, batch.teacher_text, **TEACHER)
    assert entropy.item() == pytest.approx(floor / 5, abs=1e-12)


def test_cosine_distillation_by_hand() -> None:
    student = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[1.0, 0.0], [0.0, 5.0], [-2.0, 0.0]])
    # cosines .6, 1 and -1
    loss = cosine_distillation_loss(student, teacher)
    assert loss.item() == pytest.approx((0.4 + 0 + 2) / 3, abs=1e-6)
    assert cosine_distillation_sum(student, teacher).item() == pytest.approx(2.4, abs=1e-6)
    (grad,) = torch.autograd.grad(loss, student)
    # the gradient of -cos is -(u - cos x) / |student|: row 0 has length 5 and x = (.6, .8)
    expected = torch.tensor([-(1 - 0.36) / 5, 0.48 / 5]) / 3
    torch.testing.assert_close(grad[0], expected, rtol=1e-5, atol=1e-7)


def test_the_bank_loss_by_hand_for_both_kinds_of_labels() -> None:
    batch = make_batch()
    teacher_image = batch.text[:5].detach().flip(0)
    soft_total = hard_total = 0.0
    own = {0: 6, 1: 0, 2: 3, 4: 6}
    num_alike = 0
    for i in range(5):
        for j in range(7):
            z = logit(batch.image[i], batch.text[j], 6.5, -2.5)
            p = 1 / (1 + math.exp(-logit(teacher_image[i], batch.text[j], 9, -3)))
            soft_total += loss_of_pair(z, p)
            if i not in own:
                continue
            is_alike = logit(batch.text[own[i]], batch.text[j], 1, 0) > 0.3
            num_alike += is_alike and own[i] != j
            if own[i] == j or not (IGNORE[i, j] or is_alike):
                hard_total += loss_of_pair(z, float(own[i] == j))
    assert num_alike >= 2
    assert soft_bank(batch).item() == pytest.approx(soft_total / 5, abs=1e-12)
    assert hard_bank(batch).item() == pytest.approx(hard_total / 4, abs=1e-12)


# --- properties


LOSSES = [hard, weighed, unlike, soft, soft_bank, hard_bank]


@pytest.mark.parametrize("loss_of", LOSSES)
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 4, 5, 9])
def test_chunks_of_any_size_give_the_loss_and_gradients_of_one(
    loss_of: Callable[..., Tensor], chunk_size: int
) -> None:
    batch = make_batch()
    leaves = batch.leaves if loss_of in (hard, soft) else (batch.image, *batch.leaves[2:])
    whole = with_grads(loss_of(batch), leaves)
    pieces = with_grads(loss_of(batch, chunk_size=chunk_size), leaves)
    for ours, expected in zip(pieces, whole, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-13)


@given(
    num_images=st.integers(1, 9),
    num_texts=st.integers(1, 9),
    chunk_size=st.integers(1, 10),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=25, deadline=None)
def test_any_masks_in_any_chunks_give_what_autograd_gives_on_all_pairs(
    num_images: int, num_texts: int, chunk_size: int, seed: int
) -> None:
    batch = make_batch(num_images, num_texts)
    generator = torch.Generator().manual_seed(seed)
    positive, ignore = (
        torch.rand(num_images, num_texts, generator=generator) < 0.3 for _ in range(2)
    )
    keep = (positive | ~ignore) & positive.any(1, keepdim=True)
    expected = dense(batch, positive.to(F64), keep, max(1, int(positive.any(1).sum())))
    masks = {"positive_NM": positive, "ignore_NM": ignore}
    loss = hard(batch, chunk_size=chunk_size, **masks)
    for ours, theirs in zip(
        with_grads(loss, batch.leaves), with_grads(expected, batch.leaves), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss_of", LOSSES)
def test_gradients_are_those_of_finite_differences(loss_of: Callable[..., Tensor]) -> None:
    batch = make_batch()

    def loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        text = text if loss_of in (hard, soft) else batch.text
        changed = Batch(image, text, batch.teacher_image, batch.teacher_text, scale, bias)
        return 3 * loss_of(changed, chunk_size=2)

    leaves = batch.leaves
    if loss_of not in (hard, soft):
        leaves = (batch.image, batch.text.detach(), *batch.leaves[2:])
    assert torch.autograd.gradcheck(loss, leaves)


def test_the_soft_loss_is_least_at_the_teachers_logits() -> None:
    batch = make_batch()
    teacher_image, teacher_text = (
        rows.clone().requires_grad_() for rows in (batch.teacher_image, batch.teacher_text)
    )
    leaves = (
        teacher_image,
        teacher_text,
        *(torch.tensor(v, dtype=F64, requires_grad=True) for v in (9.0, -3.0)),
    )
    loss = soft_sigmoid_distillation_loss(
        *leaves[:2],
        batch.teacher_image,
        batch.teacher_text,
        scale=leaves[2],
        bias=leaves[3],
        **TEACHER,
    )
    value, *grads = with_grads(loss, leaves)
    entropy = soft_target_entropy(batch.teacher_image, batch.teacher_text, **TEACHER)
    torch.testing.assert_close(value, entropy, rtol=1e-13, atol=0)
    assert max(grad.abs().max().item() for grad in grads) < 1e-13


@given(scale=st.floats(0.1, 120), bias=st.floats(-20, 5), seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_the_soft_loss_never_falls_below_the_entropy(scale: float, bias: float, seed: int) -> None:
    batch = make_batch()
    image = torch.randn(5, 6, dtype=F64, generator=torch.Generator().manual_seed(seed))
    labels = SoftLabels(
        teacher_image_NE=batch.teacher_image,
        teacher_text_ME=batch.teacher_text,
        scale=9.0,
        bias=-3.0,
    )
    sums = pairwise_sum(image, batch.text, labels, scale=scale, bias=bias, chunk_size=2)
    assert sums.loss_sum.item() > sums.entropy_sum.item() > 0
    assert not sums.entropy_sum.requires_grad


def test_one_pass_gives_the_soft_loss_and_its_entropy() -> None:
    batch = make_batch()
    labels = SoftLabels(
        teacher_image_NE=batch.teacher_image,
        teacher_text_ME=batch.teacher_text,
        scale=9.0,
        bias=-3.0,
    )
    sums = pairwise_sum(
        batch.image, batch.text, labels, scale=batch.scale, bias=batch.bias, chunk_size=2
    )
    torch.testing.assert_close(sums.loss_sum / 5, soft(batch))
    entropy = soft_target_entropy(batch.teacher_image, batch.teacher_text, **TEACHER)
    torch.testing.assert_close(sums.entropy_sum / 5, entropy)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_blocks_of_rows_add_up_to_the_whole(kind: str) -> None:
    batch = make_batch()

    def sums(rows: slice) -> list[Tensor]:
        image = batch.image[rows]
        if kind == "hard":
            labels: Any = hard_labels(
                image, batch.text, positive_NM=POSITIVE[rows], ignore_NM=IGNORE[rows]
            )
        else:
            labels = SoftLabels(
                teacher_image_NE=batch.teacher_image[rows],
                teacher_text_ME=batch.teacher_text,
                scale=9.0,
                bias=-3.0,
            )
        total = pairwise_sum(image, batch.text, labels, scale=batch.scale, bias=batch.bias)
        count = labels.num_labelled_rows() if kind == "hard" else torch.tensor(len(image))
        grads = torch.autograd.grad(total.loss_sum, batch.leaves)
        return [total.loss_sum.detach(), total.entropy_sum, count, *grads]

    whole = sums(slice(None))
    for first, second, both in zip(sums(slice(0, 3)), sums(slice(3, 5)), whole, strict=True):
        torch.testing.assert_close(first + second, both, rtol=1e-12, atol=1e-13)
    loss = hard(batch) if kind == "hard" else soft(batch)
    torch.testing.assert_close(whole[0] / whole[2], loss.detach())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss_of", LOSSES)
def test_half_precision_is_computed_in_float32_and_gets_half_gradients(
    loss_of: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    halves = make_batch(dtype=dtype)
    floats = Batch(*(v.detach().float() for v in vars(halves).values()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(halves)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, loss_of(floats), rtol=1e-5, atol=0)
    loss.backward()
    assert halves.image.grad is not None
    assert halves.image.grad.dtype == dtype


def test_cosine_distillation_computes_halves_in_float32() -> None:
    batch = make_batch(dtype=torch.float16)
    student, teacher = batch.text[:5], batch.image
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cosine_distillation_loss(student, teacher)
    assert loss.dtype == torch.float32
    expected = cosine_distillation_loss(student.double(), teacher.double())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    assert batch.image.grad is None  # the teacher's side


@pytest.mark.parametrize("which", ["student", "teacher"])
def test_one_float64_input_makes_all_of_it_float64(which: str) -> None:
    batch = make_batch(dtype=torch.float32)
    changed = {
        "student": (batch.image.double(), batch.text, batch.teacher_image, batch.teacher_text),
        "teacher": (batch.image, batch.text, batch.teacher_image, batch.teacher_text.double()),
    }[which]
    doubles = Batch(*(v.detach().double() for v in vars(batch).values()))
    loss = soft_sigmoid_distillation_loss(*changed, scale=batch.scale, bias=batch.bias, **TEACHER)
    assert loss.dtype == F64
    assert loss.item() == pytest.approx(soft(doubles).item(), rel=1e-13)


def test_lengths_of_the_rows_do_not_matter() -> None:
    batch = make_batch()
    longer = Batch(
        batch.image * 7,
        batch.text * 0.2,
        batch.teacher_image * 3,
        batch.teacher_text * 5,
        batch.scale,
        batch.bias,
    )
    for loss_of in (hard, soft):
        torch.testing.assert_close(loss_of(longer), loss_of(batch), rtol=1e-12, atol=0)


def test_far_logits_keep_their_losses() -> None:
    # At z = -25 softplus is exp(-25) = 1.4e-11, at z = 25 it is 25 and as much more.
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=F64)
    loss = sigmoid_loss(rows, rows, scale=25.0, bias=0.0)
    assert loss.item() == pytest.approx(2 * math.log1p(math.exp(-25)), rel=1e-9, abs=0)
    swapped = sigmoid_loss(rows, rows.flip(0), scale=25.0, bias=0.0)
    assert swapped.item() - 50 == pytest.approx(2 * math.exp(-25), rel=1e-2, abs=0)


def test_scale_and_bias_are_numbers_or_tensors_of_one() -> None:
    batch = make_batch()
    by_number = sigmoid_loss(
        batch.image, batch.text, scale=6.5, bias=-2.5, positive_NM=POSITIVE, ignore_NM=IGNORE
    )
    scale, bias = (v.detach().reshape(1).requires_grad_() for v in (batch.scale, batch.bias))
    by_tensor = hard(Batch(*batch.leaves[:2], batch.teacher_image, batch.teacher_text, scale, bias))
    torch.testing.assert_close(by_number, by_tensor)
    by_tensor.backward()
    assert scale.grad is not None
    assert scale.grad.shape == (1,)


def test_no_gradient_reaches_the_teachers_side() -> None:
    batch = make_batch()
    teachers = [v.clone().requires_grad_() for v in (batch.teacher_image, batch.teacher_text)]
    teacher_scale = torch.tensor(9.0, requires_grad=True)
    soft_sigmoid_distillation_loss(
        batch.image,
        batch.text,
        *teachers,
        scale=batch.scale,
        bias=batch.bias,
        teacher_scale=teacher_scale,
        teacher_bias=-3.0,
    ).backward()
    assert all(v.grad is None for v in (*teachers, teacher_scale))
    assert not soft_target_entropy(*teachers, **TEACHER).requires_grad
    other = make_batch()
    (soft_bank(other) + hard_bank(other)).backward()
    assert other.text.grad is None  # the bank
    assert other.image.grad is not None
    with torch.no_grad():
        assert not hard(batch).requires_grad


def test_a_frozen_side_changes_no_other_gradient() -> None:
    batch = make_batch()
    expected = with_grads(hard(batch), batch.leaves)
    for i in range(4):
        leaves = [v.detach() for v in batch.leaves]
        leaves[i].requires_grad_()
        only = Batch(*leaves[:2], batch.teacher_image, batch.teacher_text, *leaves[2:])
        (grad,) = torch.autograd.grad(hard(only), leaves[i])
        torch.testing.assert_close(grad, expected[1 + i])


# --- NaN, nothing, and refusals


@pytest.mark.parametrize("side", ["teacher_image", "teacher_text", "image", "text"])
def test_a_nan_target_makes_the_loss_nan(side: str) -> None:
    values = {name: v.detach().clone() for name, v in vars(make_batch()).items()}
    values[side][2, 1] = float("nan")
    assert soft(Batch(**values)).isnan()
    if side in ("image", "text"):
        assert hard(Batch(**values)).isnan()
        assert hard_bank(Batch(**values)).isnan()
    assert cosine_distillation_loss(values[side], values[side]).isnan()


def test_an_ignored_pair_does_not_hide_a_nan() -> None:
    batch = make_batch()
    text, ignore = batch.text.detach().clone(), IGNORE.clone()
    text[5], ignore[:, 5] = (
        float("nan"),
        True,
    )  # text 5 is no positive: all of its pairs are ignored
    loss = sigmoid_loss(
        batch.image, text, scale=2.0, bias=0.0, positive_NM=POSITIVE, ignore_NM=ignore
    )
    assert loss.isnan()


def test_without_any_caption_the_hard_loss_is_zero_and_teaches_nothing() -> None:
    batch = make_batch()
    none = torch.zeros_like(POSITIVE)
    for loss in (hard(batch, positive_NM=none), hard_bank(batch, positive_NM=none)):
        assert loss.item() == 0
        (grad,) = torch.autograd.grad(loss, batch.image)
        assert (grad == 0).all()
    empty = torch.zeros(0, 6)
    assert sigmoid_loss(empty, empty, scale=2.0, bias=0.0).item() == 0
    assert cosine_distillation_loss(empty, empty).item() == 0


def refused(match: str) -> Any:
    return pytest.raises(ValueError, match=match)


def test_what_does_not_fit_is_refused_with_its_shapes() -> None:
    batch = make_batch()
    with refused(r"one width, got \(5, 6\) and \(7, 4\)"):
        sigmoid_loss(batch.image, batch.teacher_text, scale=1.0, bias=0.0, positive_NM=POSITIVE)
    with refused(r"image must be floating point, got torch.int64"):
        sigmoid_loss(batch.image.long(), batch.image, scale=1.0, bias=0.0)
    with refused(r"scale must be one number, got a tensor of shape \(2,\)"):
        sigmoid_loss(batch.image, batch.image, scale=torch.ones(2), bias=0.0)
    with refused(r"chunk_size must be at least 1, got 0"):
        soft(batch, chunk_size=0)
    with refused(r"are of 5 rows and 7 columns, the student's of 5 and 5"):
        soft_sigmoid_distillation_loss(
            batch.image,
            batch.image,
            batch.teacher_image,
            batch.teacher_text,
            scale=1.0,
            bias=0.0,
            **TEACHER,
        )
    with refused(r"one shape, got \(5, 6\) and \(7, 6\)"):
        cosine_distillation_loss(batch.image, batch.text)
    for name in ("positive", "ignored"):
        given = {"positive": marked_pairs(POSITIVE), name: diagonal_pairs(5)}
        with refused(rf"{name} pairs must be of shape \(5, 7\), got \(5, 5\)"):
            pairwise_sum(batch.image, batch.text, HardLabels(**given), scale=1.0, bias=0.0)


# --- memory


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation gave out, and counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0
        self.num_products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.num_products += func.overloadpacket.__name__ in ("mm", "addmm", "addmm_", "bmm")
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if (
                isinstance(value, Tensor) and value.layout is torch.strided
            ):  # a sparse N x M is none
                self.num_elements = max(self.num_elements, value.numel())
        return result


@pytest.mark.parametrize("kind", ["sparse", "diagonal", "soft", "alike"])
def test_all_pairs_are_never_held_at_once(kind: str) -> None:
    N, chunk_size = 4096, 64
    image = torch.randn(N, 8, requires_grad=True)
    text = torch.randn(N, 8, requires_grad=True)
    row = torch.arange(N).repeat(4)
    column = (row + torch.arange(4).repeat_interleave(N)) % N  # four captions an image
    marked = torch.sparse_coo_tensor(
        torch.stack([row, column]),
        torch.ones(4 * N, dtype=torch.bool),
        (N, N),
        check_invariants=True,
    )
    given: dict[str, Any] = {"scale": 10.0, "bias": -10.0, "chunk_size": chunk_size}
    with LargestTensor() as largest:
        if kind == "soft":
            loss = soft_sigmoid_distillation_loss(image, text, image, text, **given, **TEACHER)
        elif kind == "alike":
            loss = hard_bank_loss(image, text, positive_NM=marked, alike_above_cosine=0.9, **given)
        elif kind == "sparse":
            loss = sigmoid_loss(image, text, positive_NM=marked, ignore_NM=marked, **given)
        else:
            loss = sigmoid_loss(image, text, **given)
        loss.backward()
    assert chunk_size * N <= largest.num_elements <= 2 * chunk_size * N  # 1/32 of N x N
    assert image.grad is not None


def test_nothing_is_computed_twice_and_no_gradient_that_is_not_asked_for() -> None:
    batch = make_batch()

    def num_products(batch: Batch, *, backward: bool) -> int:
        with LargestTensor() as counted:
            loss = hard(batch)
            if backward:
                loss.backward()
        return counted.num_products

    assert num_products(batch, backward=True) == 3  # logits, by images, by texts
    with torch.no_grad():
        assert num_products(batch, backward=False) == 1
    constant = Batch(*(v.detach() for v in vars(batch).values()))
    assert num_products(constant, backward=False) == 1


def test_the_default_chunk_is_bounded_in_bytes() -> None:
    assert 10e6 < CHUNK_NUM_BYTES < 100e6
    assert chunk_rows(32_768, torch.float32) * 32_768 * 4 == CHUNK_NUM_BYTES
    assert chunk_rows(32_768, F64) == chunk_rows(32_768, torch.float32) // 2
    assert chunk_rows(10**9, torch.float32) == 1
