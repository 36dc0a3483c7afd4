"""Copying micro-batches to a CUDA device one ahead of the computation, through a little pinned memory."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...siglip import to_device
from .distiller import MicroBatch


@dataclass(frozen=True, slots=True)
class _Copied:
    """A micro-batch whose pixels are on their way, and the event after which they are there."""

    micro_batch: MicroBatch
    event: Any


class PieceFeed:
    """Yields micro-batches with their pixels on the device.

    On CUDA a stream of its own copies the next one's pixels while the device computes. Only the pixels of two
    micro-batches are pinned at a time, not those of all batches that are ready: a batch of 8,192 images of
    224 px takes 1.2 GB. Elsewhere micro-batches stay as they are.
    """

    def __init__(self, device: torch.device) -> None:
        """Make the stream."""
        self._device = device
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None

    def pieces(self, micro_batches: Iterable[MicroBatch]) -> Iterator[MicroBatch]:
        """Yield the micro-batches in order; each must be used before the next is asked for."""
        if self._stream is None:
            yield from micro_batches
            return
        ahead: _Copied | None = None
        for micro_batch in micro_batches:
            copied = self._copied(micro_batch)
            if ahead is not None:
                yield self._ready(ahead)
            ahead = copied
        if ahead is not None:
            yield self._ready(ahead)

    def _copied(self, micro_batch: MicroBatch) -> _Copied:
        pixels_N = micro_batch.pixels_N
        with torch.cuda.stream(self._stream):
            if pixels_N is not None:
                pixels_N = to_device(pixels_N, self._device)
            return _Copied(replace(micro_batch, pixels_N=pixels_N), self._stream.record_event())

    def _ready(self, copied: _Copied) -> MicroBatch:
        """Let the computing stream wait for the copy; the host does not."""
        computing: Any = torch.cuda.current_stream(self._device)
        computing.wait_event(copied.event)
        pixels_N: Tensor | None = copied.micro_batch.pixels_N
        if pixels_N is not None:
            pixels_N.record_stream(computing)  # its memory was given out on the other stream
        return copied.micro_batch
