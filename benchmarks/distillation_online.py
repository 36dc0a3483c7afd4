"""The online teacher of bench_distillation: its embeddings are computed in each step instead of read."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from siglip2_cache.student.training.trainer import Trainer


def online_trainer(folder: Path) -> type[Trainer]:
    """Return a Trainer whose targets are computed by the teacher of a folder."""

    class OnlineTeacher(Trainer):
        def batches(self, loader: Any, done: int) -> Iterator[Any]:
            teacher = load_online_teacher(folder)
            for batch in super().batches(loader, done):
                started = time.perf_counter()
                compute_targets(teacher, batch)
                batch.wait_s += time.perf_counter() - started  # it is part of the step
                yield batch

    return OnlineTeacher


def load_online_teacher(folder: Path) -> tuple[Any, Any]:
    from siglip2_cache.siglip import load_model, resolve_checkpoint

    checkpoint = resolve_checkpoint(str(folder))
    return load_model(checkpoint, device="cpu", compute_dtype="float32"), checkpoint


def compute_targets(teacher: tuple[Any, Any], batch: Any) -> None:
    """Replace a batch's targets by what the teacher says now: it takes the student's pixels and ids."""
    from siglip2_cache.siglip import embed_image_pixels, embed_token_ids
    from siglip2_cache.student.data.batch import BatchTargets

    model, checkpoint = teacher
    pixels = batch.pixels_N
    image_NE = embed_image_pixels(model, checkpoint, pixels, compute_dtype="float32")
    text_ME = embed_token_ids(model, batch.ids_ML, compute_dtype="float32")
    batch.targets = [BatchTargets(image_NE=image_NE, text_ME=text_ME)]
