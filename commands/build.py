"""The command ``build``: run the teacher over a corpus."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from ..errors import SettingError
from .options import (
    CORPUS,
    HARDWARE,
    TEACHER,
    CorpusRoot,
    DecodeWorkers,
    Device,
    Dtype,
    given_location,
    local_path_option,
    parse_roots,
    path_argument,
    path_option,
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
        str,
        path_option(
            metavar="CHECKPOINT", help="Hub id or folder of a SigLIP or SigLIP 2 checkpoint."
        ),
    ],
    views: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Views of each image: the whole image and N - 1 random crops.",
            show_default="as the cache, else 1",
        ),
    ] = None,
    batch_size: Annotated[
        str,
        typer.Option(
            metavar="N", help="Images, and texts, in one forward pass; auto: measured once."
        ),
    ] = "auto",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Write nothing; print what the build would cost."),
    ] = False,
    time: Annotated[
        bool,
        typer.Option(
            "--time", help="With --dry-run: load the teacher, time real batches, print the total."
        ),
    ] = False,
    retry_rejected: Annotated[
        bool, typer.Option("--retry-rejected", help="Try the rejected rows once more.")
    ] = False,
    image_column: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Table column of image paths or bytes.",
            show_default="by its usual names",
            rich_help_panel=CORPUS,
        ),
    ] = None,
    caption_column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help="Table column of captions. Repeatable.",
            show_default="by its usual names",
            rich_help_panel=CORPUS,
        ),
    ] = None,
    key_column: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Table column of keys.",
            show_default="by its usual names, else the image's path",
            rich_help_panel=CORPUS,
        ),
    ] = None,
    lang_column: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Table column of caption languages.",
            show_default="by its usual names",
            rich_help_panel=CORPUS,
        ),
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Table column of class labels.",
            show_default="by its usual names",
            rich_help_panel=CORPUS,
        ),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Text encoding of tables, such as latin-1.",
            show_default="UTF-8, or UTF-16 with a byte order mark",
            rich_help_panel=CORPUS,
        ),
    ] = None,
    caption_ending: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ENDING",
            help="Ending of the caption files (or tar members) beside images, such as .cap or syn.json. "
            "Repeatable: all that are given are read.",
            show_default="the first in use of .json, .txt, .caption, .cap, .text, .caption.txt, .jpg.txt",
            rich_help_panel=CORPUS,
        ),
    ] = None,
    prefix_keys: Annotated[
        bool,
        typer.Option(
            "--prefix-keys",
            help="Put the file name before each key; for keys that are unique only within a file.",
            rich_help_panel=CORPUS,
        ),
    ] = False,
    changed: Annotated[
        str,
        typer.Option(
            metavar="refuse|skip",
            help="Samples whose captions, label or location differ from the cache: refuse the build, or "
            "skip them and add what is new.",
            rich_help_panel=CORPUS,
        ),
    ] = "refuse",
    templates: Annotated[
        Path | None,
        local_path_option(
            metavar="FILE",
            help="Zero-shot prompt templates, one with {} per line; adds prompts to the cache.",
            rich_help_panel=CORPUS,
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        local_path_option(
            metavar="FILE",
            help="Class names for the prompts, one per line.",
            show_default="the corpus's labels",
            rich_help_panel=CORPUS,
        ),
    ] = None,
    corpus_root: CorpusRoot = None,
    revision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Revision of a hub id.",
            show_default="main",
            rich_help_panel=TEACHER,
        ),
    ] = None,
    teacher_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of the teacher in the cache.",
            show_default="the checkpoint's name",
            rich_help_panel=TEACHER,
        ),
    ] = None,
    max_num_patches: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Most patches of a view; NaFlex checkpoints only.",
            show_default="as the checkpoint's processor",
            rich_help_panel=TEACHER,
        ),
    ] = None,
    view_seed: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Random seed of the crops.",
            show_default="as the cache, else 0",
            rich_help_panel=TEACHER,
        ),
    ] = None,
    view_min_area: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Smallest share of the image that a crop shows, 0 to 1.",
            show_default="as the cache, else 0.25",
            rich_help_panel=TEACHER,
        ),
    ] = None,
    decode: Annotated[
        str | None,
        typer.Option(
            metavar="exact|scaled",
            help="exact: the pixels of the checkpoint's processor. scaled: decode large JPEGs at reduced "
            "size, faster and nearly the same.",
            show_default="as the cache, else exact",
            rich_help_panel=TEACHER,
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    decode_workers: DecodeWorkers = None,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="CPU threads of each worker. Equal threads and batch sizes give equal bytes, with any "
            "number of workers.",
            show_default="its share of the cores",
            rich_help_panel=HARDWARE,
        ),
    ] = None,
    shard_rows: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Rows in one unit, the most work that a crash can lose.",
            show_default="as the cache, else 16384 / VIEWS",
            rich_help_panel=HARDWARE,
        ),
    ] = None,
    sample_timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="Reject an image that takes longer to decode.",
            rich_help_panel=HARDWARE,
        ),
    ] = 60.0,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Processes that run the teacher, each on its own GPU or its share of the cores.",
            show_default="1; with ray one per GPU, or per node",
            rich_help_panel=_PROCESSES,
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            metavar="local|ray",
            help="local: this machine. ray: actors of a Ray cluster.",
            rich_help_panel=_PROCESSES,
        ),
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="With --engine ray: address of the cluster.",
            show_default="RAY_ADDRESS, else this machine's",
            rich_help_panel=_PROCESSES,
        ),
    ] = None,
    gpus_per_worker: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            help="With --engine ray: GPUs of each worker.",
            show_default="1 if the cluster has GPUs",
            rich_help_panel=_PROCESSES,
        ),
    ] = None,
    share: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Build as process I of N that run the same command, 0/N to N-1/N. Process 0 plans; each "
            "makes its units, then helps the others. 0/1: alone.",
            show_default="by RANK and WORLD_SIZE or Slurm",
            rich_help_panel=_PROCESSES,
        ),
    ] = None,
    share_wait: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="How long the other processes wait for process 0 to plan.",
            rich_help_panel=_PROCESSES,
        ),
    ] = 3600.0,
    finish: Annotated[
        bool,
        typer.Option(
            "--finish",
            help="After all processes have ended: report what is missing, or clean up and summarise.",
            rich_help_panel=_PROCESSES,
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
    from ..precompute.dry_run import dry_run_lines
    from ..precompute.executor.progress import make_progress
    from ..precompute.executor.worker import BuildInterrupted
    from ..precompute.planning.plan import PlanConfig
    from ..precompute.ranks import find_rank
    from ..precompute.sources import TableColumns
    from ..precompute.summary import summary_lines

    named = (image_column, caption_column, key_column, lang_column, label_column, encoding)
    columns = TableColumns(
        image=image_column,
        captions=tuple(caption_column) if caption_column else None,
        key=key_column,
        lang=lang_column,
        label=label_column,
        encoding=encoding,
    )
    plan = PlanConfig(
        sources=tuple(sources),
        columns=columns if any(named) else None,
        shard_rows=shard_rows,
        num_views=views,
        view_seed=view_seed,
        view_min_area=view_min_area,
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
        decode=cast("Decode | None", decode),  # the config refuses other words
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
        lines = dry_run_lines(run_dry(config, is_timed=time))
    else:
        try:
            summary = run_build(config, progress=make_progress())
        except (BuildInterrupted, KeyboardInterrupt) as error:  # the latter before the first batch
            say(str(error) or str(BuildInterrupted()), err=True)
            raise typer.Exit(130) from None
        lines = summary_lines(config, summary)
    for line in lines:
        say(line)


def _parse_batch_size(text: str) -> int | None:
    if text == "auto":
        return None
    if not (text.isascii() and text.isdecimal()):
        raise SettingError(f"batch size must be auto or a whole number, got {text!r}")
    return int(text[:20])  # Python converts no more than 4300 digits; 20 are too many already
