"""Learning rates over the steps, and the optimizer that applies them."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import SettingError
from .distiller import Distiller

BETAS = (0.9, 0.95)
"""Betas of AdamW. Source: SigLIP, arXiv:2303.15343, table 7 and section 4 (0.95 instead of 0.999 keeps
large batches stable)."""

_ALONE_SHARE = 0.02
"""Share of the steps in which only the learned map is fitted and the student is frozen."""

_LEAST_WARMUP, _WARMUP_SHARE = 200, 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Factors of the peak learning rates: linear warm-up, then a cosine decay to 0."""

    steps: int
    warmup_steps: int
    alone_steps: int
    """First steps, in which the learned map is fitted and the student is frozen; 0 without such a map."""

    def student_factor(self, step: int) -> float:
        """Return the factor of the student's learning rate in step 1, 2, ..., steps."""
        done = step - 1 - self.alone_steps
        if done < 0:
            return 0.0
        if done < self.warmup_steps:
            return (done + 1) / self.warmup_steps
        return self._cosine(
            done - self.warmup_steps, self.steps - self.alone_steps - self.warmup_steps
        )

    def projection_factor(self, step: int) -> float:
        """Return the factor of the learned map's learning rate: 0 while it is fitted, then a cosine."""
        done = step - 1 - self.alone_steps
        return 0.0 if done < 0 else self._cosine(done, self.steps - self.alone_steps)

    @staticmethod
    def _cosine(done: int, out_of: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * done / max(1, out_of)))


def make_schedule(
    steps: int, warmup_steps: int | None, *, steps_to_fit: float | None = None
) -> Schedule:
    """Return the schedule of a run.

    Args:
        steps: steps of the run.
        warmup_steps: None: the larger of 200 and 5 % of the steps, at most half of those that train the
            student.
        steps_to_fit: steps in which a learned map sees enough rows. It is fitted for the larger of that
            and 2 % of the steps, at most a fifth of them. None: there is no such map.

    Raises:
        SettingError: there are fewer steps that train the student than warm-up steps.
    """
    alone = 0
    if steps_to_fit is not None and steps > 1:
        enough = min(math.ceil(steps_to_fit), steps // 5)
        alone = max(1, enough, math.ceil(_ALONE_SHARE * steps))
    moving = steps - alone
    if warmup_steps is None:
        warmup_steps = min(max(_LEAST_WARMUP, math.ceil(_WARMUP_SHARE * steps)), moving // 2)
    if warmup_steps > moving:
        fitted = f" after {alone:,} that fit the map" if alone else ""
        raise SettingError(
            f"warmup_steps {warmup_steps:,} is more than the {moving:,} steps that train the student"
            f"{fitted}; take at most {moving:,}, or more steps"
        )
    return Schedule(steps=steps, warmup_steps=warmup_steps, alone_steps=alone)


class Optimizer:
    """AdamW over a student, its head and the learned map."""

    def __init__(
        self, distiller: Distiller, *, lr: float, projection_lr: float, weight_decay: float
    ) -> None:
        self._names = {id(p): name for name, p in distiller.named_parameters()}
        maps = distiller.maps()
        in_head = {id(p) for p in distiller.head()}
        is_map = {id(p) for p in maps}
        matrices = [p for p in distiller.parameters() if p.ndim > 1 and id(p) not in in_head]
        taken = is_map | {id(p) for p in matrices}
        others = [p for p in distiller.parameters() if id(p) not in taken]
        groups: list[dict[str, Any]] = [
            {"params": matrices, "weight_decay": weight_decay, "peak_lr": lr},
            {"params": others, "weight_decay": 0.0, "peak_lr": lr},
            {"params": maps, "weight_decay": 0.0, "peak_lr": projection_lr, "is_map": True},
        ]
        groups = [group for group in groups if group["params"]]
        is_fused = distiller.device.type == "cuda"
        self._adamw = torch.optim.AdamW(groups, lr=0.0, betas=BETAS, fused=is_fused)

    def step(self, schedule: Schedule, step: int) -> None:
        """Make step 1, 2, ... with the present gradients, then drop them."""
        for group in self._adamw.param_groups:
            is_map = group.get("is_map", False)
            factor = schedule.projection_factor(step) if is_map else schedule.student_factor(step)
            group["lr"] = group["peak_lr"] * factor
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)

    def zero_gradients(self) -> None:
        """Drop the gradients."""
        self._adamw.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the state, by ``parameter:quantity``."""
        return {
            f"{self._names[id(parameter)]}:{quantity}": value
            for parameter, state in self._adamw.state.items()
            for quantity, value in state.items()
        }

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Load a state that tensors() returned."""
        by_name: dict[str, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            parameter, _, quantity = name.rpartition(":")
            by_name.setdefault(parameter, {})[quantity] = value
        for group in self._adamw.param_groups:
            for parameter in group["params"]:
                state = by_name.get(self._names[id(parameter)])
                if state is None:  # saved before the first step of this parameter
                    continue
                # The count of steps stays where AdamW keeps it: on the host, or fused on the device.
                place = parameter.device if group["fused"] else torch.device("cpu")
                self._adamw.state[parameter] = {
                    quantity: value.to(place if quantity == "step" else parameter.device)
                    for quantity, value in state.items()
                }
