"""Values in a column of images of a table: a path, an object or list with one, or base64 text."""

from dataclasses import dataclass
from typing import cast

from ....images.base64_text import is_base64_image
from ..text import is_missing

PATH_NAMES = ("path", "file_name", "filename", "file")
"""Names that the path of an image has inside an object."""

_BYTES_NAME = "bytes"
_HEAD_CHARACTERS = 512


@dataclass(frozen=True, slots=True)
class Base64Image:
    """An image inside a text table."""

    text: str
    """Its base64 text, without the head of a ``data:`` URL."""

    name: str | None = None
    """Path beside it."""


def read_image_value(value: object) -> object:
    """Return the path that a value is or holds, or a Base64Image; null where it names no image.

    Raises:
        ValueError: it names several images, or its bytes are no base64; the message is a reason.
    """
    if isinstance(value, list):
        items = cast(list[object], value)
        if len(items) > 1:
            raise ValueError(
                f"the row names {len(items):,} images, expected one; write a row for each"
            )
        value = items[0] if items else None
    if isinstance(value, dict):
        entry = cast(dict[str, object], value)
        path = next((entry[name] for name in PATH_NAMES if entry.get(name)), None)
        data = entry.get(_BYTES_NAME)
        if isinstance(data, str) and (text := base64_text(data)) is not None:
            return Base64Image(text, path if isinstance(path, str) else None)
        if is_missing(path) and not is_missing(data):
            raise ValueError("the bytes of the image are not base64 text")
        return path if path is not None or _BYTES_NAME in entry else value
    if isinstance(value, str) and (text := base64_text(value)) is not None:
        return Base64Image(text)
    return value


def base64_text(text: str) -> str | None:
    """Return the base64 text of an image; None for any other text."""
    if text.startswith("data:image/"):
        head, _, text = text.partition(",")
        return text if head.endswith(";base64") else None
    head = text[:_HEAD_CHARACTERS]
    return text if head.isascii() and is_base64_image(head.encode()) else None
