"""What several commands have in common: options, and how results are printed."""

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


def path(text: str) -> str:
    """Return a path, URL or hub id with ``~`` as the home folder, where no shell has expanded it.

    ``NAME=PATH`` is expanded behind its first ``=``, too.
    """
    name, separator, rest = text.partition("=")
    if separator and rest.startswith("~"):
        return f"{name}={os.path.expanduser(rest)}"
    return os.path.expanduser(text)


def local_path(given: str | Path) -> Path:
    """Return a path of this machine, ``~`` the home folder. A default may be a path already."""
    return Path(path(str(given)))


def path_option(*, help: str, metavar: str = "PATH") -> Any:
    """Return an option whose value, or each of them, is a path, a URL or a hub id: a text."""
    return typer.Option(parser=path, metavar=metavar, help=help)


def local_path_option(*, help: str, metavar: str = "PATH") -> Any:
    """Return an option whose value, or each of them, is a Path of this machine."""
    return typer.Option(parser=local_path, metavar=metavar, help=help)


def path_argument(metavar: str, *, help: str) -> Any:
    """Return an argument of that kind."""
    return typer.Argument(parser=path, metavar=metavar, help=help)


CacheArgument = Annotated[
    str,
    path_argument(
        "CACHE", help="Cache folder, the one that holds cache.json; or its URL, s3://..."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
CorpusRoot = Annotated[
    list[str] | None,
    path_option(metavar="OLD=NEW", help="The corpus has moved from OLD to NEW. Repeatable."),
]
Device = Annotated[str, typer.Option(help="auto (cuda, mps, cpu), or a device such as cuda:1.")]
TeacherName = Annotated[
    str | None, typer.Option(help="Teacher in the cache, where there are several.")
]
View = Annotated[int, typer.Option(help="View of the images. 0: the whole image.")]


def say(line: str, *, err: bool = False) -> None:
    """Print one line of at most 300 characters."""
    # Not typer.echo, which writes UTF-8 to a terminal that says it is ASCII.
    if err:
        say_on_stderr(line)
    else:
        print(short_line(line), flush=True)


def print_json(found: Any) -> None:
    """Print a JSON value, whole; where stdout cannot take every character, in ASCII."""
    is_unicode = (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    print(plain_json(json.dumps(found, indent=1, ensure_ascii=not is_unicode)), flush=True)


def print_found(found: dict[str, Any], lines: list[str], as_json: bool) -> None:
    """Print what a command found: as JSON, or its lines."""
    if as_json:
        print_json(found)
    else:
        for line in lines:
            say(line)


def given_location(text: str) -> "Location":
    """Return a path as it was given, relative or not, or what a URL names."""
    from ..store.io import location as locations

    return locations.given_location(text)


def parse_roots(arguments: list[str] | None) -> dict[str, str]:
    """Return the OLD=NEW arguments of --corpus-root."""
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
