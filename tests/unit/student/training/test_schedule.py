"""Learning rates over the steps, and an optimizer that goes on where it was."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from siglip2_cache.errors import SettingError
from siglip2_cache.siglip import load_trainable, resolve_checkpoint
from siglip2_cache.student.config import TrainConfig
from siglip2_cache.student.training.distiller import Distiller, TeacherHead
from siglip2_cache.student.training.parameter_groups import freeze, make_groups
from siglip2_cache.student.training.schedule import BETAS, Optimizer, Schedule, make_schedule

# -- the schedule


def test_the_learned_map_is_fitted_alone_until_it_has_seen_enough_rows() -> None:
    for to_fit, alone in (
        (0.1, 1),
        (7.2, 8),
        (1e6, 200),
    ):  # at least a step, at most a fifth of them
        schedule = make_schedule(1000, 100, steps_to_fit=to_fit)
        assert [schedule.factor(step) for step in range(1, alone + 1)] == [0.0] * alone
        assert schedule.factor(alone + 1) == pytest.approx(1 / 100)


def test_without_a_learned_map_the_student_moves_in_the_first_step() -> None:
    schedule = make_schedule(1000, 100)
    assert schedule.factor(1) == pytest.approx(1 / 100)
    assert make_schedule(1, None, steps_to_fit=0.0).factor(1) > 0


def test_warm_up_is_a_line_to_the_peak_and_then_half_a_cosine_to_nothing() -> None:
    schedule = Schedule(steps=110, warmup_steps=10, alone_steps=0)
    assert [schedule.factor(step) for step in range(1, 11)] == pytest.approx(
        [i / 10 for i in range(1, 11)]
    )
    for step, expected in ((11, 1.0), (36, (1 + math.cos(math.pi / 4)) / 2), (61, 0.5)):
        assert schedule.factor(step) == pytest.approx(expected)
    # The last step is one short of the end of the cosine, where nothing would be learned.
    assert 0 < schedule.factor(110) < 1e-3
    falling = [schedule.factor(step) for step in range(11, 111)]
    assert falling == sorted(falling, reverse=True)


def test_wsd_stays_at_the_peak_and_decays_in_its_last_steps() -> None:
    schedule = make_schedule(100, 10, kind="wsd").lasting(100, 25)
    assert [schedule.factor(step) for step in range(11, 77)] == [1.0] * 66
    assert schedule.decay_start == 75
    for step, expected in ((82, 1 - math.sqrt(6 / 25)), (100, 1 - math.sqrt(24 / 25))):
        assert schedule.factor(step) == pytest.approx(expected)
    assert make_schedule(100, 10, kind="wsd").lasting(100, None).decay_start == 80


def test_with_wsd_the_steps_before_the_decay_do_not_depend_on_their_number() -> None:
    short = make_schedule(2000, None, steps_to_fit=3, kind="wsd").lasting(2000, 100)
    long = make_schedule(4000, None, steps_to_fit=3, kind="wsd").lasting(4000, 100)
    grown = make_schedule(2000, None, steps_to_fit=3, kind="wsd").lasting(4000, 100)
    assert grown == long
    for step in range(1, 1902):
        assert short.factor(step) == long.factor(step)


@pytest.mark.parametrize(("steps", "expected"), [(24, 3), (12, 3), (6, 3), (5, 1)])
def test_with_wsd_a_map_is_fitted_as_long_in_a_run_of_few_steps(steps: int, expected: int) -> None:
    schedule = make_schedule(steps, 0, steps_to_fit=2.5, kind="wsd")
    assert schedule.alone_steps == expected
    assert make_schedule(steps, 0, steps_to_fit=2.5).alone_steps == min(3, max(1, steps // 5))


def test_a_decay_longer_than_what_follows_the_warm_up_is_refused() -> None:
    with pytest.raises(SettingError) as refused:
        make_schedule(100, 10, kind="wsd").lasting(100, 91)
    assert str(refused.value) == (
        "decay_steps 91 is more than the 90 steps after the warm-up; take fewer, or more steps"
    )


def test_a_run_that_ends_before_its_warm_up_does_never_decays() -> None:
    short = make_schedule(1000, 100, kind="wsd").lasting(50, None)
    assert [short.factor(step) for step in (1, 25, 50)] == [0.01, 0.25, 0.5]
    assert (short.decay_steps, short.decay_start) == (0, 50)
    with pytest.raises(SettingError, match="more than the 0 steps after the warm-up"):
        make_schedule(1000, 100, kind="wsd").lasting(50, 10)


@pytest.mark.parametrize(
    ("steps", "given", "expected"),
    [
        (100_000, None, 5000),  # 5 %
        (1000, None, 200),  # at least 200
        (100, None, 50),  # at most half
        (100, 7, 7),
        (100, 0, 0),
        (100, 80, 80),  # what is asked for is taken, beyond half too
        (100, 100, 100),
    ],
)
def test_how_long_warm_up_is(steps: int, given: int | None, expected: int) -> None:
    assert make_schedule(steps, given).warmup_steps == expected


def test_more_warm_up_than_there_are_steps_is_refused() -> None:
    with pytest.raises(SettingError) as refused:
        make_schedule(100, 99, steps_to_fit=2.0)
    assert str(refused.value) == (
        "warmup_steps 99 is more than the 98 steps that train the student after 2 that fit the map; take "
        "at most 98, or more steps"
    )


def test_a_run_of_few_steps_still_learns_in_every_step_after_the_map_was_alone() -> None:
    for steps in range(2, 8):
        schedule = make_schedule(steps, None, steps_to_fit=0.0)
        factors = [schedule.factor(step) for step in range(1, steps + 1)]
        assert factors[0] == 0
        assert min(factors[1:]) > 0


# -- the optimizer


@pytest.fixture(scope="module")
def deeper_student(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of two layers a tower."""
    from transformers import SiglipConfig, SiglipModel

    folder = shutil.copytree(tiny_student, tmp_path_factory.mktemp("deeper") / "student")
    config = json.loads((folder / "config.json").read_text())
    for tower in ("text_config", "vision_config"):
        config[tower]["num_hidden_layers"] = 2
    SiglipModel(SiglipConfig(**config)).save_pretrained(folder)
    return folder


