"""The tokenizer files of an exported student, which apply SigLIP 2's recipe in any program.

With the published tokenizer files plain transformers gives wrong scores: GemmaTokenizer keeps capitals and
drops a normalizer written into tokenizer.json. So the recipe is written into tokenizer.json, and the class
is one that uses that file unchanged.

SigLIP 1's files are copied: SiglipTokenizer applies its recipe, except that it adds an attention mask unless
tokenizer_config.json turns it off. For other runtimes its recipe is written into tokenizer.json too.
"""

import json
import re
import shutil
import string
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ...siglip import Checkpoint
from ...siglip.files import read_json
from ...siglip.text_settings import TextSettings, read_text_settings

_CONFIG = "tokenizer_config.json"
_LOWERCASE = {"type": "Lowercase"}
_INPUT_NAMES = ["input_ids"]  # no attention mask: the text tower attends to the padding

_SPECIAL_TOKENS = ("pad_token", "eos_token", "bos_token", "unk_token")
_SIGLIP1_FILES = (
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def write_tokenizer(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    processor_class: str | None,
    cleans_itself: bool = False,
) -> dict[str, int]:
    """Write the tokenizer files; return the token ids for text_config of config.json.

    Args:
        checkpoint: checkpoint of the exported text tower.
        folder: an existing folder.
        processor_class: class for AutoProcessor; None for a text tower alone.
        cleans_itself: whether tokenizer.json must do all that SiglipTokenizer does for SigLIP 1.

    Returns:
        ``pad_token_id``, ``eos_token_id`` and ``bos_token_id``, if the tokenizer has such tokens; empty for
        SigLIP 1, whose config is correct.

    Raises:
        CheckpointError: the checkpoint's tokenizer files are missing or damaged.
    """
    settings = read_text_settings(checkpoint.folder)
    if settings.is_siglip1 and not cleans_itself:
        _copy_siglip1_files(checkpoint.folder, folder)
        return {}
    if settings.file != "tokenizer.json":
        raise CheckpointError(
            f"{checkpoint.folder} has no tokenizer.json, which other runtimes need; add that of the "
            "published checkpoint"
        )
    length = checkpoint.max_text_tokens
    tokenizer = read_json(checkpoint.folder / settings.file)
    tokens = _special_tokens(checkpoint.folder) | {"pad_token": settings.pad_token}
    ids = _ids_of(tokenizer, tokens)
    _write_json(
        folder / "tokenizer.json",
        tokenizer
        | {
            "normalizer": _cleaning_first(tokenizer.get("normalizer"), settings),
            "truncation": _truncation(length),
            "padding": _padding(length, settings.pad_token, ids["pad_token_id"]),
        },
    )
    _write_json(
        folder / _CONFIG,
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **({} if processor_class is None else {"processor_class": processor_class}),
            "model_input_names": _INPUT_NAMES,
            "model_max_length": length,
            "padding_side": "right",
            "truncation_side": "right",
            "clean_up_tokenization_spaces": False,
            **tokens,
        },
    )
    if settings.is_siglip1:
        return {}
    return {
        name: ids[name] for name in ("pad_token_id", "eos_token_id", "bos_token_id") if name in ids
    }


def _copy_siglip1_files(source: Path, target: Path) -> None:
    for name in _SIGLIP1_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    settings = read_json(target / _CONFIG) if (target / _CONFIG).is_file() else {}
    if settings.get("model_input_names") != _INPUT_NAMES:
        defaults = {"tokenizer_class": "SiglipTokenizer"}
        _write_json(target / _CONFIG, defaults | settings | {"model_input_names": _INPUT_NAMES})


def _special_tokens(folder: Path) -> dict[str, str]:
    """Return the special tokens by name; in those files a token may be a string or an object."""
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            found |= read_json(folder / name)
    tokens = {name: found.get(name) for name in _SPECIAL_TOKENS}
    texts = {
        name: token.get("content") if isinstance(token, dict) else token
        for name, token in tokens.items()
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _ids_of(tokenizer: dict[str, Any], tokens: dict[str, str]) -> dict[str, int]:
    ids: dict[str, int] = dict(tokenizer["model"]["vocab"])
    ids |= {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    return {f"{name}_id": ids[token] for name, token in tokens.items() if token in ids}


def _cleaning_first(normalizer: dict[str, Any] | None, settings: TextSettings) -> dict[str, Any]:
    """Return a normalizer that cleans a text first, then does the same as before."""
    rest = [] if normalizer is None else [normalizer]
    if normalizer is not None and normalizer["type"] == "Sequence":
        rest = normalizer["normalizers"]
    first = _siglip1_cleaning(lower=settings.lower) if settings.is_siglip1 else [_LOWERCASE]
    if rest[:1] == [_LOWERCASE]:
        rest = rest[1:]
    return {"type": "Sequence", "normalizers": [*first, *rest]}


def _siglip1_cleaning(*, lower: bool) -> list[dict[str, Any]]:
    """Return text_settings.canonicalize as normalizers of the tokenizers library."""

    def replace(pattern: str, content: str) -> dict[str, Any]:
        return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}

    # str.lower() knows a sigma at the end of a word, the library does not.
    lowercase = [replace(r"(?<=\p{L})\u03a3(?!['.:^`]*\p{L})", "\u03c2"), _LOWERCASE]
    return [
        *(lowercase if lower else []),
        replace(f"[{re.escape(string.punctuation)}]", ""),
        replace("[\\s\x1c-\x1f\x85]+", " "),
        {"type": "Strip", "strip_left": True, "strip_right": True},
    ]


def _truncation(length: int) -> dict[str, Any]:
    return {"direction": "Right", "max_length": length, "strategy": "LongestFirst", "stride": 0}


def _padding(length: int, pad_token: str, pad_id: int) -> dict[str, Any]:
    return {
        "strategy": {"Fixed": length},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": pad_id,
        "pad_type_id": 0,
        "pad_token": pad_token,
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")
