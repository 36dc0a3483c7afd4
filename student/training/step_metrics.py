"""What is recorded of each step: its time, and its line of metrics.jsonl."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from ..config import TrainConfig
from ..data.batch import Batch
from .batch_loss import StepLoss
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


def step_metrics(
    step: int,
    batch: Batch,
    loss: StepLoss,
    norm: float,
    schedule: Schedule,
    config: TrainConfig,
) -> dict[str, Any]:
    """Return the line of metrics.jsonl, without its times."""
    assert config.lr is not None
    return {
        "step": step,
        "epoch": batch.epoch,
        "loss": loss.total,
        **loss.values,
        **{quantity_name(term, "floor"): floor for term, floor in loss.floors.items()},
        **{
            quantity_name(term, "gradient_norm"): found
            for term, found in loss.gradient_norms.items()
        },
        "gradient_norm": norm,
        "clipped": int(norm > config.clip_norm),
        "lr": config.lr * schedule.factor(step),
        "images": loss.counts.num_images,
        "captioned": loss.counts.num_captioned,
        "caption_weight": loss.counts.caption_weight,
        "texts": loss.counts.num_texts,
    }


def quantity_name(term: str, quantity: str) -> str:
    """Return the name of a quantity of a term: ``soft_floor``, ``soft_floor/NAME`` of a further teacher."""
    name, slash, teacher = term.partition("/")
    return f"{name}_{quantity}{slash}{teacher}"
