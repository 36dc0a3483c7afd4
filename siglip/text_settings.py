"""Text settings of a checkpoint: the tokenizer file, and how texts are cleaned and padded."""

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
    """How a checkpoint prepares texts for its tokenizer."""

    file: str
    """tokenizer.json if it exists, else spiece.model."""

    is_siglip1: bool
    lower: bool
    pad_token: str

    @property
    def cleaning(self) -> str:
        """The text cleaning before that of the tokenizer, as recorded in the identity."""
        return _cleaning_name(lower=self.lower) if self.is_siglip1 else _LOWERCASE


def find_text_cleaning(name: object) -> Callable[[str], str] | None:
    """Return the text cleaning with a name from an identity, or None for any other name.

    Texts that it makes equal are the same text to the model.
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
    """Return the text settings in the tokenizer files of a checkpoint.

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
            f"{folder / 'tokenizer_config.json'} has no pad_token, which the text tower needs; that of "
            'SigLIP 2 is "<pad>"'
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
