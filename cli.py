"""The ``siglip2-cache`` command. Parses, calls one library function, prints; nothing else."""

import errno
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, cast

import typer

from .commands.demo import demo
from .commands.estimate import plan
from .commands.index import export, index
from .commands.neighbors import neighbors
from .commands.options import (
    AsJson,
    CacheArgument,
    CorpusRoot,
    Device,
    given_location,
    local_path_option,
    parse_roots,
    path_argument,
    path_option,
    print_found,
    say,
)
from .commands.train import train
from .errors import CacheError, SettingError
from .formatting import first_line, short_line
from .streams import open_missing_streams

if TYPE_CHECKING:
    from .images.pixels import Decode
    from .precompute.build import BuildConfig, BuildSummary
    from .store.cache import Cache
    from .student.evaluation.eval_set import Split

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from . import __version__

        typer.echo(f"siglip2-cache {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    """Run the SigLIP 2 teacher once over a corpus; keep its embeddings in an open cache."""


@app.command()
def build(
    sources: Annotated[
        list[str],
        path_argument(
            "SOURCE",
            help="Folder of images; tars or Parquet files with images (a file, a folder, '*.tar', "
            "'{000..123}.tar'); folder of img2dataset or of datasets; or table that names images "
            "(.jsonl, .json, .csv, .tsv, .parquet). NAME=PATH puts NAME/ before its keys.",
        ),
    ],
    cache: Annotated[
        str,
        path_argument("CACHE", help="Folder or URL of the cache, made if missing."),
    ],
    teacher: Annotated[
        str, path_option(help="Hub id or folder of a SigLIP or SigLIP 2 checkpoint.")
    ],
    revision: Annotated[str | None, typer.Option(help="Revision of a hub id.")] = None,
    teacher_name: Annotated[
        str | None, typer.Option(help="Name in the cache. Default: the checkpoint's name.")
    ] = None,
    views: Annotated[
        int | None,
        typer.Option(help="Views of each image: the whole, and VIEWS - 1 crops. Default 1."),
    ] = None,
    view_seed: Annotated[int | None, typer.Option(help="Seed of the crops. Default 0.")] = None,
    view_min_area: Annotated[
        float | None, typer.Option(help="Smallest share of the image in a crop. Default 0.25.")
    ] = None,
    shard_rows: Annotated[
        int | None,
        typer.Option(help="Rows in one unit: what a crash can lose. Default 16384 / VIEWS."),
    ] = None,
    labels: Annotated[
        Path | None,
        local_path_option(help="Class names for zero-shot prompts. Default: the corpus's."),
    ] = None,
    templates: Annotated[
        Path | None, local_path_option(help="Prompt templates, one with {} a line; plans prompts.")
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(help="Table column of image paths or bytes.")
    ] = None,
    caption_column: Annotated[
        list[str] | None, typer.Option(help="Table column of captions. Repeatable.")
    ] = None,
    key_column: Annotated[str | None, typer.Option(help="Table column of keys.")] = None,
    lang_column: Annotated[str | None, typer.Option(help="Table column of languages.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Table column of labels.")] = None,
    caption_ending: Annotated[
        list[str] | None,
        typer.Option(
            help="Ending of the files, or members of tars, beside images that hold captions: .txt, .cap, "
            "syn.json; repeatable, all that are given. Default: the first of .json, .txt, .caption, .cap, "
            ".text, .caption.txt, .jpg.txt that has any."
        ),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            help="Of a table's text, such as latin-1. Default: UTF-8, or UTF-16 by its mark."
        ),
    ] = None,
    prefix_keys: Annotated[
        bool,
        typer.Option(
            "--prefix-keys",
            help="Put the file's name before each key, for keys unique only within a shard or folder.",
        ),
    ] = False,
    changed: Annotated[
        str,
        typer.Option(
            help="Samples in the cache whose captions, label or place in the corpus changed: refuse the "
            "build, or skip them, keep what is recorded and add what is new."
        ),
    ] = "refuse",
    corpus_root: CorpusRoot = None,
    device: Device = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            help="auto, float32, bfloat16 or float16. auto: bfloat16 on cuda, else as stored."
        ),
    ] = "auto",
    max_num_patches: Annotated[
        int | None,
        typer.Option(
            help="Patches of a view at most, NaFlex checkpoints only. Default: as its processor."
        ),
    ] = None,
    batch_size: Annotated[
        str, typer.Option(help="auto, or images (and texts) in one forward pass.")
    ] = "auto",
    decode: Annotated[
        str | None,
        typer.Option(
            help="exact: the processor's own pixels. scaled: large JPEGs are decoded at a fraction of "
            "their size, faster and nearly the same. Default: as the cache has it, else exact."
        ),
    ] = None,
    decode_workers: Annotated[
        int | None,
        typer.Option(help="Decoding processes a worker; 0: none. Default: one a core, max 16."),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="local, or ray: the actors of a Ray cluster run the teacher.")
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that each run the teacher, on a GPU each or sharing cores. Default: 1; "
            "with ray one for each GPU, or node."
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            help="CPU threads of a worker's teacher. Default: its share of the cores. Equal threads and "
            "batch sizes give equal bytes, with any number of workers."
        ),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="With ray: address of the cluster. Default: RAY_ADDRESS.")
    ] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(help="With ray: default 1 where the cluster has GPUs.")
    ] = None,
    share: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Build as one of N processes alike, from 0/N to N-1/N. Default: as RANK and WORLD_SIZE "
            "or Slurm say. Share 0 plans; each makes its units, then helps. 0/1: all alone.",
        ),
    ] = None,
    share_wait: Annotated[
        float, typer.Option(help="Seconds that the other shares wait for share 0 to plan.")
    ] = 3600.0,
    finish: Annotated[
        bool,
        typer.Option(
            "--finish", help="After all shares: say what is missing, or clear up and sum up."
        ),
    ] = False,
    sample_timeout: Annotated[
        float, typer.Option(help="Seconds after which an image that hangs is rejected.")
    ] = 60.0,
    retry_rejected: Annotated[
        bool, typer.Option("--retry-rejected", help="Try rejected rows once more.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Write nothing, load no model (but for --time), print what it costs."
        ),
    ] = False,
    time: Annotated[
        bool, typer.Option("--time", help="With --dry-run: time real batches, say how long.")
    ] = False,
) -> None:
    """Run the teacher over every image, every view and every unique caption of a corpus.

    Run it again to continue after a crash, to append new samples, or to add a second teacher.
    """
    from .precompute.build import BuildConfig
    from .precompute.build import build as run_build
    from .precompute.executor.progress import make_progress
    from .precompute.executor.worker import BuildInterrupted
    from .precompute.planning.plan import PlanConfig
    from .precompute.ranks import find_rank
    from .precompute.sources import TableColumns

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
        raise SettingError("--time goes with --dry-run: a build says how long it takes as it runs")
    if dry_run:
        _dry_run(config, is_timed=time)
        return
    try:
        summary = run_build(config, progress=make_progress())
    except (BuildInterrupted, KeyboardInterrupt) as error:  # the latter before the first batch
        message = str(error) or "stopped; finished units are kept, run the same command to go on"
        say(message, err=True)
        raise typer.Exit(130) from None
    _print_summary(config, summary)


app.command()(plan)
app.command()(train)
app.command()(neighbors)
app.command()(index)
app.command()(export)
app.command()(demo)


@app.command()
def info(
    cache: CacheArgument,
    rejected: Annotated[
        bool,
        typer.Option(
            "--rejected", help="List every rejected row, and all of the corpus that was unreadable."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what a cache holds: samples, texts, teachers, what is committed, what was rejected."""
    from .store.cache import open_cache
    from .store.describe import describe, describe_lines, list_rejected, rejected_lines

    opened = open_cache(cache)
    found = describe(opened)
    lines = describe_lines(found)
    if rejected:
        listed = list_rejected(opened)
        found |= listed
        lines += rejected_lines(listed)
    print_found(found, lines, as_json)


@app.command()
def verify(
    cache: CacheArgument,
    sample: Annotated[
        int | None,
        typer.Option(help="Also embed this many random rows again with the live teacher."),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Teacher of the sample, where there are several.")
    ] = None,
    checkpoint: Annotated[
        str | None, path_option(help="Where its checkpoint is now, if it has moved.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice of rows.")] = 0,
    device: Device = "auto",
    corpus_root: CorpusRoot = None,
    as_json: AsJson = False,
) -> None:
    """Prove a cache: checksums of every file, values, catalog against arrays; exit 1 on any fault."""
    from .store.cache import open_cache
    from .store.verify.verify import verify_cache

    opened = open_cache(cache, corpus_roots=parse_roots(corpus_root))
    if sample is None and (teacher or checkpoint):
        raise SettingError(
            "--teacher and --checkpoint go with --sample N: without it no teacher is run, "
            "and the files of all are verified"
        )
    if sample is not None:  # before every file is read, which may take long
        if sample < 1 or seed < 0:
            raise SettingError(
                f"--sample must be at least 1 and --seed at least 0, got {sample} and {seed}"
            )
        from .precompute.teacher.reload import find_checkpoint

        find_checkpoint(opened, teacher=teacher, checkpoint=checkpoint)  # before all is read
    report = verify_cache(opened)
    found: dict[str, Any] = {
        "ok": report.is_sound,
        "files": report.num_files,
        "bytes": report.num_bytes,
        "image_rows": report.num_rows["image"],
        "text_rows": report.num_rows["text"],
        "rejected": report.num_rejected,
        "notes": report.notes,
        "faults": report.faults,
    }
    lines = [
        f"files      {report.num_files:,} ({report.num_bytes:,} bytes), checksums compared",
        f"rows       {report.num_rows['image']:,} image, {report.num_rows['text']:,} text, "
        f"{report.num_rejected:,} rejected",
    ]
    if sample is not None:
        try:
            lines += _recheck(opened, sample, teacher, checkpoint, device, seed, found)
        except CacheError as error:  # one more fault: those found so far must be shown
            found["faults"] = [*found["faults"], f"the live teacher could not be asked: {error}"]
            found["ok"] = False
    lines += [f"note       {note}" for note in found["notes"]]
    lines += [f"FAULT      {fault}" for fault in found["faults"]]
    lines.append("verified: no fault" if found["ok"] else f"{len(found['faults'])} faults")
    print_found(found, lines, as_json)
    if not found["ok"]:
        raise typer.Exit(1)


@app.command("eval")
def eval_(
    model: Annotated[
        str,
        path_argument(
            "MODEL",
            help="Folder or hub id of a SigLIP or SigLIP 2 checkpoint, such as RUN/model of a training.",
        ),
    ],
    cache: CacheArgument,
    split: Annotated[
        str, typer.Option(help="val (images held out), train (the others) or all.")
    ] = "val",
    teacher: Annotated[
        str | None, typer.Option(help="Teacher to compare with, where the cache has several.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Images at most, a seeded choice.")] = 10_000,
    val_share: Annotated[
        float | None,
        typer.Option(
            help="Share of the pictures that is held out. Default: as MODEL was trained, else 0.05."
        ),
    ] = None,
    val_keys: Annotated[
        str | None,
        typer.Option(help="Hold out images of such keys, e.g. 'validation/*', not a share."),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Seed of the choice of images, and of pairs that do not match.")
    ] = 0,
    device: Device = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            help="auto, float32, bfloat16 or float16. auto: bfloat16 on cuda, else as stored."
        ),
    ] = "auto",
    batch_size: Annotated[int, typer.Option(help="Images, and texts, in one forward pass.")] = 32,
    decode_workers: Annotated[
        int | None, typer.Option(help="Decoding processes; 0: none. Default: one a core, max 16.")
    ] = None,
    corpus_root: CorpusRoot = None,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Take what is committed of an unfinished cache.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare a model with the teacher of a cache: retrieval, zero-shot, nearness, calibration."""
    from .student.evaluation.compare import EvalConfig, compare

    config = EvalConfig(
        model=model,
        cache=given_location(cache),
        teacher=teacher,
        split=cast("Split", split),  # the config refuses other words
        val_share=val_share,
        val_keys=val_keys,
        samples=samples,
        seed=seed,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        decode_workers=decode_workers,
        corpus_roots=parse_roots(corpus_root),
        allow_partial=allow_partial,
    )
    comparison = compare(config)
    print_found(comparison.found, comparison.lines, as_json)


def _recheck(
    cache: "Cache",
    sample: int,
    teacher: str | None,
    checkpoint: str | None,
    device: str,
    seed: int,
    found: dict[str, Any],
) -> list[str]:
    from .precompute.verify_live import verify_live

    live = verify_live(
        cache, sample, teacher=teacher, checkpoint=checkpoint, device=device, seed=seed
    )
    found["faults"] = [*found["faults"], *live.faults]
    found["ok"] = not found["faults"]
    found["sample"] = {
        modality: {"count": c.count, "min_cosine": c.min, "mean_cosine": c.mean}
        for modality, c in live.cosines.items()
    }
    return [
        f"{modality:<10} {c.count:,} embedded again by {live.teacher}: cosine to what is stored "
        f"min {c.min:.6f}, mean {c.mean:.6f}"
        for modality, c in live.cosines.items()
    ]


def _dry_run(config: "BuildConfig", *, is_timed: bool) -> None:
    from .precompute.dry_run import dry_run, dry_run_lines

    for line in dry_run_lines(dry_run(config, is_timed=is_timed)):
        say(line)


def _print_summary(config: "BuildConfig", summary: "BuildSummary") -> None:
    from .precompute.summary import summary_lines

    for line in summary_lines(config, summary):
        say(line)


def _parse_batch_size(text: str) -> int | None:
    if text == "auto":
        return None
    if not (text.isascii() and text.isdecimal()):
        raise SettingError(f"batch size must be auto or a whole number, got {text!r}")
    return int(text[:20])  # Python converts no more than 4300 digits; 20 are too many already


def main() -> None:
    """Run the command line; turn what a user can mend into one line and exit status 1."""
    open_missing_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):  # what a terminal cannot show is replaced
        sys.stdout.reconfigure(errors="replace")
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            _refuse_usage(error)
        message = _explain(error)
        if message is None or os.environ.get("SIGLIP2_CACHE_DEBUG") == "1":
            raise
        if message:  # else another process says it
            say(f"error: {message}", err=True)
        sys.exit(1)


def _refuse_usage(error: Any) -> NoReturn:
    """Show what is wrong with a command line, or without one the help, as click does."""
    if len(sys.argv) > 1:
        error.message = short_line(error.message)
    error.show()
    sys.exit(error.exit_code)


def _explain(error: Exception) -> str | None:
    """Return what to tell the user; None for a bug of ours, whose traceback is wanted."""
    if isinstance(error, CacheError):
        return str(error)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "no space left where the output goes"
    # Of polars, which does not say what file it was reading, or raises an OSError without its parts.
    if isinstance(error, OSError) or type(error).__module__.startswith("polars."):
        return (
            f"a table cannot be read ({first_line(error)}); "
            "siglip2-cache verify CACHE names the damaged file"
        )
    return None


if __name__ == "__main__":
    main()
