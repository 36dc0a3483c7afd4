"""The processes of one training, and what they tell each other. One process is the usual case."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_PATIENCE = timedelta(minutes=60)
"""How long a process waits for the others: the first evaluates while they wait."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of the training."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Number on this machine: which GPU."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def gather_rows(self, own_MD: Tensor, counts: list[int]) -> Tensor:
        """Return the rows of all processes, in order of rank; counts says how many each has."""
        if self.world_size == 1:
            return own_MD
        padded = own_MD.new_zeros(max(counts), *own_MD.shape[1:])
        padded[: len(own_MD)] = own_MD
        found = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(found, padded)
        return torch.cat([rows[:count] for rows, count in zip(found, counts, strict=True)])

    def sum(self, tensor: Tensor) -> Tensor:
        """Return a tensor, on the device that trains, summed over the processes; in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def from_first(self, value: Any) -> Any:
        """Return what the first process has."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def tensors_from_first(
        self, tensors: Mapping[str, Tensor] | None, device: torch.device
    ) -> dict[str, Tensor]:
        """Return the first process's tensors by name, sent one by one: none is pickled."""
        own = dict(tensors or {})
        if self.world_size == 1:
            return own
        shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in own.items()}
        found: dict[str, Tensor] = {}
        for name, (shape, dtype) in self.from_first(shapes).items():
            sent = own[name] if self.is_first else torch.empty(shape, dtype=dtype)
            sent = sent.to(device)
            dist.broadcast(sent, src=0)
            found[name] = sent.cpu()
        return found

    def gather(self, value: Any) -> list[Any]:
        """Return what each process has, in order of rank."""
        if self.world_size == 1:
            return [value]
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        """Wait for all."""
        if self.world_size > 1:
            dist.barrier()


def join_ranks(device: str) -> Ranks:
    """Return this process's place, after meeting the others that torchrun or accelerate started.

    Args:
        device: the kind of device that trains; decides how processes talk (nccl, gloo).
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1 or "RANK" not in os.environ:
        return Ranks()
    if not dist.is_initialized():
        backend = "nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, timeout=_PATIENCE)
    return Ranks(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))


def leave_ranks() -> None:
    """Part from the others, if there were any."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
