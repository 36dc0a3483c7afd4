"""The command ``demo``: a guided tour of the others."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from .options import local_path_option


def demo(
    context: typer.Context,
    out: Annotated[
        Path,
        local_path_option(metavar="DIR", help="Folder for all of it, new or of a demo before."),
    ] = Path("siglip2-cache-demo"),
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="A tenth of the images and steps; the numbers then mean little."
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the scenes and of the trainings.")] = 0,
) -> None:
    """Show the main job on drawn scenes: build, info, verify, train, eval, neighbors, in minutes.

    No network and no GPU are needed. Each command is printed as you would type it, then run; at the
    end stands what distilling was worth, in a table. Run it again to go on after it was stopped.
    """
    from ..demo.steps import TourConfig
    from ..demo.tour import give_tour

    app = context.find_root().command

    def run(arguments: Sequence[str]) -> int:
        """Run a command here, where torch is imported already; errors go on to main()."""
        return app.main(list(arguments), standalone_mode=False) or 0

    status = give_tour(TourConfig(out=out, seed=seed, is_quick=quick), run)
    if status:
        raise typer.Exit(status)