def distiller_of(student: Path) -> Distiller:
    torch.manual_seed(0)
    checkpoint = resolve_checkpoint(str(student))
    return Distiller(
        load_trainable(checkpoint, towers="both", is_new=False),
        checkpoint,
        towers="both",
        compute_dtype="float32",
        logit_scale=2.3,
        logit_bias=-10.0,
        teachers=[TeacherHead(embed_dim=24, bank=(4.75, -16.8))],
    )


def optimizer_of(distiller: Distiller, weight_decay: float = 0.1) -> Optimizer:
    return Optimizer(distiller, make_groups(distiller, config_of(weight_decay=weight_decay)))


def config_of(**settings: Any) -> TrainConfig:
    given = {
        "cache": Path("C"),
        "student": "S",
        "out": Path("R"),
        "lr": 1e-2,
        "projection_lr": 1e-1,
    }
    return TrainConfig(**{**given, "weight_decay": 0.0, **settings})


SCHEDULE = Schedule(steps=10, warmup_steps=2, alone_steps=0)


def make_steps(distiller: Distiller, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in distiller.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step(SCHEDULE, step, torch.tensor(True))


def test_an_optimizer_that_takes_up_a_saved_state_goes_on_bit_for_bit(tiny_student: Path) -> None:
    undisturbed = distiller_of(tiny_student)
    make_steps(undisturbed, optimizer_of(undisturbed), range(1, 7))

    first = distiller_of(tiny_student)
    optimizer = optimizer_of(first)
    make_steps(first, optimizer, range(1, 4))
    saved = {name: tensor.clone() for name, tensor in optimizer.tensors().items()}
    weights = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    assert len(saved) == 3 * len(list(first.parameters()))

    second = distiller_of(tiny_student)
    second.load_state_dict(weights)
    goes_on = optimizer_of(second)
    goes_on.load(saved)
    make_steps(second, goes_on, range(4, 7))
    for name, tensor in undisturbed.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor), name


def change_of_a_step(distiller: Distiller, gradient: float, **settings: Any) -> dict[str, Any]:
    before = {name: p.detach().clone() for name, p in distiller.named_parameters()}
    optimizer = optimizer_of(distiller, **settings)
    for parameter in distiller.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    schedule = Schedule(steps=10, warmup_steps=0, alone_steps=0)
    optimizer.step(schedule, 1, torch.tensor(True))
    return {name: p.detach() - before[name] for name, p in distiller.named_parameters()}


def test_only_the_learned_map_has_its_own_rate_and_only_matrices_of_the_towers_decay(
    tiny_student: Path,
) -> None:
    for name, change in change_of_a_step(distiller_of(tiny_student), 1.0, weight_decay=0).items():
        rate = 1e-1 if name == "projection.weight" else 1e-2  # Adam's first step is the rate
        torch.testing.assert_close(change, torch.full_like(change, -rate), rtol=1e-4, atol=1e-6)
    decayed = {
        name: bool(change.abs().max() > 0)
        for name, change in change_of_a_step(distiller_of(tiny_student), 0.0).items()
    }
    matrices = {
        name
        for name, p in distiller_of(tiny_student).named_parameters()
        if p.ndim > 1 and name != "projection.weight"
    }
    assert {name for name, is_decayed in decayed.items() if is_decayed} == matrices


