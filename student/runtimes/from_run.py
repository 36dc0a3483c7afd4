"""Export of a checkpoint of a run for other runtimes, by way of a folder for plain transformers."""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import SettingError
from ...store.io.location import Location, is_url, relative_to
from ..training.export_checkpoint import (
    ExportCheckpointConfig,
    check_outside,
    export_checkpoint,
)
from ..training.run_files import RunFiles, teachers_of
from .export import RuntimesConfig, RuntimesExported, export_runtimes


def export_source(config: RuntimesConfig, checkpoint: ExportCheckpointConfig) -> RuntimesExported:
    """Export a checkpoint of a run, or a model, for other runtimes.

    Args:
        config: what to write. For a run ``check`` and ``corpus_roots`` default to its own; on its own cache
            ``teacher`` defaults to its first one, and images are read as the training read them.
        checkpoint: which weights of the run; not used if ``config.model`` is a model.

    Raises:
        SettingError: ``out`` is in the run, or ``check`` is missing for a model; and as export_runtimes.
        TrainError: the run has no such weights.
    """
    settings = RunFiles(checkpoint.run.absolute()).read_config()
    if settings is None:
        places = (
            checkpoint.cache,
            checkpoint.student,
            checkpoint.teacher_text,
            checkpoint.image_tower,
        )
        if checkpoint.choice != "last" or any(
            each is not None for each in (checkpoint.step, *places)
        ):
            raise SettingError(
                f"{config.model} is a model and no run: leave out --step, --best, --ema, --cache, --student, "
                "--teacher-text and --image-tower"
            )
        return export_runtimes(config)
    check_outside(checkpoint.run, config.out)
    with tempfile.TemporaryDirectory(prefix="siglip2-cache-") as name:
        model = Path(name) / checkpoint.run.resolve().name
        export_checkpoint(replace(checkpoint, out=model))
        of_run = replace(
            config,
            model=str(model),
            corpus_roots=config.corpus_roots or settings.get("corpus_roots") or {},
        )
        if config.check is None or _is_cache_of_run(config.check, checkpoint, settings):
            of_run = replace(
                of_run,
                check=config.check or checkpoint.cache or settings["cache"],
                teacher=config.teacher or teachers_of(settings)[0],
                pixels="kept" if settings.get("pixels") == "kept" else "corpus",
                allow_partial=settings.get("allow_partial", False),
            )
        return export_runtimes(of_run)


def _is_cache_of_run(
    check: Location | str, checkpoint: ExportCheckpointConfig, settings: Mapping[str, Any]
) -> bool:
    """Return whether a cache is the run's, as it was named then or now, in whatever spelling."""
    own = (checkpoint.cache, settings["cache"])
    return any(_is_same_place(str(check), str(each)) for each in own if each is not None)


def _is_same_place(one: str, other: str) -> bool:
    if is_url(one) or is_url(other):  # whose protocols need not be installed
        return relative_to(one, other) == relative_to(other, one) == ""
    return os.path.realpath(Path(one).expanduser()) == os.path.realpath(Path(other).expanduser())
