"""Text settings of a checkpoint: which tokenizer file it has, how texts are cleaned and padded."""

import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from ..errors import CheckpointError
from .files import read_json

_LOWERCASE = "tokenizers.normalizers.Lowercase"
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True)
class TextSettings:
    """How a checkpoint prepares texts before its tokenizer."""

    file: str
    """tokenizer.json where there is one, else spiece.model."""

    is_siglip1: bool
    lower: bool
    pad_token: str

    @property
    def cleaning(self) -> str:
        """Text cleaning before the tokenizer's own, as recorded in the identity."""
        return _cleaning_name(lower=self.lower) if self.is_siglip1 else _LOWERCASE


def find_text_cleaning(name: object) -> Callable[[str], str] | None:
    """Return the text cleaning of that name, as an identity records it; None: no such cleaning.

    Texts that it makes equal are one text to the model.
    """
    if name == _LOWERCASE:
        from tokenizers import normalizers

        lowercase = normalizers.Lowercase().normalize_str
        return lambda text: text.lower() if text.isascii() else lowercase(text)
    for lower in (True, False):
        if name == _cleaning_name(lower=lower):
            return partial(canonicalize, lower=lower)
    return None


def read_text_settings(folder: Path) -> TextSettings:
    """Return how a checkpoint prepares texts, from its tokenizer files.

    Raises:
        CheckpointError: a tokenizer file or the padding token is missing.
    """
    files = [name for name in ("tokenizer.json", "spiece.model") if (folder / name).is_file()]
    config = read_json(folder / "tokenizer_config.json")
    is_siglip1 = str(config.get("tokenizer_class")).startswith("SiglipTokenizer")
    if not files or (files[0] == "spiece.model" and not is_siglip1):
        raise CheckpointError(
            f"{folder} has no tokenizer.json; copy the tokenizer files of the checkpoint"
        )
    pad_token: Any = config.get("pad_token")
    if pad_token is None and (folder / "special_tokens_map.json").is_file():
        pad_token = read_json(folder / "special_tokens_map.json").get("pad_token")
    if pad_token is None and is_siglip1:
        pad_token = "</s>"  # the default of SiglipTokenizer
    if isinstance(pad_token, dict):
        pad_token = cast("dict[str, Any]", pad_token).get("content")
    if not isinstance(pad_token, str):
        raise CheckpointError(
            f"{folder / 'tokenizer_config.json'} names no pad_token, and padding is part of "
            'what the text tower computes; SigLIP 2 has "<pad>"'
        )
    return TextSettings(files[0], is_siglip1, bool(config.get("do_lower_case", True)), pad_token)


def _cleaning_name(*, lower: bool) -> str:
    return f"{'str.lower, ' if lower else ''}punctuation removed, whitespace collapsed"


def canonicalize(text: str, *, lower: bool) -> str:
    """Return a text as SigLIP 1 cleans it.

    Source: SiglipTokenizer.canonicalize_text of transformers 5.23.
    """
    text = text.lower() if lower else text
    text = text.translate(_PUNCTUATION)
    return re.sub(r"\s+", " ", text).strip()
