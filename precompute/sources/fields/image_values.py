"""What stands in a table's column of images: a path, an object or a list around one, or base64 text."""

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
    """An image that stands in the table itself."""

    text: str
    """In base64, without what a ``data:`` URL has before it."""

    name: str | None = None
    """Path that the row gives beside it."""


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
        if isinstance(data, str) and (text := _base64_text(data)) is not None:
            return Base64Image(text, path if isinstance(path, str) else None)
        if is_missing(path) and not is_missing(data):
            raise ValueError("the image stands in the table as bytes that are no base64 text")
        return path if path is not None or _BYTES_NAME in entry else value
    if isinstance(value, str) and (text := _base64_text(value)) is not None:
        return Base64Image(text)
    return value


def _base64_text(text: str) -> str | None:
    """Return the base64 text of an image; None for any other text."""
    if text.startswith("data:image/"):
        head, _, text = text.partition(",")
        return text if head.endswith(";base64") else None
    head = text[:_HEAD_CHARACTERS]
    return text if head.isascii() and is_base64_image(head.encode()) else None
