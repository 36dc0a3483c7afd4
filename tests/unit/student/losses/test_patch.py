"""The dense term: the losses of images, and the head that predicts cells."""

import pytest
import torch

from siglip2_cache.student.losses.patch import PatchHead, patch_losses


def test_a_case_by_hand() -> None:
    student_NCP = torch.tensor([[[3.0, 4.0], [9.0, 9.0]], [[1.0, 0.0], [0.0, 2.0]]])
    teacher_NCP = torch.tensor([[[4.0, 3.0], [0.0, 0.0]], [[1.0, 0.0], [0.5, 0.0]]])
    found_N = patch_losses(student_NCP, teacher_NCP, torch.tensor([1, 2]))
    first = 0.9 * (1 - 24 / 25) + 0.1 * 0.5  # both values are off by 1
    # off by 0.5 and by 2: 0.5 * 0.5 ** 2 and 2 - 0.5, and orthogonal; the other cell is equal
    second = (0 + 0.9 + 0.1 * (0.125 + 1.5) / 2) / 2
    torch.testing.assert_close(found_N, torch.tensor([first, second]))


def test_cells_beyond_the_grid_of_a_view_have_no_gradient_and_no_value() -> None:
    student_NCP = torch.randn(2, 3, 4, requires_grad=True)
    teacher_NCP = torch.zeros(2, 3, 4)
    teacher_NCP[0, :2], teacher_NCP[1, :1] = 1, -1
    found_N = patch_losses(student_NCP, teacher_NCP, torch.tensor([2, 1]))
    found_N.sum().backward()
    assert student_NCP.grad is not None
    assert student_NCP.grad.abs().amax(-1).gt(0).tolist() == [
        [True, True, False],
        [True, False, False],
    ]
    alone = patch_losses(student_NCP[1:, :1], teacher_NCP[1:, :1], torch.tensor([1]))
    torch.testing.assert_close(found_N[1:], alone)


def test_it_is_computed_in_float32_and_float64_stays() -> None:
    student, teacher = torch.randn(2, 3, 64), torch.randn(2, 3, 64)
    counts = torch.tensor([3, 2])
    exact = patch_losses(student.double(), teacher.double(), counts)
    assert exact.dtype == torch.float64
    found = patch_losses(student.half(), teacher.half(), counts)
    assert found.dtype == torch.float32
    near = patch_losses(student.half().double(), teacher.half().double(), counts)
    torch.testing.assert_close(found.double(), near, rtol=1e-6, atol=0)


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one shape, got \(1, 2, 3\) and \(1, 2, 4\)"):
        patch_losses(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4), torch.ones(1))


def test_a_narrow_student_reaches_directions_that_a_linear_map_does_not() -> None:
    torch.manual_seed(0)
    cells_NCD = torch.randn(256, 4, 3)
    teacher_NCP = torch.relu(cells_NCD @ torch.randn(3, 24)) * 5  # of more dimensions than 3
    counts = torch.full((256,), 4)
    heads = [PatchHead(3, 24, rms=2.5), PatchHead(3, 24, rms=2.5)]
    heads[1].map = torch.nn.Linear(3, 24)
    left: list[float] = []
    for head in heads:
        optimizer = torch.optim.Adam(head.parameters(), 1e-2)
        for _ in range(150):
            optimizer.zero_grad()
            loss = head.loss(cells_NCD, teacher_NCP, counts).mean()
            loss.backward()
            optimizer.step()
        left.append(loss.item())
    assert left[0] < 0.2 * left[1]
    assert isinstance(PatchHead(24, 24, rms=1).map, torch.nn.Linear)
