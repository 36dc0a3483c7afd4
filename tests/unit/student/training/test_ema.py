"""The moving average of the weights."""

import pytest
import torch
from torch import nn

from siglip2_cache.student.training.ema import WeightAverage

MADE, SKIPPED = torch.tensor(True), torch.tensor(False)


def module_of(value: float) -> nn.Linear:
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, value)
    return module


def average_after(values: list[float], decay: float, batch: int) -> float:
    module = module_of(0.0)
    average = WeightAverage(module, decay, global_batch_size=batch)
    for step, value in enumerate(values, 1):
        nn.init.constant_(module.weight, value)
        average.update(step, MADE)
    return average.tensors()["weight"].item()


def test_it_is_the_plain_formula() -> None:
    values = [1.0, 3.0, -2.0, 5.0]
    expected = 0.0
    for step, value in enumerate(values, 1):
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert average_after(values, 0.3, 256) == pytest.approx(expected, rel=1e-6)


def test_with_half_the_batch_and_twice_the_steps_it_is_nearly_the_same() -> None:
    """Both are the average over the same images: the weights change every 256."""
    whole = [float(step // 8) for step in range(400)]
    halves = [value for value in whole for _ in range(2)]
    found = average_after(halves, 0.98, 128)
    assert found == pytest.approx(average_after(whole, 0.98, 256), rel=0.01)
    assert abs(found - whole[-1]) > 1  # it lags, so that the comparison says something


def test_swapped_in_the_module_has_the_average_and_then_its_own_again() -> None:
    module = module_of(2.0)
    average = WeightAverage(module, 0.5, global_batch_size=256)
    nn.init.constant_(module.weight, 6.0)
    with average.swapped_in():
        assert module.weight.item() == 2.0
    assert module.weight.item() == 6.0
    assert average.tensors()["weight"].item() == 2.0
    average.restart()
    assert average.tensors()["weight"].item() == 6.0
    module.weight.data.fill_(1.0)
    assert average.tensors()["weight"].item() == 6.0  # a copy


def test_a_loaded_average_goes_on_bit_for_bit() -> None:
    torch.manual_seed(0)
    values = torch.randn(10).tolist()
    module = module_of(0.0)
    average = WeightAverage(module, 0.9, global_batch_size=64)
    for step, value in enumerate(values[:5], 1):
        nn.init.constant_(module.weight, value)
        average.update(step, MADE)
    saved = {name: tensor.clone() for name, tensor in average.tensors().items()}
    again = WeightAverage(module, 0.9, global_batch_size=64)
    again.load(saved)
    for step, value in enumerate(values[5:], 6):
        nn.init.constant_(module.weight, value)
        again.update(step, MADE)
    assert again.tensors()["weight"].item() == average_after(values, 0.9, 64)


def test_a_step_that_was_skipped_changes_nothing() -> None:
    module = module_of(2.0)
    average = WeightAverage(module, 0.5, global_batch_size=256)
    nn.init.constant_(module.weight, 6.0)
    average.update(1, SKIPPED)
    assert average.tensors()["weight"].item() == 2.0
    average.update(1, MADE)
    assert 2.0 < average.tensors()["weight"].item() < 6.0
