"""How a process was started, and who says what went wrong."""

from pathlib import Path

import pytest
import torch

from siglip2_cache.errors import SettingError
from siglip2_cache.student.config import TrainConfig
from siglip2_cache.student.launch import Launch, RaisedElsewhere, find_launch, raised_once
from siglip2_cache.student.training.resolve import device_of

MASTER = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
LOCAL = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Launch()),
        ({"WORLD_SIZE": "", "RANK": ""}, Launch()),
        ({"WORLD_SIZE": "1", "RANK": "0"}, Launch()),
        ({"RANK": "3", "LOCAL_RANK": "3"}, Launch()),
        (
            {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", **MASTER},
            Launch(rank=3, world_size=4, local_rank=1, local_world_size=2),
        ),
    ],
)
def test_a_process_is_alone_or_one_of_several(environ: dict[str, str], expected: Launch) -> None:
    assert find_launch(environ) == expected


@pytest.mark.parametrize(
    ("environ", "refusal"),
    [
        (
            {"WORLD_SIZE": "2"},
            "WORLD_SIZE is 2 and RANK is not set; start the processes with torchrun, or unset "
            "WORLD_SIZE to train in one",
        ),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE is 2 and MASTER_ADDR is not set; start "),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "here"},
            "WORLD_SIZE is 2 and MASTER_PORT is not set; start ",
        ),
        (
            {"WORLD_SIZE": "2", "RANK": "0", **MASTER},
            "WORLD_SIZE is 2 and LOCAL_RANK is not set; start ",
        ),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", **MASTER},
            "WORLD_SIZE is 2 and LOCAL_WORLD_SIZE is not set; start ",
        ),
        (
            {"WORLD_SIZE": "2", "RANK": "2", **MASTER, **LOCAL},
            "RANK is 2, which must be below WORLD_SIZE 2; start ",
        ),
        (
            {"WORLD_SIZE": "two"},
            "WORLD_SIZE is 'two', which is not a number; start the processes with torchrun, or "
            "unset it",
        ),
        (
            {"WORLD_SIZE": "2", "RANK": "-1", **MASTER, **LOCAL},
            "RANK is '-1', which is not a number",
        ),
    ],
)
def test_variables_that_are_set_by_halves_are_refused_with_what_is_missing(
    environ: dict[str, str], refusal: str
) -> None:
    with pytest.raises(SettingError) as refused:
        find_launch(environ)
    assert str(refused.value).startswith(refusal)


def test_what_all_processes_of_a_machine_meet_is_said_by_the_first_of_them() -> None:
    with pytest.raises(SettingError, match="wrong"), raised_once(Launch()):
        raise SettingError("wrong")
    other = Launch(rank=5, world_size=8, local_rank=1, local_world_size=4)
    with pytest.raises(RaisedElsewhere) as silent, raised_once(other):
        raise SettingError("wrong")
    assert str(silent.value) == ""


@pytest.mark.parametrize(
    ("asked", "num_gpus", "local_rank", "expected"),
    [
        ("auto", 4, 3, "cuda:3"),
        ("cuda", 4, 0, "cuda:0"),
        ("auto", 1, 3, "cuda:0"),  # each process sees another one as its only one
        ("cuda:0", 1, 3, "cuda:0"),
        ("cpu", 4, 3, "cpu"),
    ],
)
def test_each_of_four_processes_has_a_gpu_of_its_own(
    monkeypatch: pytest.MonkeyPatch, asked: str, num_gpus: int, local_rank: int, expected: str
) -> None:
    assert device_with(monkeypatch, asked, num_gpus, local_rank) == expected


@pytest.mark.parametrize(
    ("asked", "num_gpus", "refusal"),
    [
        ("cuda:1", 4, "device cuda:1 is one GPU, but 4 processes train on this machine; use cuda"),
        ("cuda", 2, "4 processes train on this machine, which has 2 GPUs; start at most 2"),
    ],
)
def test_fewer_gpus_than_processes_are_refused(
    monkeypatch: pytest.MonkeyPatch, asked: str, num_gpus: int, refusal: str
) -> None:
    with pytest.raises(SettingError) as refused:
        device_with(monkeypatch, asked, num_gpus, 0)
    assert str(refused.value).startswith(refusal)


def device_with(monkeypatch: pytest.MonkeyPatch, asked: str, num_gpus: int, local_rank: int) -> str:
    """Return what the process takes of a machine with so many GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    config = TrainConfig(cache=Path("C"), student="S", out=Path("R"), device=asked)
    launch = Launch(rank=local_rank, world_size=4, local_rank=local_rank, local_world_size=4)
    return device_of(config, launch)
