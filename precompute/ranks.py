"""Several processes that build one cache, started alike by torchrun, Slurm or by hand.

No process leads. Rank 0 plans and adds the teacher while the others wait; then each makes the units whose
number modulo the world size is its rank, and helps with what the others have left.
"""

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from ..errors import BuildError, SettingError
from ..formatting import format_seconds

_T = TypeVar("_T")

_POLL_S = 1.0
_LONGEST_POLL_S = 30.0
"""A look at the corpus may cost a walk through it."""

_FIRST_REPORT_S = 60.0
"""Wait before the first report that a rank is still waiting; each later one after twice the time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRank:
    """One of several processes that build one cache."""

    rank: int
    """From 0; rank 0 plans."""

    world_size: int
    source: str = "--share"
    """Where rank and world size come from."""

    local_rank: int | None = None
    """Rank among the processes of this machine, which chooses the GPU; None if unknown."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise SettingError(
                f"{self.source} gives rank {self.rank} of {self.world_size}; ranks of {self.world_size} "
                f"are 0 to {self.world_size - 1}"
            )

    def __str__(self) -> str:
        return f"{self.rank}/{self.world_size}"

    def owns(self, unit: int) -> bool:
        """Return whether this rank makes a unit."""
        return unit % self.world_size == self.rank


def find_rank(share: str | None, environ: Mapping[str, str] = os.environ) -> ProcessRank | None:
    """Return the rank of this process: as given, else from torchrun or Slurm; None if it is alone.

    Args:
        share: ``RANK/WORLD_SIZE``, ranks from 0; ``0/1`` is one process, whatever the environment says.
        environ: the environment.

    Raises:
        SettingError: what was given, or the environment, is no rank.
    """
    rank = _parse(share, environ) if share else _from_torchrun(environ) or _from_slurm(environ)
    return rank if rank is not None and rank.world_size > 1 else None


def _parse(text: str, environ: Mapping[str, str]) -> ProcessRank:
    found = re.fullmatch(r"([0-9]{1,9})/([1-9][0-9]{0,8})", text)
    if found is None:
        raise SettingError(
            f"share {text!r} is not RANK/WORLD_SIZE, such as 0/8 (the first) to 7/8 (the last)"
        )
    return ProcessRank(
        rank=int(found[1]), world_size=int(found[2]), local_rank=_local_rank(environ)
    )


def _from_torchrun(environ: Mapping[str, str]) -> ProcessRank | None:
    rank, world_size = _number(environ, "RANK"), _number(environ, "WORLD_SIZE")
    if rank is None or world_size is None:
        return None
    return ProcessRank(
        rank=rank,
        world_size=world_size,
        source="RANK and WORLD_SIZE",
        local_rank=_local_rank(environ),
    )


def _from_slurm(environ: Mapping[str, str]) -> ProcessRank | None:
    """Return the rank of a task of a job, of an array element, or of a task of an array element."""
    task, num_tasks = 0, 1
    # sbatch and salloc also set the number of tasks, for their single script; only srun starts them.
    if _number(environ, "SLURM_STEP_ID") is not None:
        task, num_tasks = (
            _number(environ, "SLURM_PROCID") or 0,
            _number(environ, "SLURM_NTASKS") or 1,
        )
    element, num_elements = 0, _number(environ, "SLURM_ARRAY_TASK_COUNT") or 1
    number = _number(environ, "SLURM_ARRAY_TASK_ID")
    if number is not None and num_elements > 1:
        first = _number(environ, "SLURM_ARRAY_TASK_MIN") or 0
        step = _number(environ, "SLURM_ARRAY_TASK_STEP") or 1
        element, rest = divmod(number - first, step)
        if rest or element >= num_elements:
            raise SettingError(
                f"the rank of task {number} of this Slurm array is unknown, because its tasks do not go "
                f"up in even steps from {first}; give it with --share RANK/{num_elements}"
            )
    return ProcessRank(
        rank=element * num_tasks + task,
        world_size=num_elements * num_tasks,
        source="Slurm",
        local_rank=_local_rank(environ),
    )


def _local_rank(environ: Mapping[str, str]) -> int | None:
    local_rank = _number(environ, "LOCAL_RANK")
    return _number(environ, "SLURM_LOCALID") if local_rank is None else local_rank


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "")
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None


def wait_for_rank_0(
    look: Callable[[], _T | None],
    *,
    what: str,
    rank: ProcessRank,
    timeout_s: float,
    say: Callable[[str], None] = lambda line: None,
) -> _T:
    """Return what ``look`` finds as soon as it finds something; report now and then that it waits.

    Raises:
        BuildError: it found nothing in time.
    """
    started, pause_s, report_s = time.monotonic(), _POLL_S, _FIRST_REPORT_S
    while (found := look()) is None:
        waited_s = time.monotonic() - started
        left_s = timeout_s - waited_s
        if waited_s >= report_s:
            report_s = 2 * waited_s
            say(
                f"rank {rank} (from {rank.source}) has waited {format_seconds(waited_s)} for rank 0 to "
                f"{what}; check that rank 0 is running; if this process is alone, stop it and use "
                "--share 0/1"
            )
        if left_s <= 0:
            raise BuildError(
                f"rank {rank} waited {format_seconds(timeout_s)} for rank 0 to {what}; check the output "
                "of rank 0, and start it if it is not running; or wait longer with --share-wait SECONDS; "
                "then start this one again"
            )
        time.sleep(min(pause_s, max(left_s, 0.01)))
        pause_s = min(pause_s * 1.5, _LONGEST_POLL_S)
    return found
