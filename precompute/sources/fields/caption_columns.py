"""Which columns of a table, or fields of a .json, are captions, by their usual names."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from .languages import IDENTIFIER_LIKE, split_language

CAPTION_NAMES = ("caption", "captions", "text", "texts")
"""Captions wherever they exist, all of them, as are names with the word caption: ``blip_caption``,
``Caption Text``, ``caption_1``."""

FALLBACK_CAPTION_NAMES = (
    (
        *(
            "txt",
            "sentence",
            "sentences",
            "alt",
            "alt_text",
            "title",
            "description",
            "descriptions",
        ),
        "comment",
    ),
    ("conversations", "conversation", "messages"),
    ("prompt", "prompts"),
)
"""Captions only if no name before them exists; beside one they mean something else. All names of the first
tuple with an existing name are used."""

_FACTS = """
    id ids uid key url urls uri link links path file filename name hash md5 sha sha256 phash index idx
    num number count counts len length size width height score scores sim similarity prob probability
    confidence rank rating quality lang language languages locale source src origin type kind model
    version prompt author user worker annotator license status valid flag date time timestamp bbox box
    boxes embedding embeddings emb vector token tokens ids mask label labels category class tag tags split
    error meta metadata
"""
_FACTS_AFTER = frozenset(_FACTS.split())
"""Words after ``caption`` that make a name a fact about it: ``caption_url``, ``caption_1_score``."""

_FACTS_BEFORE = (
    "has",
    "have",
    "is",
    "num",
    "number",
    "n",
    "no",
    "non",
    "without",
    "with",
    "count",
)
"""Words before ``caption`` that make a name a fact: ``has_caption``, ``num_captions``."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+|[^\W\d_]+")


@dataclass(frozen=True, slots=True)
class CaptionColumn:
    """A column that holds captions."""

    name: str
    lang: str | None = None
    """Language at the end of its name."""

    kind: str | None = None
    """Kind that the user gave its captions."""

    min_words: int = 0
    """Words that a text needs to be a caption; 0: any text. A column recognised by a part of its name may
    hold numbers or identifiers instead."""


def caption_columns(names: Sequence[str]) -> tuple[CaptionColumn, ...]:
    """Return the columns of captions among these names."""
    found = _with_languages(names, _is_caption)
    if any(column.min_words < 2 for column in found):
        return found
    for usual in FALLBACK_CAPTION_NAMES:
        more = _with_languages(names, partial(_is_fallback, usual=usual))
        if more:
            return (*found, *more)
    return found


def is_fallback(name: str) -> bool:
    """Return whether a name means captions only where no better one exists, with or without a language."""
    parts = split_language(name.strip())
    bases = [base for usual in FALLBACK_CAPTION_NAMES for base in usual]
    return _is_one_of(name, bases) or (parts is not None and _is_one_of(parts[0], bases))


def is_fact(name: str) -> bool:
    """Return whether a name states a fact other than a caption: a URL, a score, an identifier."""
    return any(word.casefold() in _FACTS_AFTER for word in _WORD.findall(name))


def named_columns(named: Sequence[str], names: Sequence[str]) -> tuple[CaptionColumn, ...]:
    """Return the columns among these names that the user named, as NAME or NAME=KIND.

    A language at the end of a name is that of its captions.
    """
    parts = [(name, kind) for name, kind in map(split_kind, named) if name in names]
    return tuple(CaptionColumn(name, _language_of(name), kind) for name, kind in parts)


def split_kind(named: str) -> tuple[str, str | None]:
    """Return name and kind of NAME=KIND; None for NAME alone."""
    name, separator, kind = named.rpartition("=")
    return (name, kind.strip()) if separator else (named, None)


def squash(name: str) -> str:
    """Return a name without case, spaces, hyphens and underscores, to compare it."""
    return "".join(c for c in name.casefold() if c not in " -_\t")


def _is_one_of(name: str, usual: Sequence[str]) -> bool:
    return squash(name) in {squash(each) for each in usual}


def _with_languages(
    names: Sequence[str], rule: Callable[[str], int | None]
) -> tuple[CaptionColumn, ...]:
    """Return the columns that a rule accepts; it returns the least number of words, or None to reject."""
    found: list[CaptionColumn] = []
    for name in names:
        least = rule(name)
        parts = split_language(name.strip())
        if parts is not None and (of_base := rule(parts[0])) is not None:
            # caption_id is usually an identifier, rarely Indonesian: the values decide.
            is_odd = parts[1].lower() in IDENTIFIER_LIKE and ":" not in name
            found.append(CaptionColumn(name, parts[1], min_words=2 if is_odd else of_base))
        elif least is not None:
            found.append(CaptionColumn(name, min_words=least))
    return tuple(found)


def _is_fallback(name: str, *, usual: Sequence[str]) -> int | None:
    return 1 if _is_one_of(name, usual) else None


def _is_caption(name: str) -> int | None:
    if _is_one_of(name, CAPTION_NAMES):
        return 0
    words = [word.casefold() for word in _WORD.findall(name)]
    if not words:
        return None
    if words[-1] in ("caption", "captions"):
        return None if any(word in _FACTS_BEFORE for word in words) else 1
    if words[0] in ("caption", "captions"):
        return None if any(word in _FACTS_AFTER for word in words) else 1
    return None


def _language_of(name: str) -> str | None:
    parts = split_language(name)
    return parts[1] if parts is not None else None
