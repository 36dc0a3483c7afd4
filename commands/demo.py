"""The command ``demo``: a guided tour of the other commands."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Quiet, flag, local_path_option, option


def demo(
    context: typer.Context,
    out: Annotated[
        Path, local_path_option("DIR", "Folder to write to: new, or of an earlier demo.")
    ] = Path("siglip2-cache-demo"),
    quick: Annotated[
        bool, flag("--quick", "A tenth of the images and steps; the results then mean little.")
    ] = False,
    seed: Annotated[int, option("N", "Random seed of the scenes and the trainings.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Run the whole workflow on generated scenes: build, verify, train, evaluate.

    Takes minutes and needs neither network nor GPU. Each command is printed before it runs; the result is
    a table that compares students trained with and without the teacher. Run it again to resume.
    """
    from ..demo.steps import TourConfig
    from ..demo.tour import run_tour

    app: Any = context.find_root().command

    def run(arguments: Sequence[str]) -> int:
        """Run a command in this process, which has imported torch; errors reach main()."""
        names = {name for each in app.commands[arguments[0]].params for name in each.opts}
        silent = ["--quiet"] if quiet and "--quiet" in names else []
        return app.main([*arguments, *silent], standalone_mode=False) or 0

    status = run_tour(TourConfig(out=out, seed=seed, is_quick=quick), run)
    if status:
        raise typer.Exit(status)