def rates_of(distiller: Distiller, **settings: Any) -> dict[str, float]:
    """The peak learning rate of each parameter that is trained."""
    config = config_of(**settings)
    freeze(distiller, config)
    names = {id(p): name for name, p in distiller.named_parameters()}
    return {
        names[id(parameter)]: group["peak_lr"]
        for group in make_groups(distiller, config)
        for parameter in group["params"]
    }


def test_each_tower_and_each_layer_has_its_rate(deeper_student: Path) -> None:
    rates = rates_of(distiller_of(deeper_student), image_lr=1.0, layer_decay=0.5)
    expected = {
        "model.vision_model.embeddings.patch_embedding.weight": 0.125,
        "model.vision_model.encoder.layers.0.mlp.fc1.bias": 0.25,
        "model.vision_model.encoder.layers.1.mlp.fc1.weight": 0.5,
        "model.vision_model.post_layernorm.weight": 1.0,
        "model.vision_model.head.probe": 1.0,
        "model.text_model.embeddings.token_embedding.weight": 0.125e-2,
        "model.text_model.encoder.layers.1.mlp.fc1.weight": 0.5e-2,
        "model.text_model.head.weight": 1e-2,
        "model.logit_scale": 1e-2,
        "bank_bias": 1e-2,
        "projection.weight": 1e-1,
    }
    assert {name: rates[name] for name in expected} == pytest.approx(expected)
    assert len(rates) == len(list(distiller_of(deeper_student).parameters()))


@pytest.mark.parametrize(
    ("settings", "frozen"),
    [
        ({"freeze_image": 0}, r"model\.vision_model\.embeddings\."),
        ({"freeze_image": 1}, r"model\.vision_model\.(embeddings|encoder\.layers\.0)\."),
        ({"freeze_image": 2}, r"model\.vision_model\."),
        ({"freeze_text": 2, "freeze_image": 0}, r"model\.(text_model|vision_model\.embeddings)\."),
    ],
)
def test_frozen_layers_are_not_trained(
    settings: dict[str, int], frozen: str, deeper_student: Path
) -> None:
    distiller = distiller_of(deeper_student)
    rates = rates_of(distiller, **settings)
    of_frozen = {name for name, _ in distiller.named_parameters() if re.match(frozen, name)}
    assert of_frozen
    assert rates.keys() == {name for name, _ in distiller.named_parameters()} - of_frozen


def test_more_layers_than_a_tower_has_are_refused(deeper_student: Path) -> None:
    with pytest.raises(SettingError) as refused:
        rates_of(distiller_of(deeper_student), freeze_text=3)
    assert str(refused.value) == "freeze_text must be 0 to 2, the layers of the text tower, got 3"


def test_gradients_are_gone_after_a_step(tiny_student: Path) -> None:
    distiller = distiller_of(tiny_student)
    make_steps(distiller, optimizer_of(distiller), range(1, 2))
    assert all(p.grad is None for p in distiller.parameters())


@pytest.mark.parametrize("is_fused", [False, True])
def test_a_step_that_is_not_finite_leaves_weights_and_moments_as_they_are(
    tiny_student: Path, is_fused: bool
) -> None:
    """Fused AdamW skips by itself, on the CPU as on CUDA; other devices are asked first."""
    distiller = distiller_of(tiny_student)
    optimizer = optimizer_of(distiller)
    assert optimizer._is_fused
    if not is_fused:
        groups = make_groups(distiller, config_of())
        optimizer._adamw = torch.optim.AdamW(groups, lr=0.0, betas=BETAS, fused=False)
        optimizer._is_fused = False
    make_steps(distiller, optimizer, range(1, 3))
    before = {**distiller.state_dict(), **optimizer.tensors()}
    before = {name: tensor.clone() for name, tensor in before.items()}
    for parameter in distiller.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    optimizer.step(SCHEDULE, 3, torch.tensor(False))
    after = {**distiller.state_dict(), **optimizer.tensors()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(p.grad is None for p in distiller.parameters())
    make_steps(distiller, optimizer, range(3, 4))
    after = {**distiller.state_dict(), **optimizer.tensors()}
    assert not any(
        torch.equal(after[name], tensor)
        for name, tensor in before.items()
        if name.endswith((":step", ":exp_avg"))
    )
