"""Shares: several processes that were started alike, by torchrun, Slurm or hand, build one cache.

Nobody leads them. Share 0 plans and adds the teacher, the others wait for that; each makes the units
whose number is its own modulo the number of shares, then helps with what is left of the others.
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
_FIRST_WORD_S = 60.0  # then after twice the time, and so on
_LONGEST_POLL_S = 30.0  # a look at the corpus may cost a walk through it


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One of several processes that build one cache."""

    index: int
    """From 0; the one that plans is 0."""

    count: int
    told_by: str = "--share"
    """Where that comes from."""

    local_index: int | None = None
    """Number of this process on its machine: which GPU. None where nobody said."""

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise SettingError(
                f"{self.told_by} says share {self.index}/{self.count}; shares of {self.count} are "
                f"0/{self.count} to {self.count - 1}/{self.count}"
            )

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def owns(self, unit: int) -> bool:
        """Say whether a unit is this share's own."""
        return unit % self.count == self.index


def find_share(asked: str | None, environ: Mapping[str, str] = os.environ) -> Share | None:
    """Return this process's share: as asked, else as torchrun or Slurm say; None where it is alone.

    Args:
        asked: ``i/n``, from 0; ``0/1`` is the whole, whatever the environment says.
        environ: the environment.

    Raises:
        SettingError: what was asked, or the environment, names no share.
    """
    share = _asked(asked, environ) if asked else _of_torchrun(environ) or _of_slurm(environ)
    return share if share is not None and share.count > 1 else None


def _asked(text: str, environ: Mapping[str, str]) -> Share:
    found = re.fullmatch(r"([0-9]{1,9})/([1-9][0-9]{0,8})", text)
    if found is None:
        raise SettingError(f"share {text!r} is not i/n, the first 0/n, such as 0/8 to 7/8")
    return Share(index=int(found[1]), count=int(found[2]), local_index=_local_index(environ))


def _of_torchrun(environ: Mapping[str, str]) -> Share | None:
    rank, size = _number(environ, "RANK"), _number(environ, "WORLD_SIZE")
    if rank is None or size is None:
        return None
    told_by = "RANK and WORLD_SIZE"
    return Share(index=rank, count=size, told_by=told_by, local_index=_local_index(environ))


def _of_slurm(environ: Mapping[str, str]) -> Share | None:
    """Return the share of a task of a job, of an element of an array, or of a task of an element."""
    task, tasks = 0, 1
    # sbatch and salloc set the number of tasks for their one script, too; srun alone starts so many.
    if _number(environ, "SLURM_STEP_ID") is not None:
        task, tasks = _number(environ, "SLURM_PROCID") or 0, _number(environ, "SLURM_NTASKS") or 1
    element, elements = 0, _number(environ, "SLURM_ARRAY_TASK_COUNT") or 1
    number = _number(environ, "SLURM_ARRAY_TASK_ID")
    if number is not None and elements > 1:
        first = _number(environ, "SLURM_ARRAY_TASK_MIN") or 0
        step = _number(environ, "SLURM_ARRAY_TASK_STEP") or 1
        element, rest = divmod(number - first, step)
        if rest or element >= elements:
            raise SettingError(
                f"task {number} of this Slurm array cannot be counted (it does not go up in even "
                f"steps from {first}); say which share it makes with --share i/{elements}"
            )
    return Share(
        index=element * tasks + task,
        count=elements * tasks,
        told_by="Slurm",
        local_index=_local_index(environ),
    )


def _local_index(environ: Mapping[str, str]) -> int | None:
    local = _number(environ, "LOCAL_RANK")
    return _number(environ, "SLURM_LOCALID") if local is None else local


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "")
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None


def wait_for(
    look: Callable[[], _T | None],
    *,
    what: str,
    share: Share,
    timeout_s: float,
    say: Callable[[str], None] = lambda line: None,
) -> _T:
    """Return what ``look`` finds as soon as it finds something; say now and then what is waited for.

    Raises:
        BuildError: it found nothing in time.
    """
    started, pause_s, say_at_s = time.monotonic(), _POLL_S, _FIRST_WORD_S
    while (found := look()) is None:
        waited_s = time.monotonic() - started
        left = timeout_s - waited_s
        if waited_s >= say_at_s:
            say_at_s = 2 * waited_s
            say(
                f"share {share} (of {share.told_by}) has waited {format_seconds(waited_s)} for share "
                f"0/{share.count} to {what}; does that one run? If this one is alone, stop it and say "
                "--share 0/1"
            )
        if left <= 0:
            raise BuildError(
                f"share {share} waited {format_seconds(timeout_s)} for share 0/{share.count} to "
                f"{what}; see what that one says, start it if it does not run, give it longer with "
                "--share-wait SECONDS, or run it alone first; then start this one again"
            )
        time.sleep(min(pause_s, max(left, 0.01)))
        pause_s = min(pause_s * 1.5, _LONGEST_POLL_S)
    return found
