"""A step that does not fit in memory: it is made again in smaller pieces, or one line says what to change."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

from ...errors import TrainError
from ...formatting import first_line
from ...siglip import is_out_of_memory
from ..config import TrainConfig
from ..distributed import Ranks


class DoesNotFit(Exception):  # noqa: N818 - the step is made again
    """A micro-batch does not fit in the memory of a process. Raised in all processes at once."""


@contextmanager
def memory_checked(ranks: Ranks) -> Generator[Callable[[], None]]:
    """Return a context in which running out of memory is an error of all processes.

    Its value is a function that every process must call once, before its first message to the others: it
    waits for them. Later the others would wait for an answer, so that memory that runs out in one of several
    processes is raised as it is. GradientCache tries those passes before, while sizes are new.

    Raises:
        DoesNotFit: memory ran out here before that call, or elsewhere; alone, anywhere in the context.
    """
    is_past = False

    def fits() -> None:
        nonlocal is_past
        is_past = ranks.world_size > 1
        _agree(ranks, None)

    try:
        yield fits
    except (RuntimeError, MemoryError) as error:
        if is_past or not is_out_of_memory(error):
            raise
        reason = first_line(error)
    else:
        return
    _agree(ranks, reason)


def _agree(ranks: Ranks, reason: str | None) -> None:
    if any(lacks for [lacks] in ranks.gather_numbers([int(reason is not None)])):
        raise DoesNotFit(reason or "in another process")


@contextmanager
def out_of_memory_reported(config: TrainConfig, device: str, world_size: int) -> Generator[None]:
    """Turn running out of memory into a TrainError with the remedy; the last checkpoint stays.

    Raises:
        TrainError: memory ran out.
    """
    try:
        yield
    except TrainError:  # a RuntimeError, which may quote one
        raise
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        images = max(1, config.global_batch_size // world_size)
        images = min(images, config.micro_batch_size or images)
        raise TrainError(
            f"a forward and backward pass of {images:,} images does not fit in the memory of {device} "
            f"({first_line(error)}); resume with --micro-batch-size {max(1, images // 2)}, which changes no "
            "result, or with --gradient-checkpointing"
        ) from error


def one_image_does_not_fit(device: str, reason: str) -> TrainError:
    """Return the error of a device that has no memory for a single image."""
    return TrainError(
        f"a forward and backward pass of one image does not fit in the memory of {device} ({reason}); resume "
        "with --gradient-checkpointing, or on a device with more memory"
    )
