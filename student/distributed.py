"""The processes of one training, and what they tell each other. One process is the usual case."""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import TrainError
from ..formatting import first_line
from .launch import Launch, SaidElsewhere, find_launch

_Result = TypeVar("_Result")

_PATIENCE = timedelta(minutes=60)
"""How long a process waits for the others: the first evaluates while they wait."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of the training."""

    rank: int = 0
    world_size: int = 1

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

    def together(self, act: Callable[[], _Result]) -> _Result:
        """Return what ``act`` returns, as soon as it has ended in every process.

        Raises:
            SaidElsewhere: it failed in another process, of which the first raises its error.
        """
        if self.world_size == 1:
            return act()
        result, failure = None, None
        try:
            result = act()
        except Exception as error:
            failure = error
        has_failed = self.gather(failure is not None)
        if not any(has_failed):
            return cast(_Result, result)
        if failure is not None and has_failed.index(True) == self.rank:
            raise failure
        raise SaidElsewhere

    def alike(self, error: TrainError) -> TrainError:
        """Return what to raise of an error that every process meets at once: the first one says it."""
        return error if self.is_first else SaidElsewhere()


def join_ranks(device: str, launch: Launch | None = None) -> Ranks:
    """Return this process's place, after meeting the others that torchrun or accelerate started.

    Args:
        device: the kind of device that trains; decides how processes talk (nccl, gloo).
        launch: how this process was started; None: as the environment says.

    Raises:
        SettingError: the environment says it by halves.
        TrainError: the others cannot be met.
    """
    launch = launch or find_launch()
    if launch.world_size == 1:
        return Ranks()
    if not dist.is_initialized():
        backend = "nccl" if device.startswith("cuda") else "gloo"
        try:
            dist.init_process_group(backend, timeout=_PATIENCE)
        except (RuntimeError, ValueError) as error:
            raise TrainError(
                f"process {launch.rank} of {launch.world_size} cannot meet the others at MASTER_ADDR and "
                f"MASTER_PORT ({first_line(error)}); start all of them with torchrun"
            ) from error
    return Ranks(dist.get_rank(), dist.get_world_size())


def leave_ranks() -> None:
    """Part from the others, if there were any."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def lost_peers_said(ranks: Ranks) -> Generator[None]:
    """Make one line of what torch raises where another process of the training has ended.

    Raises:
        TrainError: another one has ended.
    """
    try:
        yield
    except TrainError:
        raise
    except RuntimeError as error:
        is_lost = isinstance(error, dist.DistError) or "gloo" in str(error).lower()
        if ranks.world_size == 1 or not is_lost:
            raise
        raise TrainError(
            f"process {ranks.rank} of {ranks.world_size} lost another one, which says why or was killed "
            f"({first_line(error)}); run the same command to go on"
        ) from error
