"""The text recipe: from texts to exactly the token ids the text tower was trained on.

Shape letters in this file: B = texts, L = tokens, 64.
"""

import importlib.util
import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import CheckpointError, first_line
from .files import read_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .checkpoint import Checkpoint


_Encode = Callable[[list[str]], list[list[int]]]

_LOWERCASE = "tokenizers.normalizers.Lowercase"
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class TextTokenizer:
    """Texts to the ids the text tower was trained on.

    transformers 5.23 does not do this for a fixed-resolution SigLIP 2 checkpoint: its
    GemmaTokenizer keeps capitals, pads nothing and cuts nothing. The lowercasing is that of the
    tokenizers library, as in transformers' Siglip2Tokenizer; str.lower() differs on a final sigma.
    """

    def __init__(self, checkpoint: "Checkpoint") -> None:
        """Load the tokenizer.

        Raises:
            CheckpointError: files are missing or damaged, or do not fit the token embedding.
        """
        self._length = checkpoint.max_text_tokens
        self._settings = read_text_settings(checkpoint.folder)
        path = checkpoint.folder / self._settings.file
        self._encode = (
            self._from_sentencepiece(checkpoint.folder)
            if path.suffix == ".model"
            else self._from_tokenizer_json(path, checkpoint.vocab_size)
        )

    def __call__(self, texts: list[str]) -> "NDArray[np.int64]":
        """Return (B, L) ids: eos last of the text, then the pad id up to L; no attention mask."""
        import numpy as np

        if self._settings.is_siglip1:
            texts = [_canonical(text, lower=self._settings.lower) for text in texts]
        return np.array(self._encode(texts), np.int64).reshape(len(texts), self._length)

    def _from_tokenizer_json(self, path: Path, vocab_size: int) -> _Encode:
        from tokenizers import Tokenizer, normalizers

        try:
            tokenizer: Any = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises plain Exception
            raise CheckpointError(f"{path} is not a tokenizer: {first_line(error)}") from error
        pad_token = self._settings.pad_token
        pad_id = tokenizer.token_to_id(pad_token)
        if pad_id is None:
            raise CheckpointError(
                f"{path} has no token {pad_token!r}, which its texts are padded with"
            )
        largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
        if largest >= vocab_size:
            raise CheckpointError(
                f"{path} gives token ids up to {largest}, but the model has {vocab_size} token "
                "embeddings; take tokenizer and weights from one checkpoint"
            )
        tokenizer.no_padding()  # the published file pads by itself, to 64
        mask = tokenizer.encode("a").special_tokens_mask
        if mask[-1:] != [1] or sum(mask) != 1:
            raise CheckpointError(f"{path} does not end a text with one eos, as SigLIP's do")
        if not self._settings.is_siglip1:
            rest = [tokenizer.normalizer] if tokenizer.normalizer else []
            tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *rest])
        tokenizer.enable_truncation(self._length)  # leaves room for eos
        tokenizer.enable_padding(
            direction="right", pad_id=pad_id, pad_token=pad_token, length=self._length
        )

        def encode(texts: list[str]) -> list[list[int]]:
            return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]

        return encode

    def _from_sentencepiece(self, folder: Path) -> _Encode:
        if importlib.util.find_spec("sentencepiece") is None:
            raise CheckpointError(
                f"{folder} has only {self._settings.file} for a tokenizer, which needs the package "
                "sentencepiece: pip install sentencepiece"
            )
        from transformers.models.siglip import tokenization_siglip as siglip1

        library: Any = siglip1  # its types are partly unknown
        tokenizer = library.SiglipTokenizer.from_pretrained(folder)
        settings = {"padding": "max_length", "truncation": True, "max_length": self._length}

        def encode(texts: list[str]) -> list[list[int]]:
            return tokenizer(texts, padding_side="right", **settings)["input_ids"] if texts else []

        return encode


@dataclass(frozen=True, slots=True)
class TextSettings:
    file: str  # tokenizer.json where there is one
    is_siglip1: bool
    lower: bool
    pad_token: str

    @property
    def cleaning(self) -> str:
        """Text cleaning before the tokenizer's own, as recorded in the identity."""
        return _canonical_name(lower=self.lower) if self.is_siglip1 else _LOWERCASE


def cleaning_of(name: object) -> Callable[[str], str] | None:
    """Return the text cleaning of that name, as an identity records it; None: no such cleaning.

    Texts that it makes equal are one text to the model.
    """
    if name == _LOWERCASE:
        from tokenizers import normalizers

        lowercase = normalizers.Lowercase().normalize_str
        return lambda text: text.lower() if text.isascii() else lowercase(text)
    for lower in (True, False):
        if name == _canonical_name(lower=lower):
            return partial(_canonical, lower=lower)
    return None


def read_text_settings(folder: Path) -> TextSettings:
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


def _canonical_name(*, lower: bool) -> str:
    return f"{'str.lower, ' if lower else ''}punctuation removed, whitespace collapsed"


def _canonical(text: str, *, lower: bool) -> str:
    """SigLIP 1's text cleaning. Source: SiglipTokenizer.canonicalize_text of transformers 5.23."""
    text = text.lower() if lower else text
    text = text.translate(_PUNCTUATION)
    return re.sub(r"\s+", " ", text).strip()
