"""The command ``student new``: a smaller student from a checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from .help import Command, CommandGroup
from .options import AsJson, local_path, option, path, path_option, print_found

if TYPE_CHECKING:
    from typing import Literal

student = typer.Typer(
    cls=CommandGroup, no_args_is_help=True, help="Make a smaller student from a checkpoint."
)


@student.callback()
def _group() -> None:  # pyright: ignore[reportUnusedFunction] - typer: one command is still a group
    pass


@student.command(cls=Command)
def new(
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", parser=local_path, help="Folder to write; an earlier one is replaced."
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            "--from",
            parser=path,
            metavar="MODEL",
            help="Folder or hub id of a SigLIP 2 checkpoint of two towers.",
        ),
    ],
    vocabulary: Annotated[
        list[str] | None,
        path_option(
            "CACHE|FILE|LANG,...",
            "Keep only the tokens of the texts of a cache, of the lines of a text file, or of the most "
            "frequent words of languages such as de,en (extra: languages), all special tokens, and bytes, to "
            "which other texts fall back. Repeatable.",
            default="all tokens",
        ),
    ] = None,
    vision_layers: Annotated[
        str | None,
        option(
            "N|LIST",
            "Layers of the image tower to keep: a number, spread evenly, or positions such as 0,2,5.",
            default="all",
        ),
    ] = None,
    text_layers: Annotated[
        str | None, option("N|LIST", "Layers of the text tower to keep.", default="all")
    ] = None,
    image_size: Annotated[
        int | None, option("PIXELS", "Height and width of an image.", default="as MODEL")
    ] = None,
    patch_size: Annotated[
        int | None,
        option(
            "PIXELS", "Height and width of a patch; its weights are resampled.", default="as MODEL"
        ),
    ] = None,
    width: Annotated[
        int | None,
        option(
            "N",
            "Width of both towers, a multiple of the width of a head; heads and MLPs are selected evenly.",
            default="as MODEL",
        ),
    ] = None,
    init: Annotated[
        str, option("selected|random", "Weights: selected from MODEL, or new.")
    ] = "selected",
    seed: Annotated[int, option("N", "Random seed of new weights.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Write a smaller student: fewer tokens, layers or pixels, or narrower; train it like any other."""
    from ..student.smaller.new import NewStudentConfig, new_student

    made = new_student(
        NewStudentConfig(
            model=model,
            out=out,
            vocabulary=tuple(vocabulary or ()),
            vision_layers=vision_layers,
            text_layers=text_layers,
            image_size=image_size,
            patch_size=patch_size,
            width=width,
            init=cast("Literal['selected', 'random']", init),  # the config refuses other words
            seed=seed,
        )
    )
    print_found(made.found, made.lines, as_json)
