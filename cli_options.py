"""What several commands have in common: options, and how results are printed."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import SettingError, one_line, plain_json

if TYPE_CHECKING:
    from .store.locations import Location

CacheArgument = Annotated[
    str,
    typer.Argument(
        metavar="CACHE", help="Cache folder, the one that holds cache.json; or its URL, s3://..."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
CorpusRoot = Annotated[
    list[str] | None,
    typer.Option(help="OLD=NEW: the corpus has moved from OLD to NEW. Repeatable."),
]
Device = Annotated[str, typer.Option(help="auto (cuda, mps, cpu), or a device such as cuda:1.")]
TeacherName = Annotated[
    str | None, typer.Option(help="Teacher in the cache, where there are several.")
]
View = Annotated[int, typer.Option(help="View of the images. 0: the whole image.")]


def print_found(found: dict[str, Any], lines: list[str], as_json: bool) -> None:
    """Print what a command found: as JSON, or its lines."""
    if as_json:
        typer.echo(plain_json(json.dumps(found, indent=1, ensure_ascii=False)))
    else:
        for line in lines:
            typer.echo(one_line(line))


def given_location(text: str) -> "Location":
    """Return a path as it was given, relative or not, or what a URL names."""
    from .store.locations import is_url, parse_location

    return parse_location(text) if is_url(text) else Path(text)


def parse_roots(arguments: list[str] | None) -> dict[str, str]:
    """Return the OLD=NEW arguments of --corpus-root."""
    if not arguments:
        return {}
    from .store.locations import parse_location

    roots: dict[str, str] = {}
    for argument in arguments:
        old, separator, new = argument.partition("=")
        if not separator or not old or not new or "\0" in argument:
            raise SettingError(f"corpus root {argument!r} is not OLD=NEW")
        roots[str(parse_location(old))] = str(parse_location(new))
    return roots
