"""Parameters and output that several commands share."""

import json
import os
import sys
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


def path_option(*, help: str, metavar: str = "PATH", **settings: Any) -> Any:
    """Return an option whose value, or each of them, is a path, URL or hub id, as text."""
    return typer.Option(parser=path, metavar=metavar, help=help, **settings)


def local_path_option(*, help: str, metavar: str = "PATH", **settings: Any) -> Any:
    """Return an option whose value, or each of them, is a Path of this machine."""
    return typer.Option(parser=local_path, metavar=metavar, help=help, **settings)


def path_argument(metavar: str, *, help: str) -> Any:
    """Return an argument that is a path, URL or hub id, as text."""
    return typer.Argument(parser=path, metavar=metavar, help=help)


CacheArgument = Annotated[
    str, path_argument("CACHE", help="Folder or URL of the cache (the one with cache.json).")
]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON value instead of text.", rich_help_panel=OUTPUT),
]
CorpusRoot = Annotated[
    list[str] | None,
    path_option(
        metavar="OLD=NEW",
        help="The corpus has moved from OLD to NEW. Repeatable.",
        rich_help_panel=CORPUS,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        help="auto (cuda, mps or cpu), or a device such as cuda:1.",
        rich_help_panel=HARDWARE,
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        metavar="DTYPE",
        help="float32, bfloat16, float16, or auto: bfloat16 on cuda, elsewhere as the checkpoint.",
        rich_help_panel=HARDWARE,
    ),
]
DecodeWorkers = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Processes that decode images; 0: none.",
        show_default="one per core, at most 16",
        rich_help_panel=HARDWARE,
    ),
]
TeacherName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Teacher in the cache. Required if it has several.",
        rich_help_panel=TEACHER,
    ),
]
View = Annotated[
    int,
    typer.Option(
        metavar="N", help="View of the images; 0 is the whole image.", rich_help_panel=TEACHER
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
