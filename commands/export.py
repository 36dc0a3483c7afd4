"""The commands ``export ...``: write what a cache or a run holds as files for other tools."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ..errors import SettingError
from .help import Command, CommandGroup
from .options import (
    AsJson,
    CacheArgument,
    CorpusRoot,
    DecodeWorkers,
    Private,
    Push,
    Quiet,
    TeacherName,
    View,
    flag,
    local_path,
    option,
    parse_roots,
    path_argument,
    path_option,
    print_found,
)

if TYPE_CHECKING:
    from ..student.export.export import WeightsDtype

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
            "parquet|npy|atlas|clip-retrieval",
            "parquet: tables with all columns. npy: float16 arrays for memory mapping, with ids "
            "beside them. atlas: for Embedding Atlas. clip-retrieval: for its back end.",
            name="--format",
            also="--to",
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
    quiet: Quiet = False,
) -> None:
    """Write embeddings, keys and captions as files that other tools read."""
    from ..neighbors.export.export import ExportConfig, export_cache
    from ..progress import TaskProgress, make_display
    from ..store.cache import open_cache

    config = ExportConfig(
        out=out, format=format, among=among, teacher=teacher, view=view, thumbnails=thumbnails
    )
    opened = open_cache(cache, corpus_roots=parse_roots(corpus_root))
    progress = TaskProgress(make_display(is_quiet=quiet))
    try:
        exported = export_cache(opened, config, progress=progress)
    finally:
        progress.stop()
    print_found(exported.found, exported.lines, as_json)


@export.command(cls=Command)
def model(
    source: Annotated[
        str,
        path_argument(
            "RUN",
            help="Folder of a training; with --to and --check also folder or hub id of a SigLIP checkpoint.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", parser=local_path, help="Folder to write.")],
    step: Annotated[int | None, option("N", "Checkpoint to export.", default="the newest")] = None,
    best: Annotated[
        bool, flag("--best", "The best weights up to that step, by --best-metric.")
    ] = False,
    ema: Annotated[bool, flag("--ema", "The moving average of the weights.")] = False,
    dtype: Annotated[
        str, option("float32|bfloat16", "Dtype of the weights, for plain transformers.")
    ] = "float32",
    to: Annotated[
        list[str] | None,
        option(
            "onnx|transformers-js|open-clip",
            "Write for other runtimes and check against PyTorch: ONNX graphs, which the first two read, or "
            "what open_clip reads. Repeatable.",
            default="plain transformers",
        ),
    ] = None,
    precision: Annotated[
        list[str] | None,
        option(
            "float32|float16|int8",
            "With --to onnx: precision that must pass the check. Repeatable.",
            default="float32, and the others if they pass",
        ),
    ] = None,
    check: Annotated[
        str | None,
        path_option(
            "CACHE",
            "With --to: cache whose held-out images and captions the graphs are checked on.",
            default="that of RUN",
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        option(
            "NAME",
            "With --to: teacher of the cache of the check, where it has several.",
            default="the first of RUN",
        ),
    ] = None,
    samples: Annotated[
        int | None, option("N", "With --to: most images of the check.", default="256")
    ] = None,
    push: Push = None,
    private: Private = False,
    corpus_root: CorpusRoot = None,
    decode_workers: DecodeWorkers = None,
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
    into_teacher_space: Annotated[
        bool,
        flag(
            "--into-teacher-space",
            "Also give embeddings in the teacher's width and directions, for an index of the teacher's "
            "embeddings: by sentence-transformers, and as output teacher_embeds of ONNX graphs.",
        ),
    ] = False,
    image_tower: Annotated[
        str | None,
        path_option(
            "CHECKPOINT",
            "After train --towers text: a checkpoint whose image tower completes the result.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint of a training, finished or running, for transformers, ONNX or open_clip."""
    from ..student.export.push import check_push
    from ..student.export.push import push as push_folder
    from ..student.training.export_checkpoint import ExportCheckpointConfig, export_checkpoint

    if best and ema:
        raise SettingError("--best and --ema both say which weights: give one")
    if to and dtype != "float32":
        raise SettingError("--dtype is of plain transformers; with --to give --precision")
    of_check = {check, teacher, samples, decode_workers} != {None}
    if not to and (precision or of_check):
        raise SettingError(
            "--precision, --check, --teacher, --samples and --decode-workers go with --to; name a runtime"
        )
    if corpus_root and not to and push is None:
        raise SettingError(
            "--corpus-root is for the check of --to and --push; leave it out, or add one"
        )
    check_push(push, is_private=private)
    chosen = ExportCheckpointConfig(
        run=local_path(source),
        out=out,
        choice="best" if best else "ema" if ema else "last",
        step=step,
        cache=cache,
        student=student,
        teacher_text=teacher_text,
        image_tower=image_tower,
        corpus_roots=parse_roots(corpus_root) or None,
        is_checked=push is not None and not to,
        into_teacher_space=into_teacher_space,
        dtype=cast("WeightsDtype", dtype),  # the config refuses other words
    )
    if to:
        from ..student.runtimes.export import RuntimesConfig
        from ..student.runtimes.from_run import export_source

        exported = export_source(
            RuntimesConfig(
                model=source,
                out=out,
                to=tuple(to),
                precisions=tuple(precision) if precision else None,
                check=check,
                teacher=teacher,
                samples=256 if samples is None else samples,
                decode_workers=decode_workers,
                corpus_roots=parse_roots(corpus_root),
                into_teacher_space=into_teacher_space,
            ),
            chosen,
        )
        found, lines = exported.found, exported.lines
    else:
        weights = export_checkpoint(chosen)
        average = "moving average of " if weights.kind == "ema" else ""
        lines = [f"model      {out}: {average}the weights after step {weights.step:,}"]
        found = {"out": str(out), "kind": weights.kind, "step": weights.step}
    if push is not None:
        url = push_folder(out, push, is_private=private)
        found, lines = {**found, "pushed": url}, [*lines, f"pushed     {url}"]
    print_found(found, lines, as_json)
