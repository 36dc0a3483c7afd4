"""Cleaning captions, their languages and kinds, and names as corpora write them.

A caption value is a text, a list of texts, an object ``{"text": ..., "lang": ..., "kind": ...}``, a list of
such objects, an object of lists ``{"text": [...], "lang": [...]}``, or an object keyed by language:
``{"de": "ein Hund", "en": ["a dog", "the dog"]}``.
A conversation, ``[{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]``, gives what the model
says. A list or an object may be written into a text, as JSON or as Python or numpy prints it.
Bad content raises no error here: what cannot be used is returned as a reason.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, time
from decimal import Decimal
from math import isfinite
from typing import Literal, cast
from uuid import UUID

from ..samples import Caption
from ..text import is_missing, is_unicode, name_type
from .caption_columns import CaptionColumn
from .caption_lists import UnreadList, read_written
from .languages import IDENTIFIER_LIKE, is_language_tag

_TEXT_NAMES = ("text", "caption", "raw")  # raw: the Karpathy COCO and Flickr30k files
_TAG_NAMES: dict["_Tag", tuple[str, ...]] = {
    "lang": ("lang", "language"),
    "kind": ("kind", "caption_kind"),
}
"""Names in an object of what it says of its text."""

_NO_WORDS = frozenset(("true", "false", "none", "null", "nan", "n/a"))
_SPEAKERS = frozenset(("gpt", "assistant", "model", "chatgpt", "bot", "bard", "gemini"))
_SPOKEN = (("from", "value"), ("role", "content"))  # LLaVA's and ShareGPT's; OpenAI's
_IMAGE_TOKEN = re.compile(r"</?(?:image|img|im_start|im_end|im_patch)(?:_[0-9]+)?>")
_MAX_DEPTH = 3  # {lang: [{text: ...}]}; no known corpus nests captions deeper

_NUMBER = re.compile(r"[0-9.]+e[-+]?[0-9]+", re.IGNORECASE)
_MAX_NAME = 4096
"""Characters of a key or label; a longer value is another column, or damaged."""

_Tag = Literal["lang", "kind"]
_TAG_WORDS: dict[_Tag, str] = {"lang": "language", "kind": "kind"}


@dataclass(frozen=True, slots=True)
class _Item:
    text: str | None
    """None: null, kept so that lists stay aligned."""

    lang: str | None = None
    kind: str | None = None


@dataclass(frozen=True, slots=True)
class CaptionValue:
    """What a row says under one name."""

    value: object
    lang: str | None = None
    """Language in the name."""

    kind: str | None = None
    """Kind that the user gave the name."""


def clean_captions(
    fields: Sequence[CaptionValue], lang: object = None, kind: object = None
) -> tuple[tuple[Caption, ...], list[str]]:
    """Return the usable captions of one sample in order, each once, and reasons for the others.

    Args:
        fields: caption values.
        lang: language of the captions without one of their own: a text for all of them, or a list as long
            as those captions. A list of another length gives a reason, and the captions keep no language,
            because a guess could pair every text with a wrong one.
        kind: the same of their kinds.
    """
    reasons: list[str] = []
    items: list[_Item] = []
    for each in fields:
        items.extend(_items(each.value, _Item(None, each.lang, each.kind), reasons))
    items = _tagged(_tagged(items, "lang", lang, reasons), "kind", kind, reasons)
    captions = (Caption(each.text, each.lang, each.kind) for each in items if each.text)
    return tuple(dict.fromkeys(captions)), list(dict.fromkeys(reasons))


def clean_name(value: object, what: str) -> str | None:
    """Return a key or label as stripped text; None for a missing value.

    Numbers become digits, also whole floats, because pandas writes integers beside a missing one as ``12.0``.
    UUIDs, decimals, dates and times become their usual text, bytes that are no text hexadecimal digits, and
    16 such bytes a UUID.

    Raises:
        ValueError: the value is not a name, or too long; the message is a reason that starts with
            ``what``.
    """
    if is_missing(value):
        return None
    text = clean_text(_usual_text(value), what)
    if len(text) > _MAX_NAME:
        raise ValueError(
            f"{what} has {len(text):,} characters, expected {_MAX_NAME:,} at most: {text[:40]!r}..."
        )
    return text or None


def _usual_text(value: object) -> object:
    """Return the usual text of a number, UUID, date, ...; any other value unchanged."""
    match value:
        case bool():
            return value
        case int() | UUID():
            return str(value)
        case float() if isfinite(value):
            return str(int(value)) if value.is_integer() else repr(value)
        case Decimal():
            return format(value, "f")
        case date() | time():  # a datetime is a date
            return value.isoformat()
        case bytes():
            text = value.decode("utf-8", "replace")
            if text.strip().isprintable() and "\ufffd" not in text:
                return text
            return str(UUID(bytes=value)) if len(value) == 16 else value.hex()
        case _:
            return value


def clean_text(value: object, what: str) -> str:
    """Return a text stripped, possibly empty.

    Raises:
        ValueError: the value is not text, or not valid Unicode.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if isinstance(value, UnreadList):
        raise ValueError(f"{what} is {value.reason}")
    if not isinstance(value, str):
        raise ValueError(f"{what} is {name_type(value)}, expected text")
    text = value.strip()
    if not is_unicode(text):
        shown = repr(text if len(text) <= 40 else text[:40] + "...")
        raise ValueError(f"{what} is not valid Unicode text: {shown}")
    return text


