"""torch.compile for the encoder layers of the towers.

In transformers 5 the forward of both towers is one code object, and so is that of their layers. torch.compile
keeps at most 8 graphs of a code object and runs what comes after without compiling. Layers need one graph a
tower, with and without gradient, if every batch has the same shape.
"""

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from .model import text_tower, towers_of, vision_tower


def compile_layers(model: Any, *, is_dynamic: bool) -> None:
    """Compile each encoder layer of a model's towers, on its first forward pass.

    Args:
        model: from load_trainable.
        is_dynamic: whether the number of patches differs between batches, as with NaFlex.
    """
    has = towers_of(model)
    towers = [vision_tower(model)] if has != "text" else []
    towers += [text_tower(model)] if has != "image" else []
    for tower in towers:
        for layer in tower.encoder.layers:
            layer.compile(dynamic=is_dynamic)


@contextmanager
def uncompiled() -> Generator[None]:
    """Run compiled modules without their graphs in a ``with`` block, so that no other shape adds any."""
    import torch

    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def graph_limit_reported(report: Callable[[str], None]) -> Generator[None]:
    """Report once within a ``with`` block that torch.compile has reached its limit of graphs."""
    logger, handler = logging.getLogger("torch._dynamo.convert_frame"), _Handler(report)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Handler(logging.Handler):
    def __init__(self, report: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._report: Callable[[str], None] | None = report

    def emit(self, record: logging.LogRecord) -> None:
        if "recompile_limit" in record.getMessage() and self._report is not None:
            self._report(
                "warning: torch.compile has reached its limit of graphs, and some layers run uncompiled from "
                "here on; set TORCH_LOGS=recompiles to see why, or leave --compile out"
            )
            self._report = None
