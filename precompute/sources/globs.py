"""Several files named at once: ``shards/*.tar``, ``shards/{000..123}.tar``, a folder of shards."""

import fnmatch
import glob
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from upath import UPath

from ...errors import SourceError
from ...store.io.location import Location, parse_location
from ...store.io.requests import is_folder
from .listing import as_location, exists, is_remote, scan_folder

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")
_MAX_FILES = 1_000_000
"""Limit for typos: {000..999999999}, or {0..9} ten times, would fill the memory with names."""


def is_pattern(location: Location) -> bool:
    """Return whether a location is a pattern: it has wildcards or braces and does not exist by that name.

    A URL with wildcards or braces always is one; the store is not asked.
    """
    text = str(location)
    looks_so = any(character in text for character in "*?[{")
    return looks_so and (isinstance(location, UPath) or not location.exists())


def matches_any(location: Location) -> bool:
    """Return whether a file or folder exists, or any file that matches a pattern."""
    if not is_pattern(location):
        return exists(str(location))
    names = itertools.chain.from_iterable(map(_matches, _expand_braces(str(location))))
    return any(map(exists, names))


def expand(location: Location) -> list[Location]:
    """Return the files of a pattern, each once: braces in the order written, globs sorted by name.

    A name from braces is returned even if it does not exist, so that a missing shard is reported.
    ``{000..123}`` counts with the digits as written, ``{a,b}`` lists alternatives.

    Raises:
        SourceError: nothing matches a glob, or braces give too many names.
    """
    found: dict[Location, None] = {}
    _refuse_too_many(str(location))
    for name in _expand_braces(str(location)):
        files = sorted(_matches(name))
        if not files:
            raise SourceError(f"no file matches {name}")
        found.update((as_location(file), None) for file in files)
    return list(found)


def root_of(location: Location) -> Location:
    """Return the folder to which the paths of the files at a location are relative."""
    if is_pattern(location):
        return pattern_root(location)
    return location if is_folder(location) else location.parent


def pattern_root(location: Location) -> Location:
    """Return the folder above the first part of a path that is a pattern."""
    if isinstance(location, UPath):
        head, _, _ = re.split(r"[*?\[{]", str(location), maxsplit=1)[0].rpartition("/")
        return parse_location(head)
    parts = location.parts
    first = next((i for i, part in enumerate(parts) if set(part) & set("*?[{")), len(parts) - 1)
    return Path(*parts[:first])


def _matches(name: str) -> Iterator[str]:
    if not any(character in name for character in "*?["):
        return iter([name])
    if is_remote(name):
        protocol, _, rest = name.partition("://")
        bucket, *parts = rest.split("/")
        return _objects(f"{protocol}://{bucket}", parts)
    return glob.iglob(name, recursive=True)


def _objects(folder: str, parts: Sequence[str]) -> Iterator[str]:
    """Yield the matching objects below a folder, as glob would; lists only folders that are needed."""
    part, *rest = parts
    if part == "**":
        if rest:
            yield from _objects(folder, rest)
    elif not any(character in part for character in "*?["):
        path = f"{folder}/{part}"
        if rest:
            yield from _objects(path, rest)
        elif exists(path):
            yield path
        return
    try:
        with scan_folder(folder) as entries:
            for entry in entries:
                is_hidden = entry.name.startswith(".") and not part.startswith(".")
                if is_hidden or not (part == "**" or fnmatch.fnmatchcase(entry.name, part)):
                    continue
                if part == "**" and entry.is_dir():
                    yield from _objects(entry.path, parts)
                elif part != "**" and rest and entry.is_dir():
                    yield from _objects(entry.path, rest)
                elif not rest:
                    yield entry.path
    except FileNotFoundError:
        return


def _refuse_too_many(text: str) -> None:
    num_names = 1
    for braces in _BRACES.finditer(text):
        counted = _RANGE.fullmatch(braces[1])
        num_names *= (
            max(1, int(counted[2]) - int(counted[1]) + 1) if counted else braces[1].count(",") + 1
        )
        if num_names > _MAX_FILES:
            raise SourceError(f"{text} names more than {_MAX_FILES:,} files; write fewer braces")


def _expand_braces(text: str) -> Iterator[str]:
    found = _BRACES.search(text)
    if found is None:
        yield text
        return
    for choice in _choices(text, found[1]):
        yield from _expand_braces(text[: found.start()] + choice + text[found.end() :])


def _choices(text: str, inside: str) -> Iterator[str]:
    counted = _RANGE.fullmatch(inside)
    if counted is None:
        return iter(inside.split(","))
    first, last = int(counted[1]), int(counted[2])
    if last < first:
        raise SourceError(f"{text} counts from {first} to {last}; write the smaller number first")
    digits = len(counted[1])
    return (f"{i:0{digits}d}" for i in range(first, last + 1))
