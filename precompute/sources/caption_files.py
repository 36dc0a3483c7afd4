"""The caption file beside an image: ``dog.json`` or ``dog.txt`` for ``dog.jpg``."""

import codecs
from dataclasses import dataclass
from typing import cast

from .base import Caption, Problem
from .captions import clean_captions, clean_name, is_unicode
from .columns import CAPTION_NAMES, TableColumns, find_columns, show_names
from .paths import printable
from .rows import parse_json

_MAX_BYTES = 1 << 24  # the file is read whole
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True, slots=True)
class CaptionFile:
    """What a caption file says, as far as it can be used."""

    captions: tuple[Caption, ...] = ()
    label: str | None = None
    problems: tuple[Problem, ...] = ()


def read_caption_file(path: str, key: str) -> CaptionFile:
    """The captions and label in the file; whatever is wrong with it comes back as problems.

    A ``.txt`` holds one caption a line. A ``.json`` holds a caption value (see captions.py), or an
    object with the usual names of a table's columns: caption, captions, text, lang, label, ...
    """
    place = printable(path)
    try:
        text = _read_text(path)
        if path.lower().endswith(".json"):
            captions, label, reasons = _from_json(text)
            problems = [Problem(place=place, reason=reason, key=key) for reason in reasons]
        else:
            label = None
            captions, bad_lines = _from_lines(text)
            problems = [
                Problem(place=f"{place} line {number}", reason="not UTF-8", key=key)
                for number in bad_lines
            ]
    except ValueError as error:
        return CaptionFile(problems=(Problem(place=place, reason=str(error), key=key),))
    return CaptionFile(captions, label, tuple(problems))


def _read_text(path: str) -> str:
    """The text, with bytes that are not UTF-8 as surrogates.

    Raises:
        ValueError: it cannot be read, or is no text; the message is a reason.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"the caption file cannot be read ({error.strerror})") from error
    if len(data) > _MAX_BYTES:
        raise ValueError(f"the caption file is larger than {_MAX_BYTES:,} bytes")
    if data.startswith(_UTF16) or b"\0" in data:
        raise ValueError("not UTF-8 (it looks like UTF-16); save it as UTF-8")
    return data.decode("utf-8-sig", "surrogateescape")


def _from_lines(text: str) -> tuple[tuple[Caption, ...], list[int]]:
    """The captions, and the numbers of the lines that are not UTF-8."""
    # Not splitlines(): it also splits at characters that stand inside captions, such as U+2028.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    bad = [number for number, line in enumerate(lines, 1) if not is_unicode(line)]
    captions, _ = clean_captions([(line, None) for line in lines if is_unicode(line)])
    return captions, bad


def _from_json(text: str) -> tuple[tuple[Caption, ...], str | None, list[str]]:
    """Captions, label and what is wrong."""
    if not is_unicode(text):
        raise ValueError("not UTF-8; save it as UTF-8")
    value = parse_json(text)
    if not isinstance(value, dict):
        captions, reasons = clean_captions([(value, None)])
        return captions, None, reasons
    entry = cast(dict[str, object], value)
    found = find_columns(tuple(entry), TableColumns())
    if not found.captions and found.label is None:
        # {"de": "ein Hund", "en": "a dog"}: a caption value in itself, or something else entirely
        captions, reasons = clean_captions([(entry, None)])
        if reasons:
            reasons = [
                f"no caption among {show_names(list(entry))}; "
                f"expected {', '.join(CAPTION_NAMES)}, a label, or language codes"
            ]
        return captions, None, reasons
    captions, reasons = clean_captions(
        [(entry[name], lang) for name, lang in found.captions],
        entry[found.lang] if found.lang is not None else None,
    )
    label = None
    if found.label is not None:
        try:
            label = clean_name(entry[found.label], "the label")
        except ValueError as error:
            reasons = [str(error), *reasons]
    return captions, label, reasons
