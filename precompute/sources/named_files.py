"""Files that the rows of a table name, also where they are spelled differently on disk."""

import contextlib
import unicodedata
from collections.abc import Iterator

from ...store.io.location import Location
from .listing import SizeAndTime, is_remote, path_below, size_and_time

NamedFile = tuple[str, SizeAndTime]
"""Path relative to the root of the source, and size and time."""


def find_named(root: Location, path: str) -> NamedFile:
    """Return a file that a row names, with its path as it is on disk.

    A path without a file is tried with ``/`` in place of backslashes, and with its accents in the composed
    and in the decomposed Unicode form. It is unchanged if there is no such file either, and in an object
    store, where each trial is a request.

    Args:
        root: of the source.
        path: from path_below.
    """
    prefix = f"{root}/"
    facts = size_and_time(prefix + path)
    if facts[0] is None and not is_remote(prefix):
        for other in _other_spellings(root, path):
            found = size_and_time(prefix + other)
            if found[0] is not None:
                return other, found
    return path, facts


def composed(path: str) -> str:
    """Return a path in the composed Unicode form (NFC)."""
    return path if path.isascii() else unicodedata.normalize("NFC", path)


def with_slashes(path: str) -> str:
    """Return a path with forward slashes in place of the backslashes of Windows."""
    return path.replace("\\", "/")


def _other_spellings(root: Location, path: str) -> Iterator[str]:
    spellings = [path]
    if "\\" in path:
        with contextlib.suppress(ValueError):  # it names no file
            spellings.append(path_below(root, with_slashes(path)))
    for each in tuple(spellings):
        if not each.isascii():
            spellings += [composed(each), unicodedata.normalize("NFD", each)]
    yield from (each for each in dict.fromkeys(spellings) if each != path)
