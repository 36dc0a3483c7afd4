"""Values as corpora write them: Unicode, missing values, JSON, and types in words."""

import json
from collections.abc import Callable
from typing import cast


def is_unicode(text: str) -> bool:
    """Return whether a text is valid Unicode: it has no surrogate, of a JSON escape or of bad bytes."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def is_missing(value: object) -> bool:
    """Return whether a value is null, or NaN, which pandas writes in its place."""
    return value is None or (isinstance(value, float) and value != value)


def name_type(value: object) -> str:
    """Return the type of a value in words, for a message."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
        case dict():
            return "an object"
        case _:
            return f"a {type(value).__name__}"


def parse_json(
    text: str, on_object: Callable[[list[tuple[str, object]]], object] | None = None
) -> object:
    """Return the value of a JSON text.

    Args:
        text: one JSON value.
        on_object: makes a value of the pairs of each object; None makes a dict.

    Raises:
        ValueError: the message is a reason.
    """
    try:
        return cast(object, json.loads(text, object_pairs_hook=on_object))
    except RecursionError:
        raise ValueError("malformed JSON (nested too deeply)") from None
    except json.JSONDecodeError as error:
        message = error.msg[:1].lower() + error.msg[1:]
        at = f"line {error.lineno} " if "\n" in text else ""
        raise ValueError(f"malformed JSON ({message} at {at}column {error.colno})") from None
    except ValueError:  # a number of more digits than Python converts
        raise ValueError("malformed JSON (a number is too long)") from None
