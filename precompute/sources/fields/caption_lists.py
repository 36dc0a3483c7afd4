"""Lists of captions written into a text, as JSON, or as Python or numpy prints a list."""

import ast
import json
import re
from dataclasses import dataclass
from typing import cast

_MAX_CHARACTERS = 1 << 20
_NO_COMMA = re.compile(r"""['"]\s+['"]""")
"""Numpy prints no commas, so Python would read two such texts as one."""

_QUOTED = re.compile(r"""\[\s*['"].*['"]\s*\]""", re.DOTALL)
"""Begins and ends as a list of texts does."""

_ITEM = re.compile(r"""\s*('(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"|None|nan)(\s*,|\s+|(?=\]$))""")
"""An item of a printed list, and what separates it from the next."""

_ODD_ESCAPE = re.compile(r"\\[^\\'\"abfnrtvxuU0-7]")
"""Escapes that Python warns about."""


@dataclass(frozen=True, slots=True)
class UnreadList:
    """A list written into a text that cannot be read; its text is no caption."""

    reason: str


def read_written(value: object) -> object:
    """Return the list or object of captions that a text holds; any other value unchanged.

    A list that lacks commas and cannot be read is returned as an UnreadList.
    """
    if not isinstance(value, str) or len(value) > _MAX_CHARACTERS:
        return value
    text = value.strip()
    if not text.startswith(("[", "{")) or not text.endswith(("]", "}")):
        return value  # such as "[photo] a dog"
    found = _parse(text)
    if found is None:
        found = _parse_printed(text)
    if isinstance(found, UnreadList):
        return found
    if isinstance(found, list) and all(
        isinstance(each, str | dict) or each is None for each in cast(list[object], found)
    ):
        return cast(object, found)
    if isinstance(found, dict) and all(
        isinstance(each, str | list) or each is None
        for each in cast(dict[object, object], found).values()
    ):
        return cast(object, found)
    return value


def _parse(text: str) -> object:
    try:
        return cast(object, json.loads(text))
    except (ValueError, RecursionError):
        pass
    if not re.match(r"""\[\s*['"]""", text) or _NO_COMMA.search(text) or _ODD_ESCAPE.search(text):
        return None
    try:
        return cast(object, ast.literal_eval(text))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def _parse_printed(text: str) -> list[object] | UnreadList | None:
    """Return the texts of a printed list with or without commas; None for any other text."""
    if not text.startswith("["):
        return None
    items, separators = list[str](), list[str]()
    at = 1
    while (found := _ITEM.match(text, at)) is not None:
        items.append(found[1])
        separators.append(found[2].strip())
        at = found.end()
    is_whole = text[at:].strip() == "]" and len(set(separators[:-1])) <= 1
    has_texts = any(item not in ("None", "nan") for item in items)
    if is_whole and has_texts and not _ODD_ESCAPE.search(text):
        try:
            return [None if i in ("None", "nan") else ast.literal_eval(i) for i in items]
        except (ValueError, SyntaxError):  # such as \x without digits
            pass
    if not _QUOTED.fullmatch(text) or not _NO_COMMA.search(text):
        return None
    return UnreadList(
        f"a list that lacks commas and cannot be read; write it as JSON: {text[:40]!r}..."
    )
