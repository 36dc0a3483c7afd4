"""The processes of one training and the messages between them; one process is the usual case."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import TrainError
from ..formatting import first_line
from .launch import Launch, RaisedElsewhere, find_launch

_Result = TypeVar("_Result")

_TIMEOUT = timedelta(minutes=60)
"""Longest wait for the others: rank 0 exports while they wait."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of the training, and collective operations of all."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    def gather_rows(self, own_MD: Tensor, counts: list[int]) -> Tensor:
        """Return the rows of all processes, in order of rank; ``counts`` has how many each holds."""
        if self.world_size == 1:
            return own_MD
        padded = own_MD.new_zeros(max(counts), *own_MD.shape[1:])
        padded[: len(own_MD)] = own_MD
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([rows[:count] for rows, count in zip(parts, counts, strict=True)])

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes; in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather_numbers(self, own: Sequence[int]) -> list[list[int]]:
        """Return the integers of all processes, in order of rank. The device is not waited for."""
        if self.world_size == 1:
            return [list(own)]
        numbers = torch.tensor(own)
        parts = [torch.empty_like(numbers) for _ in range(self.world_size)]
        dist.all_gather(parts, numbers)
        return [part.tolist() for part in parts]

    def broadcast(self, value: Any) -> Any:
        """Return the value of rank 0."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def broadcast_tensors(
        self, tensors: Mapping[str, Tensor] | None, device: torch.device
    ) -> dict[str, Tensor]:
        """Return the tensors of rank 0 by name, on the host. They are sent one by one and not pickled."""
        own = dict(tensors or {})
        if self.world_size == 1:
            return own
        shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in own.items()}
        found: dict[str, Tensor] = {}
        for name, (shape, dtype) in self.broadcast(shapes).items():
            sent = own[name] if self.is_first else torch.empty(shape, dtype=dtype)
            sent = sent.to(device)
            dist.broadcast(sent, src=0)
            found[name] = sent.cpu()
        return found

    def gather_objects(self, value: Any) -> list[Any]:
        """Return the values of all processes, in order of rank."""
        if self.world_size == 1:
            return [value]
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value)
        return found

    def run_together(self, act: Callable[[], _Result]) -> _Result:
        """Run ``act`` in every process; return its result once all have ended.

        Raises:
            RaisedElsewhere: it failed in another process; the first of those raises its own error.
        """
        if self.world_size == 1:
            return act()
        result, failure = None, None
        try:
            result = act()
        except Exception as error:
            failure = error
        has_failed = self.gather_objects(failure is not None)
        if not any(has_failed):
            return cast(_Result, result)
        if failure is not None and has_failed.index(True) == self.rank:
            raise failure
        raise RaisedElsewhere

    def run_on_first(self, act: Callable[[], _Result]) -> _Result:
        """Run ``act`` in rank 0; return its result in every process, pickled.

        Raises:
            RaisedElsewhere: it failed; rank 0 raises its own error.
        """
        found = self.run_together(lambda: act() if self.is_first else None)
        return cast(_Result, self.broadcast(found))

    def error_of_first(self, error: TrainError) -> TrainError:
        """Return an error that all processes meet for rank 0, and a silent one for the others."""
        return error if self.is_first else RaisedElsewhere()


def join_ranks(device: str, launch: Launch | None = None) -> Ranks:
    """Return this process among the others, after connecting to those that the launcher started.

    Args:
        device: training device; nccl carries what is on CUDA, gloo everything else.
        launch: how this process was started; None: read the environment.

    Raises:
        SettingError: a variable of the launcher is missing.
        TrainError: the others are unreachable.
    """
    launch = launch or find_launch()
    if launch.world_size == 1:
        return Ranks()
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        try:
            dist.init_process_group(backend, timeout=_TIMEOUT)
        except (RuntimeError, ValueError) as error:
            raise TrainError(
                f"process {launch.rank} of {launch.world_size} cannot connect to the others at "
                f"MASTER_ADDR and MASTER_PORT ({first_line(error)}); start all of them with torchrun"
            ) from error
    return Ranks(dist.get_rank(), dist.get_world_size())


def leave_ranks() -> None:
    """Disconnect from the other processes, if there are any."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def lost_peers_reported(ranks: Ranks) -> Generator[None]:
    """Turn torch's error after the end of another process into a TrainError of one line.

    Raises:
        TrainError: another process of the training has ended.
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
            f"process {ranks.rank} of {ranks.world_size} lost the connection to another one, which failed "
            f"or was killed ({first_line(error)}); run the same command again to resume"
        ) from error
