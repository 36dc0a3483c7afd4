"""How this process was started: alone, or as one of several by torchrun, accelerate or a batch system.

Imports no torch, so that a command can read it first.
"""

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from ..errors import SettingError, TrainError


class RaisedElsewhere(TrainError):  # noqa: N818 - the error is another process's
    """Another process of this training reports the error; this one ends silently."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Rank of this process among those that were started together."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Rank on this machine."""

    local_world_size: int = 1
    """Processes on this machine."""


def find_launch(environ: Mapping[str, str] = os.environ) -> Launch:
    """Return rank and world size from the launcher's environment variables.

    Without WORLD_SIZE, or with 1, this process is alone.

    Raises:
        SettingError: a variable is not a number, or one of them is missing.
    """
    world_size = _number(environ, "WORLD_SIZE")
    if world_size in (None, 1):
        return Launch()
    remedy = "start the processes with torchrun, or unset WORLD_SIZE to train in one"
    # Without the last two, processes of several machines would take each other's GPUs.
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        if not environ.get(name):
            raise SettingError(f"WORLD_SIZE is {world_size} and {name} is not set; {remedy}")
    rank = _number(environ, "RANK") or 0
    if not rank < world_size:
        raise SettingError(f"RANK is {rank}, which must be below WORLD_SIZE {world_size}; {remedy}")
    return Launch(
        rank=rank,
        world_size=world_size,
        local_rank=_number(environ, "LOCAL_RANK") or 0,
        local_world_size=_number(environ, "LOCAL_WORLD_SIZE") or 1,
    )


@contextmanager
def raised_once(launch: Launch) -> Generator[None]:
    """Let one process of each machine report an error that all of them raise before they connect."""
    try:
        yield
    except SettingError:
        if launch.local_rank:
            raise RaisedElsewhere from None
        raise


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "")
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise SettingError(
            f"{name} is {text!r}, which is not a number; start the processes with torchrun, or unset it"
        )
    return int(text)
