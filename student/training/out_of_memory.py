"""A step that does not fit in memory: one line that says what to change."""

from collections.abc import Generator
from contextlib import contextmanager

from ...errors import TrainError
from ...formatting import first_line
from ...siglip import is_out_of_memory
from ..config import TrainConfig


@contextmanager
def out_of_memory_reported(config: TrainConfig, device: str, world_size: int) -> Generator[None]:
    """Turn running out of memory into a TrainError with the remedy; the last checkpoint stays.

    Raises:
        TrainError: memory ran out.
    """
    try:
        yield
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
