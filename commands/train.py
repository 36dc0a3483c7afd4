"""The command ``train``: its options, which override a file given by --config."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import SettingError
from .options import CorpusRoot, local_path_option, parse_roots, path_argument, path_option, say


def train(
    cache: Annotated[
        str | None,
        path_argument(
            "[CACHE]", help="Cache folder, the one that holds cache.json; or its URL, s3://..."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        local_path_option(
            help="YAML file of settings, such as RUN/config.yaml; flags override it."
        ),
    ] = None,
    student: Annotated[
        str | None, path_option(help="Hub id or folder of a SigLIP or SigLIP 2 checkpoint.")
    ] = None,
    out: Annotated[
        Path | None, local_path_option(metavar="RUN", help="Folder of the run, made if missing.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Teacher in the cache, where there are several.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a hub id.")] = None,
    from_scratch: Annotated[
        bool | None,
        typer.Option("--from-scratch", help="Begin from random weights, not the student's own."),
    ] = None,
    towers: Annotated[
        str | None,
        typer.Option(help="both, or image: the image tower alone, against cached teacher texts."),
    ] = None,
    teacher_text: Annotated[
        str | None,
        path_option(help="With --towers image: teacher whose text tower goes into the result."),
    ] = None,
    projection: Annotated[
        str | None,
        typer.Option(help="Between the widths: auto, learned (one shared map), pca, none."),
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            help="TERM=W, of soft (1), cosine (teacher's scale / 3), contrastive (0.1), bank (0). "
            "Repeatable."
        ),
    ] = None,
    teacher_scale: Annotated[
        float | None, typer.Option(help="In place of the teacher's own, exponential applied.")
    ] = None,
    teacher_bias: Annotated[
        float | None, typer.Option(help="In place of the teacher's own.")
    ] = None,
    bank_size: Annotated[
        int | None, typer.Option(help="Texts drawn a step for the bank term. Default 4096.")
    ] = None,
    bank_labels: Annotated[str | None, typer.Option(help="soft (default) or hard.")] = None,
    bank_threshold: Annotated[
        float | None,
        typer.Option(help="With hard labels: ignore texts as alike as this. Default 0.95."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the images instead. Default 1.")
    ] = None,
    global_batch_size: Annotated[
        int | None, typer.Option(help="Images of a step, over all processes. Default 256.")
    ] = None,
    micro_batch_size: Annotated[
        int | None,
        typer.Option(help="Images of one forward pass; the gradient stays exact. Default: all."),
    ] = None,
    views_per_step: Annotated[
        int | None, typer.Option(help="Views of each image in a step. Default 1.")
    ] = None,
    max_num_patches: Annotated[
        int | None, typer.Option(help="Patches of an image at most, NaFlex students only.")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate. Default 1e-5, from scratch 1e-3.")
    ] = None,
    projection_lr: Annotated[
        float | None, typer.Option(help="That of the learned map. Default 1e-3.")
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Default 0, from scratch 1e-4.")
    ] = None,
    warmup_steps: Annotated[
        int | None,
        typer.Option(help="Default: 200 or 5 % of the steps, but no more than half of them."),
    ] = None,
    clip_norm: Annotated[
        float | None, typer.Option(help="Largest norm of the gradient. Default 1.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of every draw. Default 0.")] = None,
    device: Annotated[
        str | None, typer.Option(help="auto (cuda, mps, cpu), or a device such as cuda:1.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="auto (bfloat16 on cuda), float32 or bfloat16.")
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None,
        typer.Option("--gradient-checkpointing", help="Less memory, a third more computing."),
    ] = None,
    compile_towers: Annotated[
        bool | None, typer.Option("--compile", help="Compile the towers by torch.compile.")
    ] = None,
    check_pixels: Annotated[
        str | None,
        typer.Option(help="Compare images' hashes: always, first-epoch (default) or never."),
    ] = None,
    decode_workers: Annotated[
        int | None, typer.Option(help="Decoding processes; 0: none. Default: one a core, max 16.")
    ] = None,
    sample_timeout: Annotated[
        float | None, typer.Option(help="Seconds after which an image is left out. Default 60.")
    ] = None,
    val_share: Annotated[
        float | None, typer.Option(help="Share of the pictures held out. Default 0.05.")
    ] = None,
    val_keys: Annotated[
        str | None, typer.Option(help="Hold out images of such keys, e.g. 'validation/*'.")
    ] = None,
    eval_samples: Annotated[
        int | None,
        typer.Option(help="Held-out images evaluated at most; 0: none. Default 10000."),
    ] = None,
    save_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints. Default: a twentieth of all.")
    ] = None,
    keep_checkpoints: Annotated[
        int | None, typer.Option(help="Newest checkpoints that are kept. Default 2.")
    ] = None,
    allow_partial: Annotated[
        bool | None,
        typer.Option("--allow-partial", help="Train on what is committed of an unfinished cache."),
    ] = None,
    cache_dir: Annotated[
        Path | None,
        local_path_option(
            help="Where copies of a remote cache's files lie, for all processes of this machine. "
            "Default: $SIGLIP2_CACHE_DIR, else ~/.cache/siglip2-cache."
        ),
    ] = None,
    cache_limit: Annotated[
        str | None,
        typer.Option(
            help="Bytes of those copies at most, e.g. 500GB. Default: four fifths of the disk."
        ),
    ] = None,
    tensorboard: Annotated[
        bool | None, typer.Option("--tensorboard", help="Write RUN/tensorboard, too.")
    ] = None,
    corpus_root: CorpusRoot = None,
) -> None:
    """Train a student from the targets of a cache and its images; no teacher is loaded.

    It ends with RUN/model, a folder for plain transformers, and a table of what was gained. Run it again
    to go on after a crash. Several GPUs: torchrun --nproc-per-node N -m siglip2_cache train ...
    """
    from ..student.config_file import make_config
    from ..student.launch import find_launch, said_once
    from ..student.training.progress import make_progress
    from ..student.training.summary import summary_lines
    from ..student.training.trainer import TrainInterrupted
    from ..student.training.trainer import train as run_train

    given = dict(locals())
    flags: dict[str, Any] = {
        name: value for name, value in given.items() if name in _SETTINGS and value is not None
    }
    flags |= {"weights": _parse_weights(weight), "corpus_roots": parse_roots(corpus_root) or None}
    flags["compile"] = compile_towers
    launch = find_launch()
    with said_once(launch):
        settings = make_config(config, flags)
    try:
        summary = run_train(settings, progress=make_progress())
    except (TrainInterrupted, KeyboardInterrupt) as error:
        if launch.rank == 0:
            say(str(error) or "stopped; run the same command to go on", err=True)
        raise typer.Exit(130) from None
    for line in summary_lines(settings, summary):
        say(line)


_SETTINGS = {
    *("cache", "student", "out", "teacher", "revision", "from_scratch", "towers", "teacher_text"),
    *("projection", "teacher_scale", "teacher_bias", "bank_size", "bank_labels", "bank_threshold"),
    *("steps", "epochs", "global_batch_size", "micro_batch_size", "views_per_step"),
    *(
        "max_num_patches",
        "lr",
        "projection_lr",
        "weight_decay",
        "warmup_steps",
        "clip_norm",
        "seed",
    ),
    *("device", "dtype", "gradient_checkpointing", "check_pixels", "decode_workers"),
    *("sample_timeout", "val_share", "val_keys", "eval_samples", "save_every", "keep_checkpoints"),
    *("allow_partial", "tensorboard", "cache_dir", "cache_limit"),
}
"""Flags that are settings by their own name."""


def _parse_weights(arguments: list[str] | None) -> dict[str, float] | None:
    weights: dict[str, float] = {}
    for argument in arguments or ():
        term, separator, number = argument.partition("=")
        if term in weights:
            raise SettingError(f"weight {term} is given twice: leave one out")
        try:
            weights[term] = float(number)
        except ValueError:
            separator = ""
        if not separator or not term:
            raise SettingError(f"weight {argument!r} is not TERM=NUMBER, such as soft=1")
    return weights or None
