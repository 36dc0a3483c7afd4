"""Lists of captions written into a text, as JSON or as Python prints a list."""

import ast
import json
import re
from typing import cast

_MAX_CHARACTERS = 1 << 20
_NO_COMMA = re.compile(r"""['"]\s+['"]""")
"""Numpy prints no commas, so Python would read two such texts as one."""

_ODD_ESCAPE = re.compile(r"\\[^\\'\"abfnrtvxuU0-7]")
"""Escapes that Python warns about."""


def read_written(value: object) -> object:
    """Return the list or object of captions that a text holds; any other value unchanged."""
    if not isinstance(value, str) or len(value) > _MAX_CHARACTERS:
        return value
    text = value.strip()
    if not text.startswith(("[", "{")) or not text.endswith(("]", "}")):
        return value  # such as "[photo] a dog"
    found = _parse(text)
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
