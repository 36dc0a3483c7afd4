"""The command ``eval``: compare a model with the teacher of a cache, or run a benchmark."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from .options import (
    CORPUS,
    HARDWARE,
    AsJson,
    CorpusRoot,
    DecodeWorkers,
    Device,
    Dtype,
    Quiet,
    TeacherName,
    flag,
    given_location,
    local_path_option,
    option,
    parse_roots,
    path_argument,
    path_option,
    print_found,
)

if TYPE_CHECKING:
    from ..protocols.evaluate import Protocol
    from ..student.evaluation.eval_set import Split

BENCHMARK = "Benchmark"

_SAMPLES = 10_000


def evaluate(
    model: Annotated[
        str,
        path_argument(
            "MODEL",
            help="Folder or hub id of a SigLIP or SigLIP 2 checkpoint, such as RUN/model of a training.",
        ),
    ],
    data: Annotated[
        str,
        path_argument(
            "CACHE", help="Folder or URL of the cache; with --protocol the data of the benchmark."
        ),
    ],
    split: Annotated[
        str | None,
        option(
            "val|train|all",
            "Images of a cache: held out (val), all others (train), or all. Images of coco and flickr30k: "
            "test, val, train or restval.",
            default="val of a cache, test of a benchmark",
        ),
    ] = None,
    teacher: TeacherName = None,
    samples: Annotated[
        int | None,
        option(
            "N",
            "Most images; a random choice of more.",
            default=f"{_SAMPLES:,} of a cache, all of a benchmark",
        ),
    ] = None,
    seed: Annotated[
        int,
        option("N", "Random seed of the images, of the unmatched pairs and of the intervals."),
    ] = 0,
    val_share: Annotated[
        float | None,
        option(
            "SHARE",
            "Share of the images that is held out, 0 to 1.",
            CORPUS,
            default="as MODEL was trained, else 0.05",
        ),
    ] = None,
    val_keys: Annotated[
        str | None,
        option(
            "PATTERN",
            "Hold out images whose keys match, such as 'validation/*', instead of a share.",
            CORPUS,
            default="as MODEL was trained",
        ),
    ] = None,
    corpus_root: CorpusRoot = None,
    allow_partial: Annotated[
        bool, flag("--allow-partial", "Use what is committed of an unfinished cache.", CORPUS)
    ] = False,
    protocol: Annotated[
        str | None,
        option(
            "NAME",
            "Evaluate on a benchmark instead of a cache: coco or flickr30k (Karpathy's JSON), xm3600, "
            "imagenet, or corpus (whatever build reads).",
            BENCHMARK,
            default="none",
        ),
    ] = None,
    images: Annotated[
        str | None,
        path_option(
            "FOLDER",
            "Images of coco, flickr30k and xm3600.",
            BENCHMARK,
            default="beside the JSON; images of xm3600",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        local_path_option(
            "FILE",
            "Names of the classes: by label, or one per line in the order of the sorted labels.",
            BENCHMARK,
            default="the labels",
        ),
    ] = None,
    templates: Annotated[
        Path | None,
        local_path_option(
            "FILE",
            "Templates of the prompts, each with {} for the name of a class.",
            BENCHMARK,
            default="the 80 of CLIP for ImageNet",
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    batch_size: Annotated[
        int, option("N", "Images, and texts, in one forward pass.", HARDWARE)
    ] = 32,
    decode_workers: DecodeWorkers = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare a model with the teacher: retrieval, zero-shot, agreement, calibration. Or run a benchmark."""
    from ..progress import TaskProgress, make_display

    common: dict[str, Any] = {
        "model": model,
        "seed": seed,
        "device": device,
        "dtype": dtype,
        "batch_size": batch_size,
        "decode_workers": decode_workers,
    }
    of_cache = {
        "--teacher": teacher,
        "--val-share": val_share,
        "--val-keys": val_keys,
        "--corpus-root": corpus_root,
        "--allow-partial": allow_partial or None,
    }
    of_benchmark = {"--images": images, "--labels": labels, "--templates": templates}
    if protocol is None:
        _refuse(of_benchmark, "goes with --protocol")
        from ..student.evaluation.compare import EvalConfig, evaluate_model

        config = EvalConfig(
            **common,
            cache=given_location(data),
            teacher=teacher,
            split=cast("Split", split or "val"),  # the config refuses other words
            val_share=val_share,
            val_keys=val_keys,
            samples=_SAMPLES if samples is None else samples,
            corpus_roots=parse_roots(corpus_root),
            allow_partial=allow_partial,
        )
        run = partial(evaluate_model, config)
    else:
        _refuse(of_cache, "goes with a cache, not with --protocol")
        from ..protocols.evaluate import ProtocolConfig, evaluate_protocol

        benchmark = ProtocolConfig(
            **common,
            protocol=cast("Protocol", protocol),  # the config refuses other words
            data=given_location(data),
            images=None if images is None else given_location(images),
            split=split,
            labels=labels,
            templates=templates,
            samples=samples,
        )
        run = partial(evaluate_protocol, benchmark)
    progress = TaskProgress(make_display(is_quiet=quiet))
    try:
        comparison = run(progress=progress)
    finally:
        progress.stop()
    print_found(comparison.found, comparison.lines, as_json)


def _refuse(options: dict[str, Any], why: str) -> None:
    from ..errors import SettingError

    for name, value in options.items():
        if value is not None:
            raise SettingError(f"{name} {why}; leave it out")
