"""The learned map as it begins: the least-squares solution over the rows seen so far."""

import torch

from siglip2_cache.student.distributed import Ranks
from siglip2_cache.student.losses.learned_map import LearnedMap


def unit_rows(count: int, width: int, seed: int) -> torch.Tensor:
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=-1)


def test_a_teacher_that_is_a_linear_map_of_the_student_is_found_from_several_batches() -> None:
    rows_ND = unit_rows(400, 8, 0)
    map_ED = torch.randn(12, 8, generator=torch.Generator().manual_seed(1))
    learned = LearnedMap(8, 12)
    before = learned.weight.detach().clone()
    for batch_BD in rows_ND.split(100):
        learned.add_rows(batch_BD, batch_BD @ map_ED.T, Ranks())
        learned.fit()
    cosine_B = torch.nn.functional.cosine_similarity(learned(rows_ND), rows_ND @ map_ED.T)
    assert cosine_B.min() > 0.9999
    assert not torch.allclose(before, learned.weight)
    assert learned.weight.requires_grad


def test_it_is_the_ridge_solution_of_all_rows_of_both_modalities() -> None:
    images, texts = unit_rows(50, 6, 0), unit_rows(30, 6, 1)
    targets, text_targets = unit_rows(50, 9, 2), unit_rows(30, 9, 3)
    learned = LearnedMap(6, 9)
    learned.add_rows(images, targets, Ranks())
    learned.add_rows(texts, text_targets, Ranks())
    learned.fit()
    X = torch.cat([images, texts]).double()
    U = torch.cat([targets, text_targets]).double()
    ridge = 1e-3 * (X.T @ X).diagonal().mean()
    start_DE = learned.start_ED.double().T
    expected_DE = torch.linalg.inv(X.T @ X + ridge * torch.eye(6)) @ (X.T @ U + ridge * start_DE)
    torch.testing.assert_close(learned.weight.double(), expected_DE.T, atol=1e-5, rtol=1e-4)


def test_directions_that_no_row_has_stay_as_they_began() -> None:
    rows_ND = torch.cat([unit_rows(20, 3, 0), torch.zeros(20, 2)], dim=1)
    learned = LearnedMap(5, 4)
    learned.add_rows(rows_ND, unit_rows(20, 4, 1), Ranks())
    learned.fit()
    assert learned.weight.isfinite().all()
    torch.testing.assert_close(learned.weight[:, 3:], learned.start_ED[:, 3:])


def test_without_rows_it_stays_as_it_began() -> None:
    learned = LearnedMap(5, 4)
    learned.add_rows(torch.zeros(0, 5), torch.zeros(0, 4), Ranks())
    learned.fit()
    torch.testing.assert_close(learned.weight.detach(), learned.start_ED)


def test_the_sums_travel_with_a_checkpoint() -> None:
    one, other = LearnedMap(4, 6), LearnedMap(4, 6)
    first, second = unit_rows(20, 4, 0), unit_rows(20, 4, 1)
    targets = unit_rows(20, 6, 2)
    one.add_rows(first, targets, Ranks())
    other.load_state_dict(one.state_dict())
    for learned in (one, other):
        learned.add_rows(second, targets, Ranks())
        learned.fit()
    assert torch.equal(one.weight, other.weight)