def caption_fields(
    values: Mapping[str, object], columns: Sequence[CaptionColumn]
) -> list[CaptionValue]:
    """Return the caption values of a row, or of an object, for clean_captions."""
    found = [(column, read_written(values[column.name])) for column in columns]
    return [
        CaptionValue(_keep_worded(value, column.min_words), column.lang, column.kind)
        for column, value in found
    ]


def _keep_worded(value: object, least: int) -> object:
    """Return a value without texts of fewer words and without numbers."""
    if least == 0:
        return value
    if isinstance(value, list):
        return [_keep_worded(each, least) for each in cast(list[object], value)]
    if isinstance(value, str):
        return value if has_words(value, least) else None
    return None if isinstance(value, bool | int | float) else value


def has_letters(text: str) -> bool:
    """Return whether a text has a letter of any script outside of its numbers (``1e-05``)."""
    return any(map(str.isalpha, _NUMBER.sub("", text)))


def has_words(text: str, least: int = 1) -> bool:
    """Return whether a text has this many words and is no number, identifier, file name or URL."""
    words = text.split()
    if len(words) < least or text.strip().casefold() in _NO_WORDS:
        return False
    if len(words) == 1 and text.isascii():
        return (
            "://" not in text and not any(c.isdigit() for c in text) and any(map(str.isalpha, text))
        )
    return any(map(str.isalpha, text))


def _items(value: object, tags: _Item, reasons: list[str], depth: int = 0) -> Iterator[_Item]:
    """Yield the captions of a value, with the language and kind of ``tags`` where it says none."""
    if is_missing(value):
        yield tags
    elif (spoken := _spoken(value)) is not None:
        for text in spoken:
            yield from _items(text, tags, reasons, depth + 1)
    elif isinstance(value, list) and depth < _MAX_DEPTH:
        for entry in cast(list[object], value):
            yield from _items(entry, tags, reasons, depth + 1)
    elif isinstance(value, dict) and depth < _MAX_DEPTH:
        yield from _items_of_object(cast(dict[str, object], value), tags, reasons, depth)
    else:
        try:
            yield replace(tags, text=clean_text(cast(object, value), "a caption"))
        except ValueError as error:
            reasons.append(str(error))
            yield tags


def _spoken(value: object) -> list[object] | None:
    """Return what the model says in a conversation, without tokens of images; None for anything else."""
    turns = cast(list[object], value) if isinstance(value, list) else []
    for speaker, content in _SPOKEN:
        if turns and all(isinstance(t, dict) and speaker in t and content in t for t in turns):
            said = [
                t[content]
                for t in cast(list[dict[str, object]], turns)
                if str(t[speaker]).lower() in _SPEAKERS
            ]
            return [_IMAGE_TOKEN.sub("", text) if isinstance(text, str) else text for text in said]
    return None


def _items_of_object(
    entry: Mapping[str, object], tags: _Item, reasons: list[str], depth: int
) -> Iterator[_Item]:
    text_name = next((name for name in _TEXT_NAMES if name in entry), None)
    if text_name is not None:
        own: dict[_Tag, object] = {
            tag: next((entry[name] for name in names if name in entry), None)
            for tag, names in _TAG_NAMES.items()
        }
        # datasets' Sequence of objects is one object of lists: its tags are told apart below.
        single: dict[str, str] = {
            tag: found
            for tag, value in own.items()
            if not isinstance(value, list) and (found := _clean_tag(tag, value, reasons))
        }
        listed: list[_Tag] = [tag for tag, value in own.items() if isinstance(value, list)]
        tags = replace(tags, **single, **dict.fromkeys(map(str, listed)))
        items = list(_items(entry[text_name], tags, reasons, depth + 1))
        for tag in listed:
            items = _tagged(items, tag, own[tag], reasons)
        yield from items
        return
    for name, value in entry.items():
        if is_language_tag(name):
            if name.lower() in IDENTIFIER_LIKE and not _keep_worded(value, 2):
                continue  # the number of something, not Indonesian
            if not is_missing(value):  # a Parquet struct has every language in every row
                yield from _items(value, replace(tags, lang=name), reasons, depth + 1)
        else:
            shown = repr(name if len(name) <= 40 else name[:40] + "...")
            reasons.append(
                f"a caption object has the name {shown}; expected text and lang, or language codes"
            )


def _tagged(items: list[_Item], tag: _Tag, value: object, reasons: list[str]) -> list[_Item]:
    """Return captions with a tag where they have none: one for all, or one for each of these."""
    is_open = [getattr(item, tag) is None for item in items]
    if not isinstance(value, list):
        found = _clean_tag(tag, value, reasons)
        if found is None:
            return items
        rest: Iterator[str | None] = itertools.repeat(found)
    else:
        values = cast(list[object], value)
        if len(values) != sum(is_open):
            word = _TAG_WORDS[tag]
            reasons.append(
                f"{sum(is_open)} captions but {len(values)} {word}s; "
                f"the captions are kept without {word}"
            )
            return items
        rest = (_clean_tag(tag, each, reasons) for each in values)
    return [
        replace(item, **{tag: next(rest)}) if is_free else item
        for item, is_free in zip(items, is_open, strict=True)
    ]


def _clean_tag(tag: _Tag, value: object, reasons: list[str]) -> str | None:
    if is_missing(value):
        return None
    try:
        return clean_text(value, f"a {_TAG_WORDS[tag]}") or None
    except ValueError as error:
        reasons.append(str(error))
        return None
