"""How this process was started: alone, or as one of several by torchrun, accelerate or a batch system.

Needs no torch: a command asks before it imports any.
"""

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from ..errors import SettingError, TrainError


class SaidElsewhere(TrainError):  # noqa: N818 - the error is another process's
    """Another process of this training says what is wrong; this one ends without a word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """The place of this process among those that were started together."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Number on this machine."""

    local_world_size: int = 1
    """Processes on this machine."""


def find_launch(environ: Mapping[str, str] = os.environ) -> Launch:
    """Return what the launcher's variables say; where WORLD_SIZE is not set, empty or 1: alone.

    Raises:
        SettingError: a variable is no number, or one that goes with the others is missing.
    """
    world_size = _number(environ, "WORLD_SIZE")
    if world_size in (None, 1):
        return Launch()
    remedy = "start the processes with torchrun, or unset WORLD_SIZE to train in one"
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if not environ.get(name):
            raise SettingError(f"WORLD_SIZE is {world_size} and {name} is not set; {remedy}")
    rank = _number(environ, "RANK") or 0
    if not rank < world_size:
        raise SettingError(f"RANK is {rank} of WORLD_SIZE {world_size}, from 0; {remedy}")
    return Launch(
        rank=rank,
        world_size=world_size,
        local_rank=_number(environ, "LOCAL_RANK") or 0,
        local_world_size=_number(environ, "LOCAL_WORLD_SIZE") or world_size,
    )


@contextmanager
def said_once(launch: Launch) -> Generator[None]:
    """Let one process of each machine raise an error that all of them meet alike.

    For what is refused before the processes have met.
    """
    try:
        yield
    except SettingError:
        if launch.local_rank:
            raise SaidElsewhere from None
        raise


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "")
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise SettingError(
            f"{name} is {text!r}, which is no number of processes; start them with torchrun, or unset it"
        )
    return int(text)
