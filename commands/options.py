"""Parameters and output that several commands share."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import SettingError
from ..formatting import plain_json, short_line
from ..streams import say_on_stderr

if TYPE_CHECKING:
    from ..store.io.location import Location

CORPUS = "Corpus"
TEACHER = "Teacher"
HARDWARE = "Hardware"
OUTPUT = "Output"


def path(text: str) -> str:
    """Return a path, URL or hub id with ``~`` expanded to the home folder.

    In ``NAME=PATH`` the path after the first ``=`` is expanded.
    """
    name, separator, rest = text.partition("=")
    if separator and rest.startswith("~"):
        return f"{name}={os.path.expanduser(rest)}"
    return os.path.expanduser(text)


def local_path(given: str | Path) -> Path:
    """Return a path of this machine with ``~`` expanded; a default may be a Path already."""
    return Path(path(str(given)))


def option(
    metavar: str,
    help: str,
    panel: str | None = None,
    *,
    default: str | None = None,
    name: str | None = None,
    also: str | None = None,
    parser: Callable[[Any], Any] | None = None,
) -> Any:
    """Return an option with a value.

    Args:
        metavar: what stands for the value in the help.
        help: what it does, with its unit.
        panel: group of options in the help; None: the first one.
        default: the default in words, where the parameter's own is None.
        name: such as ``-k``, where it does not follow from the parameter.
        also: a second name.
        parser: converts the text.
    """
    names = tuple(each for each in (name, also) if each is not None)
    shown = True if default is None else default
    return typer.Option(
        *names, metavar=metavar, help=help, rich_help_panel=panel, show_default=shown, parser=parser
    )


def flag(name: str, help: str, panel: str | None = None) -> Any:
    """Return an option without a value, ``False`` unless it is given."""
    return typer.Option(name, help=help, rich_help_panel=panel)


def path_option(
    metavar: str, help: str, panel: str | None = None, *, default: str | None = None
) -> Any:
    """Return an option whose value, or each of them, is a path, URL or hub id, as text."""
    return option(metavar, help, panel, default=default, parser=path)


def local_path_option(
    metavar: str, help: str, panel: str | None = None, *, default: str | None = None
) -> Any:
    """Return an option whose value, or each of them, is a Path of this machine."""
    return option(metavar, help, panel, default=default, parser=local_path)


def path_argument(metavar: str, *, help: str) -> Any:
    """Return an argument that is a path, URL or hub id, as text."""
    return typer.Argument(parser=path, metavar=metavar, help=help)


CacheArgument = Annotated[
    str, path_argument("CACHE", help="Folder or URL of the cache (the one with cache.json).")
]
AsJson = Annotated[bool, flag("--json", "Print one JSON value instead of text.", OUTPUT)]
Quiet = Annotated[
    bool, flag("--quiet", "Show no progress; the result, warnings and errors stay.", OUTPUT)
]
Push = Annotated[
    str | None,
    option(
        "ORG/NAME",
        "Push the exported model to the Hugging Face hub once it has passed its check, with the token of "
        "huggingface_hub (HF_TOKEN). An earlier export there is replaced.",
        OUTPUT,
        default="not pushed",
    ),
]
Private = Annotated[bool, flag("--private", "With --push: make a new repository private.", OUTPUT)]
CorpusRoot = Annotated[
    list[str] | None,
    path_option("OLD=NEW", "The corpus has moved from OLD to NEW. Repeatable.", CORPUS),
]
Device = Annotated[
    str, option("DEVICE", "auto (cuda, mps or cpu), or a device such as cuda:1.", HARDWARE)
]
Dtype = Annotated[
    str,
    option(
        "DTYPE",
        "float32, bfloat16, float16, or auto: bfloat16 on cuda, elsewhere as the checkpoint.",
        HARDWARE,
    ),
]
DecodeWorkers = Annotated[
    int | None,
    option(
        "N", "Processes that decode images; 0: none.", HARDWARE, default="one per core, at most 16"
    ),
]
TeacherName = Annotated[
    str | None, option("NAME", "Teacher in the cache. Required if it has several.", TEACHER)
]
View = Annotated[int, option("N", "View of the images; 0 is the whole image.", TEACHER)]
TargetsBudget = Annotated[
    float,
    option(
        "PERCENT",
        "Largest change of the soft targets by int8, measured as KL divergence in percent of their "
        "entropy; more is refused.",
        OUTPUT,
    ),
]
MaxNumPatches = Annotated[
    int | None,
    option(
        "N",
        "Most patches of a view; NaFlex checkpoints only.",
        TEACHER,
        default="as the checkpoint's processor",
    ),
]


def say(line: str, *, err: bool = False) -> None:
    """Print one line of at most 300 characters."""
    # Not typer.echo, which writes UTF-8 to a terminal that says it is ASCII.
    if err:
        say_on_stderr(line)
    else:
        print(short_line(line), flush=True)


def print_json(found: Any) -> None:
    """Print a JSON value in full; in ASCII where stdout cannot take every character."""
    is_unicode = (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    print(plain_json(json.dumps(found, indent=1, ensure_ascii=not is_unicode)), flush=True)


def print_found(found: dict[str, Any], lines: list[str], as_json: bool) -> None:
    """Print what a command found: as JSON, or as lines."""
    if as_json:
        print_json(found)
    else:
        for line in lines:
            say(line)


def given_location(text: str) -> "Location":
    """Return what a path or URL names, a path as it was given, relative or not."""
    from ..store.io import location as locations

    return locations.given_location(text)


def parse_roots(arguments: list[str] | None) -> dict[str, str]:
    """Return the OLD=NEW arguments of --corpus-root.

    Raises:
        SettingError: an argument is not OLD=NEW, or one folder has two new places.
    """
    if not arguments:
        return {}
    from ..store.io.location import parse_location

    roots: dict[str, str] = {}
    for argument in arguments:
        old, separator, new = argument.partition("=")
        if not separator or not old or not new or "\0" in argument:
            raise SettingError(f"corpus root {argument!r} is not OLD=NEW")
        old, new = str(parse_location(old)), str(parse_location(new))
        if roots.setdefault(old, new) != new:
            raise SettingError(f"corpus root {old} leads to {roots[old]} and to {new}: give one")
    return roots
