"""What is recorded of each step: its time, and its line of metrics.jsonl."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..config import TrainConfig
from ..data.batch import Batch
from ..terms import quantity_name
from .batch_loss import DeviceLoss, StepLoss
from .schedule import Schedule


class StepTimer:
    """Seconds of the steps so far, and of waiting for pixels in them."""

    def __init__(self) -> None:
        """Start at 0."""
        self.step_s = self.wait_s = 0.0
        self._last = (0.0, 0.0)

    @contextmanager
    def measured(self, batch: Batch) -> Generator[None]:
        """Add the time of a ``with`` block, and of the wait for its batch."""
        started = time.monotonic()
        yield
        self._last = (time.monotonic() - started + batch.wait_s, batch.wait_s)
        self.step_s += self._last[0]
        self.wait_s += self._last[1]

    def last(self, num_images: int) -> dict[str, float]:
        """Return images per second and the share of waiting in the last step."""
        step_s, wait_s = self._last
        return {"images_per_s": num_images / step_s, "wait_share": wait_s / step_s}


def reads_late(device: torch.device) -> bool:
    """Return whether a step is read after the next has begun, so that the device never waits for the host."""
    return device.type == "cuda"


class MadeStep:
    """A step that the device has been told to make, and what is recorded of it."""

    def __init__(self, step: int, batch: Batch, loss: DeviceLoss, norm: Tensor) -> None:
        """Start to copy its numbers to the host, behind the work that the device has by now.

        Args:
            step: 1, 2, ...
            batch: of this process.
            loss: of the batch.
            norm: scalar on the device: norm of the gradient before clipping.
        """
        self.step, self.epoch, self.positions_N = step, batch.epoch, batch.positions_N
        self.loss, self.is_finite = loss, loss.is_finite & norm.isfinite()
        self.metrics: dict[str, Any] = {}
        self.skipped: list[tuple[str, str]] = []
        numbers = torch.cat([loss.numbers, norm[None].to(loss.numbers)])
        self._numbers = numbers.to("cpu", non_blocking=True)  # into pinned memory
        self._event: Any = None
        if numbers.device.type == "cuda":
            self._event = torch.cuda.current_stream(numbers.device).record_event()

    def read(self) -> tuple[StepLoss, float]:
        """Return loss and norm; wait for this step, and for no later one."""
        if self._event is not None:
            self._event.synchronize()
        *numbers, norm = self._numbers.tolist()
        return self.loss.read(numbers), norm


def step_metrics(
    made: MadeStep, loss: StepLoss, norm: float, schedule: Schedule, config: TrainConfig
) -> dict[str, Any]:
    """Return the line of metrics.jsonl, without its times."""
    assert config.lr is not None
    return {
        "step": made.step,
        "epoch": made.epoch,
        "loss": loss.total,
        **loss.values,
        **{quantity_name(term, "floor"): floor for term, floor in loss.floors.items()},
        **{
            quantity_name(term, "gradient_norm"): found
            for term, found in loss.gradient_norms.items()
        },
        "gradient_norm": norm,
        "clipped": int(norm > config.clip_norm),
        "lr": config.lr * schedule.factor(made.step),
        "images": loss.counts.num_images,
        "captioned": loss.counts.num_captioned,
        "caption_weight": loss.caption_weight,
        "texts": loss.counts.num_texts,
    }
