"""Micro-batches on their way to a device: one ahead, in order, and never used before they are there."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.steps import Case, assert_same_gradients, gradients_of

from siglip2_cache.student.training.distiller import MicroBatch
from siglip2_cache.student.training.piece_feed import PieceFeed


class Pixels:
    """Stands for the pixels of a micro-batch; notes what happens to them."""

    device = torch.device("cpu")

    def __init__(self, number: int, noted: list[str]) -> None:
        self.number, self.noted = number, noted

    def pin_memory(self) -> "Pixels":
        return self

    def to(self, device: Any, *, non_blocking: bool) -> "Pixels":
        self.noted.append(f"copy {self.number}")
        return self

    def record_stream(self, stream: Any) -> None:
        self.noted.append(f"keep {self.number} for {stream}")


class Stream:
    def __init__(self, noted: list[str]) -> None:
        self.noted, self.num_events = noted, 0

    def __repr__(self) -> str:
        return "computing"

    def record_event(self) -> int:
        self.num_events += 1
        return self.num_events - 1

    def wait_event(self, event: int) -> None:
        self.noted.append(f"wait {event}")


def piece_of(pixels: Any) -> MicroBatch:
    return MicroBatch(pixels_N=pixels, grids=None, ids_ML=None, num_images=1, num_texts=0)


def test_on_cuda_the_next_piece_is_copied_before_one_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noted: list[str] = []
    computing = Stream(noted)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: Stream(noted))
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: computing)
    feed = PieceFeed(torch.device("cuda:0"))
    for piece in feed.pieces([piece_of(Pixels(i, noted)) for i in range(3)]):
        noted.append(f"use {piece.pixels_N.number}")
    assert noted == [
        *("copy 0", "copy 1", "wait 0", "keep 0 for computing", "use 0"),
        *("copy 2", "wait 1", "keep 1 for computing", "use 1"),
        *("wait 2", "keep 2 for computing", "use 2"),
    ]
    assert [piece.pixels_N for piece in feed.pieces([piece_of(None)])] == [None]


def test_on_the_cpu_pieces_stay_as_they_are() -> None:
    pieces = [piece_of(torch.zeros(1)), piece_of(torch.ones(1))]
    found = list(PieceFeed(torch.device("cpu")).pieces(pieces))
    assert all(a is b for a, b in zip(found, pieces, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_gradient_is_that_of_the_cpu(tiny_student: Path) -> None:
    case = Case(tiny_student)
    gradients = []
    for device in ("cpu", "cuda"):
        distiller = case.distiller().to(device)
        case.compute(distiller, 2)
        gradients.append({name: grad.cpu() for name, grad in gradients_of(distiller).items()})
    assert_same_gradients(gradients[1], gradients[0], 1e-6)
