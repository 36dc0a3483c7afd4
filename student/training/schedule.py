"""Learning rates over the steps, and the optimizer that applies them."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...errors import SettingError
from ..config import ScheduleKind
from .distiller import Distiller

BETAS = (0.9, 0.95)
"""Betas of AdamW. Source: SigLIP, arXiv:2303.15343, table 7 and section 4 (0.95 instead of 0.999 keeps
large batches stable)."""

_LEAST_WARMUP, _WARMUP_SHARE = 200, 0.05
_DECAY_SHARE = 0.2
"""Share of the steps in which a wsd schedule decays. Source: Haegele et al. 2024, arXiv:2405.18392, who also
measure the form 1 - sqrt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Factor of the peak learning rates: linear warm-up, then a decay to 0."""

    steps: int
    warmup_steps: int
    alone_steps: int
    """First steps, in which the learned map is fitted and the student is frozen; 0 without such a map."""

    decay_steps: int | None = None
    """None: a cosine over all steps after the warm-up. Else the last steps, in which the rate decays as
    1 - sqrt; it is constant before them."""

    def factor(self, step: int) -> float:
        """Return the factor of the learning rates in step 1, 2, ..., steps; 0 while the map is fitted."""
        done = step - 1 - self.alone_steps
        if done < 0:
            return 0.0
        if done < self.warmup_steps:
            return (done + 1) / self.warmup_steps
        if self.decay_steps is None:
            out_of = self.steps - self.alone_steps - self.warmup_steps
            return 0.5 * (1 + math.cos(math.pi * (done - self.warmup_steps) / max(1, out_of)))
        decayed = step - 1 - (self.steps - self.decay_steps)
        return 1.0 if decayed < 0 else 1 - math.sqrt(decayed / self.decay_steps)

    @property
    def decay_start(self) -> int | None:
        """The last step before the decay of wsd; None with a cosine."""
        return None if self.decay_steps is None else self.steps - self.decay_steps

    def has_patch_dropout(self, step: int) -> bool:
        """Return whether patches may be dropped in a step: not in the last tenth of the steps."""
        last = self.steps - math.ceil(self.steps / 10)
        if self.decay_start is not None:  # steps before it do not depend on the number of all
            last = max(last, self.decay_start)
        return self.alone_steps < step <= last

    def lasting(self, steps: int, decay_steps: int | None) -> "Schedule":
        """Return the schedule with another number of steps, as a run has that was resumed with more.

        Args:
            steps: steps of the run.
            decay_steps: with wsd, steps that decay; None: a fifth of all.

        Raises:
            SettingError: fewer steps than decay_steps come after the warm-up.
        """
        before = self.alone_steps + self.warmup_steps
        if self.decay_steps is None:
            return replace(self, steps=steps)
        start = max(0, steps - (decay_steps or math.ceil(_DECAY_SHARE * steps)))
        if decay_steps is not None and start < before:
            raise SettingError(
                f"decay_steps {decay_steps:,} is more than the {max(0, steps - before):,} steps after the "
                "warm-up; take fewer, or more steps"
            )
        # A run that ends before its warm-up does never decays.
        return replace(self, steps=steps, decay_steps=max(0, steps - max(start, before)))


def make_schedule(
    steps: int,
    warmup_steps: int | None,
    *,
    steps_to_fit: float | None = None,
    kind: ScheduleKind = "cosine",
) -> Schedule:
    """Return the schedule of a run; with wsd it decays in all steps after the warm-up: see lasting().

    Args:
        steps: steps of the run.
        warmup_steps: None: 200 or, with a cosine, 5 % of the steps if that is more; at most half of those
            that train the student.
        steps_to_fit: steps in which a learned map sees enough rows. It is fitted for so long, at most a
            fifth of the steps. With wsd, whose steps may grow, up to half of them are taken if these are
            enough. None: there is no such map.
        kind: cosine or wsd.

    Raises:
        SettingError: there are fewer steps that train the student than warm-up steps.
    """
    alone = 0
    if steps_to_fit is not None and steps > 1:
        needed, fifth = max(1, math.ceil(steps_to_fit)), max(1, steps // 5)
        alone = needed if kind == "wsd" and needed <= steps // 2 else min(needed, fifth)
    moving = steps - alone
    if warmup_steps is None:
        # With wsd it does not depend on the number of steps, which may grow.
        share = 0.0 if kind == "wsd" else _WARMUP_SHARE
        warmup_steps = min(max(_LEAST_WARMUP, math.ceil(share * steps)), moving // 2)
    if warmup_steps > moving:
        fitted = f" after {alone:,} that fit the map" if alone else ""
        raise SettingError(
            f"warmup_steps {warmup_steps:,} is more than the {moving:,} steps that train the student"
            f"{fitted}; take at most {moving:,}, or more steps"
        )
    schedule = Schedule(steps=steps, warmup_steps=warmup_steps, alone_steps=alone)
    return schedule if kind == "cosine" else replace(schedule, decay_steps=moving - warmup_steps)


class Optimizer:
    """AdamW over a student, its head and the learned map."""

    def __init__(self, distiller: Distiller, groups: list[dict[str, Any]]) -> None:
        """Take the groups of make_groups.

        Args:
            distiller: what is trained, on its device.
            groups: params, weight_decay and peak_lr of each.
        """
        self._names = {id(p): name for name, p in distiller.named_parameters()}
        # In one pass over memory: on the CPU a seventh of the time of torch's default.
        self._is_fused = distiller.device.type in ("cpu", "cuda")
        self._adamw: Any = torch.optim.AdamW(groups, lr=0.0, betas=BETAS, fused=self._is_fused)

    def step(self, schedule: Schedule, step: int, is_finite: torch.Tensor) -> None:
        """Make step 1, 2, ... with the present gradients, then drop them.

        Args:
            schedule: of the learning rates.
            step: 1, 2, ...
            is_finite: scalar bool on the device; if it is False the step is skipped. The device decides it,
                without waiting.
        """
        for group in self._adamw.param_groups:
            group["lr"] = group["peak_lr"] * schedule.factor(step)
        if self._is_fused:
            self._adamw.found_inf = (~is_finite).float()  # as torch's GradScaler tells it
            self._adamw.step()
        elif is_finite.item():
            self._adamw.step()
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
