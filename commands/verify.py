"""The command ``verify``: check a cache from end to end."""

from typing import Annotated

import typer

from .options import (
    AsJson,
    CacheArgument,
    CorpusRoot,
    Device,
    Quiet,
    option,
    parse_roots,
    path_option,
    print_found,
)


def verify(
    cache: CacheArgument,
    sample: Annotated[
        int | None, option("N", "Also embed N random images and N random texts again, and compare.")
    ] = None,
    teacher: Annotated[
        str | None,
        option("NAME", "With --sample: teacher in the cache. Required if it has several."),
    ] = None,
    checkpoint: Annotated[
        str | None,
        path_option("CHECKPOINT", "With --sample: the teacher's checkpoint, if it has moved."),
    ] = None,
    seed: Annotated[int, option("N", "With --sample: random seed of the rows.")] = 0,
    corpus_root: CorpusRoot = None,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check every file, value and record of a cache.

    Compares checksums, and the arrays with the catalog. Exits with status 1 if anything is wrong.
    """
    from ..precompute.verify import VerifyConfig
    from ..precompute.verify import verify as run_verify
    from ..progress import TaskProgress, make_display
    from ..store.cache import open_cache

    config = VerifyConfig(
        sample=sample, teacher=teacher, checkpoint=checkpoint, seed=seed, device=device
    )
    opened = open_cache(cache, corpus_roots=parse_roots(corpus_root))
    progress = TaskProgress(make_display(is_quiet=quiet))
    try:
        result = run_verify(opened, config, progress=progress)
    finally:
        progress.stop()
    print_found(result.as_json(), result.lines(), as_json)
    if not result.is_sound:
        raise typer.Exit(1)
