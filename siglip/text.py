"""Tokenizing texts exactly as the text tower was trained.

Shape letters in this file: B = texts, L = tokens, 64.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from ..formatting import first_line
from .checkpoint import Checkpoint
from .text_settings import canonicalize, read_text_settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


_Encode = Callable[[list[str]], list[list[int]]]


class TextTokenizer:
    """Converts texts to the ids that the text tower was trained on.

    transformers 5.23 does not do this for a fixed-resolution SigLIP 2 checkpoint: its GemmaTokenizer
    neither lowercases, pads nor truncates. Lowercasing is that of the tokenizers library, as in
    Siglip2Tokenizer of transformers; str.lower() differs for a final sigma.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Load the tokenizer.

        Raises:
            CheckpointError: files are missing or damaged, or do not match the token embedding.
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
        """Return (B, L) ids: the text, eos, then the pad id up to L; there is no attention mask."""
        import numpy as np

        if self._settings.is_siglip1:
            texts = [canonicalize(text, lower=self._settings.lower) for text in texts]
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
            raise CheckpointError(f"{path} has no token {pad_token!r}, with which texts are padded")
        largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
        if largest >= vocab_size:
            raise CheckpointError(
                f"{path} has token ids up to {largest}, but the model has {vocab_size} token "
                "embeddings; use tokenizer and weights of one checkpoint"
            )
        tokenizer.no_padding()  # the published file pads to 64
        mask = tokenizer.encode("a").special_tokens_mask
        if mask[-1:] != [1] or sum(mask) != 1:
            raise CheckpointError(
                f"{path} does not append one eos to a text, as SigLIP tokenizers do"
            )
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
                f"{folder} has only {self._settings.file} as a tokenizer, which needs the package "
                "sentencepiece; run pip install sentencepiece"
            )
        from transformers.models.siglip import tokenization_siglip

        library: Any = tokenization_siglip  # its types are partly unknown
        tokenizer = library.SiglipTokenizer.from_pretrained(folder)
        settings = {"padding": "max_length", "truncation": True, "max_length": self._length}

        def encode(texts: list[str]) -> list[list[int]]:
            return tokenizer(texts, padding_side="right", **settings)["input_ids"] if texts else []

        return encode
