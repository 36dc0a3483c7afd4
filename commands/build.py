"""The command ``build``: run the teacher over a corpus."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from ..errors import SettingError
from .corpus_options import (
    CaptionColumn,
    CaptionEnding,
    Encoding,
    ImageColumn,
    KeyColumn,
    KindColumn,
    LabelColumn,
    LangColumn,
    PrefixKeys,
    ShardRows,
    table_columns,
)
from .options import (
    CORPUS,
    HARDWARE,
    OUTPUT,
    TEACHER,
    AsJson,
    CorpusRoot,
    DecodeWorkers,
    Device,
    Dtype,
    MaxNumPatches,
    Quiet,
    TargetsBudget,
    flag,
    given_location,
    local_path_option,
    option,
    parse_roots,
    path_argument,
    path_option,
    print_found,
    say,
)

if TYPE_CHECKING:
    from ..images.pixels import Decode

_PROCESSES = "Several processes"


def build(
    sources: Annotated[
        list[str],
        path_argument(
            "SOURCE",
            help="Folder of images; tar or Parquet files that hold images (a file, a folder, '*.tar', "
            "'{000..123}.tar'); img2dataset output; saved Arrow dataset; or table that names images "
            "(.jsonl, .json, .csv, .tsv, .parquet). NAME=PATH puts NAME/ before its keys.",
        ),
    ],
    cache: Annotated[
        str, path_argument("CACHE", help="Folder or URL of the cache; made if missing.")
    ],
    teacher: Annotated[
        str, path_option("CHECKPOINT", "Hub id or folder of a SigLIP or SigLIP 2 checkpoint.")
    ],
    views: Annotated[
        int | None,
        option(
            "N",
            "Views of each image: the whole image and N - 1 random crops.",
            default="as the cache, else 1",
        ),
    ] = None,
    batch_size: Annotated[
        str, option("N", "Images, and texts, in one forward pass; auto: measured once.")
    ] = "auto",
    dry_run: Annotated[
        bool, flag("--dry-run", "Write nothing; print what the build would cost.")
    ] = False,
    time: Annotated[
        bool,
        flag("--time", "With --dry-run: load the teacher, time real batches, print the total."),
    ] = False,
    retry_rejected: Annotated[
        bool, flag("--retry-rejected", "Try the rejected rows once more.")
    ] = False,
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
    key_column: KeyColumn = None,
    lang_column: LangColumn = None,
    kind_column: KindColumn = None,
    label_column: LabelColumn = None,
    encoding: Encoding = None,
    caption_ending: CaptionEnding = None,
    prefix_keys: PrefixKeys = False,
    changed: Annotated[
        str,
        option(
            "refuse|skip",
            "Samples whose captions, label or location differ from the cache: refuse the build, or "
            "skip them and add what is new.",
            CORPUS,
        ),
    ] = "refuse",
    templates: Annotated[
        Path | None,
        local_path_option(
            "FILE",
            "Zero-shot prompt templates, one with {} per line; adds prompts to the cache.",
            CORPUS,
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        local_path_option(
            "FILE",
            "Class names for the prompts, one per line.",
            CORPUS,
            default="the corpus's labels",
        ),
    ] = None,
    corpus_root: CorpusRoot = None,
    revision: Annotated[
        str | None, option("NAME", "Revision of a hub id.", TEACHER, default="main")
    ] = None,
    teacher_name: Annotated[
        str | None,
        option(
            "NAME", "Name of the teacher in the cache.", TEACHER, default="the checkpoint's name"
        ),
    ] = None,
    max_num_patches: MaxNumPatches = None,
    view_seed: Annotated[
        int | None,
        option("N", "Random seed of the crops.", TEACHER, default="as the cache, else 0"),
    ] = None,
    view_min_area: Annotated[
        float | None,
        option(
            "SHARE",
            "Smallest share of the image that a crop shows, 0 to 1.",
            TEACHER,
            default="as the cache, else 0.25",
        ),
    ] = None,
    augment: Annotated[
        list[str] | None,
        option(
            "strong|OPERATION=VALUE",
            "Photometric operations of the crops, for teacher and student alike: strength of brightness, "
            "contrast, saturation, hue; probability of jitter (these four), grayscale, blur, solarize. "
            "Repeatable.",
            TEACHER,
            default="as the cache, else none",
        ),
    ] = None,
    compile_teacher: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Run the teacher's layers by torch.compile: faster on a GPU after a minute. A compiled "
            "teacher is another teacher of the cache. [default: as the cache, else --no-compile]",
            rich_help_panel=TEACHER,
            show_default=False,
        ),
    ] = None,
    decode: Annotated[
        str | None,
        option(
            "exact|scaled",
            "exact: the pixels of the checkpoint's processor. scaled: decode large JPEGs at reduced "
            "size, faster and nearly the same.",
            TEACHER,
            default="as the cache, else exact",
        ),
    ] = None,
    targets: Annotated[
        str | None,
        option(
            "float16|int8",
            "How targets are stored; int8 takes half the bytes.",
            OUTPUT,
            default="as the cache, else float16",
        ),
    ] = None,
    targets_budget: TargetsBudget = 0.1,
    patch_targets: Annotated[
        int | None,
        option(
            "GRID",
            "Also store the teacher's patches, pooled to GRID x GRID cells a view; for NaFlex a grid of the "
            "view's aspect.",
            OUTPUT,
            default="as the cache, else none",
        ),
    ] = None,
    patch_dims: Annotated[
        int | None,
        option(
            "N",
            "Values of a cell, by a PCA of the corpus.",
            OUTPUT,
            default="as the cache, else the width of the teacher",
        ),
    ] = None,
    keep_pixels: Annotated[
        int | None,
        option(
            "PIXELS",
            "Also keep each image, at most so many pixels on the short side, as a JPEG beside the "
            "targets, so that train needs no corpus.",
            OUTPUT,
            default="as the cache, else none",
        ),
    ] = None,
    keep_quality: Annotated[
        int | None,
        option(
            "QUALITY", "Quality of these JPEGs, 50 to 100.", OUTPUT, default="as the cache, else 90"
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    decode_workers: DecodeWorkers = None,
    threads: Annotated[
        int | None,
        option(
            "N",
            "CPU threads of each worker. Equal threads and batch sizes give equal bytes, with any "
            "number of workers.",
            HARDWARE,
            default="its share of the cores",
        ),
    ] = None,
    shard_rows: ShardRows = None,
    sample_timeout: Annotated[
        float, option("SECONDS", "Reject an image that takes longer to decode.", HARDWARE)
    ] = 60.0,
    workers: Annotated[
        int | None,
        option(
            "N",
            "Processes that run the teacher, each on its own GPU or its share of the cores.",
            _PROCESSES,
            default="1; with ray one per GPU, or per node",
        ),
    ] = None,
    engine: Annotated[
        str, option("local|ray", "local: this machine. ray: actors of a Ray cluster.", _PROCESSES)
    ] = "local",
    address: Annotated[
        str | None,
        option(
            "ADDRESS",
            "With --engine ray: address of the cluster.",
            _PROCESSES,
            default="RAY_ADDRESS, else this machine's",
        ),
    ] = None,
    gpus_per_worker: Annotated[
        float | None,
        option(
            "N",
            "With --engine ray: GPUs of each worker.",
            _PROCESSES,
            default="1 if the cluster has GPUs",
        ),
    ] = None,
    share: Annotated[
        str | None,
        option(
            "I/N",
            "Build as process I of N that run the same command, 0/N to N-1/N. Process 0 plans; each "
            "makes its units, then helps the others. 0/1: alone.",
            _PROCESSES,
            default="by RANK and WORLD_SIZE or Slurm",
        ),
    ] = None,
    share_wait: Annotated[
        float,
        option("SECONDS", "How long the other processes wait for process 0 to plan.", _PROCESSES),
    ] = 3600.0,
    finish: Annotated[
        bool,
        flag(
            "--finish",
            "After all processes have ended: report what is missing, or clean up and summarise.",
            _PROCESSES,
        ),
    ] = False,
) -> None:
    """Embed every image, view and unique caption of a corpus.

    Run the same command again to resume after a crash, or to append new samples. Run it with another
    --teacher to add a second teacher.
    """
    from ..precompute.build import BuildConfig
    from ..precompute.build import build as run_build
    from ..precompute.dry_run import dry_run as run_dry
    from ..precompute.dry_run import dry_run_lines, dry_run_values
    from ..precompute.executor.messages import BuildInterrupted
    from ..precompute.executor.progress import BuildProgress
    from ..precompute.planning.config import PlanConfig
    from ..precompute.ranks import find_rank
    from ..precompute.summary import summary_lines, summary_values
    from ..progress import make_display
    from ..store.format.augmentation import parse_augmentation

    columns = table_columns(
        image_column,
        caption_column,
        key_column,
        lang_column,
        label_column,
        encoding,
        kind_column,
    )
    plan = PlanConfig(
        sources=tuple(sources),
        columns=columns,
        shard_rows=shard_rows,
        num_views=views,
        view_seed=view_seed,
        view_min_area=view_min_area,
        augmentation=None if augment is None else parse_augmentation(augment),
        labels=labels,
        templates=templates,
        corpus_roots=parse_roots(corpus_root),
        caption_endings=tuple(caption_ending) if caption_ending else None,
        prefix_keys=prefix_keys,
        changed=cast(Literal["refuse", "skip"], changed),  # the config refuses other words
    )
    config = BuildConfig(
        plan=plan,
        cache=given_location(cache),
        teacher=teacher,
        revision=revision,
        teacher_name=teacher_name,
        device=device,
        dtype=dtype,
        max_num_patches=max_num_patches,
        batch_size=_parse_batch_size(batch_size),
        compile=compile_teacher,
        decode=cast("Decode | None", decode),  # the config refuses other words
        targets=targets,
        targets_budget=targets_budget / 100,
        patch_targets=patch_targets,
        patch_dims=patch_dims,
        keep_pixels=keep_pixels,
        keep_quality=keep_quality,
        decode_workers=decode_workers,
        engine=cast(Literal["local", "ray"], engine),  # the config refuses other words
        address=address,
        workers=workers,
        gpus_per_worker=gpus_per_worker,
        threads=threads,
        rank=None if finish else find_rank(share, {} if engine == "ray" else os.environ),
        plan_timeout_s=share_wait,
        finish=finish,
        sample_timeout_s=sample_timeout,
        retry_rejected=retry_rejected,
    )
    if time and not dry_run:
        raise SettingError("--time goes with --dry-run: a build shows its rate as it runs")
    if dry_run:
        progress = BuildProgress(make_display(is_quiet=quiet))
        try:
            dry = run_dry(config, is_timed=time, on_samples=progress.scanned)
        finally:
            progress.stop()
        found, lines = dry_run_values(dry), dry_run_lines(dry)
    else:
        try:
            summary = run_build(config, progress=BuildProgress(make_display(is_quiet=quiet)))
        except (BuildInterrupted, KeyboardInterrupt) as error:  # the latter before the first batch
            say(str(error) or str(BuildInterrupted()), err=True)
            raise typer.Exit(130) from None
        found, lines = summary_values(config, summary), summary_lines(config, summary)
    print_found(found, lines, as_json)


def _parse_batch_size(text: str) -> int | None:
    if text == "auto":
        return None
    if not (text.isascii() and text.isdecimal()):
        raise SettingError(f"batch size must be auto or a whole number, got {text!r}")
    return int(text[:20])  # Python converts no more than 4300 digits; 20 are too many already
