"""The commands ``export ...``: write what a cache or a run holds as files for other tools."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import SettingError
from .help import Command, CommandGroup
from .options import (
    AsJson,
    CacheArgument,
    CorpusRoot,
    TeacherName,
    View,
    flag,
    local_path,
    option,
    parse_roots,
    path_option,
    print_found,
    say,
)

export = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    help="Write embeddings or a model as files for other tools.",
)


@export.command(cls=Command)
def embeddings(
    cache: CacheArgument,
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", parser=local_path, help="Folder to write; must not exist."),
    ],
    format: Annotated[
        str,
        option(
            "parquet|npy|atlas",
            "parquet: tables with all columns. npy: float16 arrays for memory mapping, with ids "
            "beside them. atlas: for Embedding Atlas.",
        ),
    ] = "parquet",
    among: Annotated[
        str | None, option("images|texts|both", "What to write.", default="both; for atlas images")
    ] = None,
    teacher: TeacherName = None,
    view: View = 0,
    thumbnails: Annotated[bool, flag("--thumbnails", "With atlas: add small images.")] = False,
    corpus_root: CorpusRoot = None,
    as_json: AsJson = False,
) -> None:
    """Write embeddings, keys and captions as files that other tools read."""
    from ..neighbors.export.export import ExportConfig, export_cache
    from ..progress import TaskProgress, make_display
    from ..store.cache import open_cache

    config = ExportConfig(
        out=out, format=format, among=among, teacher=teacher, view=view, thumbnails=thumbnails
    )
    opened = open_cache(cache, corpus_roots=parse_roots(corpus_root))
    progress = TaskProgress(make_display())
    try:
        exported = export_cache(opened, config, progress=progress)
    finally:
        progress.stop()
    print_found(exported.found, exported.lines, as_json)


@export.command(cls=Command)
def model(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", parser=local_path, help="Folder of a training.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", parser=local_path, help="Folder to write.")],
    step: Annotated[int | None, option("N", "Checkpoint to export.", default="the newest")] = None,
    best: Annotated[
        bool, flag("--best", "The best weights up to that step, by --best-metric.")
    ] = False,
    ema: Annotated[bool, flag("--ema", "The moving average of the weights.")] = False,
    cache: Annotated[
        str | None, path_option("CACHE", "The cache, if it has moved since the training.")
    ] = None,
    student: Annotated[
        str | None, path_option("CHECKPOINT", "The initial student, if it has moved.")
    ] = None,
    teacher_text: Annotated[
        str | None,
        path_option(
            "CHECKPOINT",
            "After train --towers image: the teacher's checkpoint, whose text tower completes the result.",
        ),
    ] = None,
) -> None:
    """Write a checkpoint of a training, finished or running, as a folder for plain transformers."""
    from ..student.training.export_checkpoint import ExportCheckpointConfig, export_checkpoint

    if best and ema:
        raise SettingError("--best and --ema both say which weights: give one")
    weights = export_checkpoint(
        ExportCheckpointConfig(
            run=run,
            out=out,
            choice="best" if best else "ema" if ema else "last",
            step=step,
            cache=cache,
            student=student,
            teacher_text=teacher_text,
        )
    )
    average = "moving average of " if weights.kind == "ema" else ""
    say(f"model      {out}: {average}the weights after step {weights.step:,}")
