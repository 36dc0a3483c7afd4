"""What a caption file beside an image holds: ``dog.json`` or ``dog.txt`` for ``dog.jpg``."""

import codecs
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from ..listing import read_path
from ..samples import Caption
from ..text import is_unicode, parse_json
from .caption_columns import CAPTION_NAMES, is_fallback
from .captions import CaptionValue, caption_fields, clean_captions, clean_name
from .columns import TableColumns, find_columns, show_names

MAX_TEXT_BYTES = 1 << 24
"""Largest caption file; it is read whole."""

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True, slots=True)
class CaptionJson:
    """What a JSON text says about an image."""

    captions: tuple[Caption, ...] = ()
    label: str | None = None
    reasons: tuple[str, ...] = ()
    """What is wrong with it."""

    entry: Mapping[str, object] = field(default_factory=dict[str, object])
    """The whole object; empty if the text is another value."""

    is_sure: bool = True
    """False if its captions have names that are captions only if nothing better exists."""

    is_foreign: bool = False
    """It is an object without captions and without a label, as the only reason says."""


def decode_text(data: bytes) -> str:
    """Return the text; bytes that are not UTF-8 become surrogates.

    Raises:
        ValueError: it is no text; the message is a reason.
    """
    if data.startswith(_UTF16) or _looks_like_utf16(data):
        raise ValueError("not UTF-8 (it looks like UTF-16); save it as UTF-8")
    return data.decode("utf-8-sig", "surrogateescape")


def _looks_like_utf16(data: bytes) -> bool:
    """Return whether half of the bytes at even, or at odd, positions are zero, as in western text in UTF-16.

    A single NUL is an ordinary character.
    """
    if b"\0" not in data or len(data) % 2:
        return False
    return max(data[0::2].count(0), data[1::2].count(0)) * 4 >= len(data)


def read_bytes(path: str) -> bytes:
    """Return the contents of a caption file.

    Raises:
        ValueError: it cannot be read, or is too large; the message is a reason.
    """
    try:
        data = read_path(path, MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise ValueError(f"the caption file cannot be read ({error.strerror})") from error
    if len(data) > MAX_TEXT_BYTES:
        raise ValueError(f"the caption file is larger than {MAX_TEXT_BYTES:,} bytes")
    return data


def caption_lines(text: str) -> tuple[tuple[Caption, ...], list[int]]:
    """Return the captions of a text, one a line, and the numbers of the lines that are not UTF-8."""
    # Not splitlines(), which also splits at characters inside captions, such as U+2028.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    bad = [number for number, line in enumerate(lines, 1) if not is_unicode(line)]
    captions, _ = clean_captions([CaptionValue(line) for line in lines if is_unicode(line)])
    return captions, bad


def parse_caption_json(text: str, columns: TableColumns) -> CaptionJson:
    """Return what a JSON text says of its image, under the usual names or those that the user chose.

    Raises:
        ValueError: it is not JSON; the message is a reason.
    """
    if not is_unicode(text):
        raise ValueError("not UTF-8; save it as UTF-8")
    value = parse_json(text)
    if not isinstance(value, dict):
        captions, reasons = clean_captions([CaptionValue(value)])
        return CaptionJson(captions, reasons=tuple(reasons))
    entry = cast(dict[str, object], value)
    found = find_columns(tuple(entry), columns)
    if not found.captions and found.label is None:
        # {"de": "ein Hund", "en": "a dog"}: captions by language, or something else
        captions, reasons = clean_captions([CaptionValue(entry)])
        if reasons:
            expected = ", ".join(CAPTION_NAMES if columns.captions is None else columns.captions)
            reasons = [
                f"no caption among {show_names(list(entry))}; "
                f"expected {expected}, a label, or language codes"
            ]
        return CaptionJson(captions, None, tuple(reasons), entry, is_foreign=bool(reasons))
    captions, reasons = clean_captions(
        caption_fields(entry, found.captions),
        *(None if name is None else entry[name] for name in (found.lang, found.kind)),
    )
    label = None
    if found.label is not None:
        try:
            label = clean_name(entry[found.label], "the label")
        except ValueError as error:
            reasons = [str(error), *reasons]
    is_sure = columns.captions is not None or not all(is_fallback(c.name) for c in found.captions)
    return CaptionJson(captions, label, tuple(reasons), entry, is_sure=is_sure)
