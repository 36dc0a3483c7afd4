"""The command ``eval``: compare a model with the teacher of a cache."""

from typing import TYPE_CHECKING, Annotated, cast

from .options import (
    CORPUS,
    HARDWARE,
    AsJson,
    CacheArgument,
    CorpusRoot,
    DecodeWorkers,
    Device,
    Dtype,
    Quiet,
    TeacherName,
    flag,
    given_location,
    option,
    parse_roots,
    path_argument,
    print_found,
)

if TYPE_CHECKING:
    from ..student.evaluation.eval_set import Split


def evaluate(
    model: Annotated[
        str,
        path_argument(
            "MODEL",
            help="Folder or hub id of a SigLIP or SigLIP 2 checkpoint, such as RUN/model of a training.",
        ),
    ],
    cache: CacheArgument,
    split: Annotated[
        str, option("val|train|all", "Images: held out (val), all others (train), or all.")
    ] = "val",
    teacher: TeacherName = None,
    samples: Annotated[int, option("N", "Most images; a random choice of more.")] = 10_000,
    seed: Annotated[int, option("N", "Random seed of the images and of the unmatched pairs.")] = 0,
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
    device: Device = "auto",
    dtype: Dtype = "auto",
    batch_size: Annotated[
        int, option("N", "Images, and texts, in one forward pass.", HARDWARE)
    ] = 32,
    decode_workers: DecodeWorkers = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare a model with the teacher: retrieval, zero-shot, agreement, calibration."""
    from ..progress import TaskProgress, make_display
    from ..student.evaluation.compare import EvalConfig, evaluate_model

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
    progress = TaskProgress(make_display(is_quiet=quiet))
    try:
        comparison = evaluate_model(config, progress=progress)
    finally:
        progress.stop()
    print_found(comparison.found, comparison.lines, as_json)
