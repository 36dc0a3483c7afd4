"""The texts whose tokens a smaller vocabulary keeps: those of a cache, of a file, or words of languages."""

import importlib
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...errors import SettingError
from ...store.cache import open_cache
from ...store.io.location import given_location, is_url

_LANGUAGES = re.compile(r"[a-z]{2,3}(,[a-z]{2,3})*")
_NUM_WORDS = 50_000
"""Most frequent words of a language: in English, rarer ones occur less than twice in ten million words."""

Texts = Callable[[], Iterator[str]]


def vocabulary_texts(given: str) -> Texts:
    """Return a function that yields the texts of a cache, the lines of a file, or words of languages.

    Args:
        given: folder or URL of a cache, path of a UTF-8 text file, or codes such as ``de,en``.

    Raises:
        SettingError: there is no such file or language, or the package wordfreq is missing.
        NotACacheError: it is another folder.
    """
    path = Path(given).expanduser()
    if not is_url(given) and path.is_file():
        return lambda: _lines(path)
    if _LANGUAGES.fullmatch(given) and not path.exists():
        return _words(given.split(","))
    cache = open_cache(given_location(given))

    def texts() -> Iterator[str]:
        for batch in cache.texts().select("text").collect_batches(chunk_size=100_000):
            yield from batch["text"].to_list()

    return texts


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line in file:
                yield line.rstrip("\n")
    except UnicodeDecodeError:
        raise SettingError(f"vocabulary {path} is no UTF-8 text; write one text a line") from None


def _words(languages: list[str]) -> Texts:
    try:
        wordfreq: Any = importlib.import_module("wordfreq")
    except ImportError:
        raise SettingError(
            f"vocabulary {','.join(languages)} needs the package wordfreq, which is not installed: pip "
            "install 'siglip2-cache[languages]'; or name a cache or a text file"
        ) from None
    known: list[str] = sorted(wordfreq.available_languages())
    for language in languages:
        if language not in known:
            raise SettingError(
                f"vocabulary has no words of {language!r}; there are those of {', '.join(known)}; for "
                "another language name a cache or a text file"
            )

    def texts() -> Iterator[str]:
        yield from _marks()
        for language in languages:
            for word in wordfreq.top_n_list(language, _NUM_WORDS):
                yield f"{word} {word}"  # at the start of a text and after a space: other tokens

    return texts


def _marks() -> Iterator[str]:
    """Yield digits and punctuation of all scripts, which lists of words leave out."""
    for code in range(0x10000):
        if unicodedata.category(chr(code))[0] in "NP":
            yield f"{chr(code)} {chr(code)}"
