"""The vocabulary of a student, cut to the tokens of a corpus.

A tokenizer applies merges in the order of their rank. Where every merge that was applied to a text is kept,
and none is added, the same merges are applied again: the text has the same tokens. So the tokens of the
corpus are kept with those that they were merged from, down to single characters, and all merges among them.
Any other text falls back to shorter tokens, to bytes, or to the unknown token.
"""

import json
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import SettingError

_BATCH = 10_000
_SUPPORTED = ("BPE", "WordLevel")


def cut_vocabulary(
    spec: dict[str, Any], texts: Iterable[str]
) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """Return a smaller tokenizer, and the id that each of its tokens had before, ascending.

    Kept are the tokens of the whole texts, all added tokens (among them padding and eos), the unknown token,
    and the bytes of a byte fallback or of a byte-level tokenizer.

    Args:
        spec: contents of a tokenizer.json that cleans texts itself, from write_tokenizer; not changed.
        texts: the corpus.

    Raises:
        SettingError: the tokenizer is of another kind than BPE or WordLevel.
    """
    model = spec["model"]
    if model["type"] not in _SUPPORTED:
        raise SettingError(
            f"the vocabulary of a {model['type']} tokenizer is not cut, only that of "
            f"{' or '.join(_SUPPORTED)}; leave out --vocabulary"
        )
    vocab: dict[str, int] = model["vocab"]
    token_of = {index: token for token, index in vocab.items()}
    token_of |= {token["id"]: token["content"] for token in spec["added_tokens"]}
    kept = {token_of[index] for index in _used_ids(spec, texts)}
    kept |= {token["content"] for token in spec["added_tokens"]} | {model["unk_token"]} - {None}
    kept |= _bytes(model, vocab)
    merges: list[Any] = model.get("merges", [])
    if model["type"] == "BPE":
        kept |= _parts(kept, merges)
    old_ids = np.array(sorted(index for index, token in token_of.items() if token in kept))
    new_id = {int(old): new for new, old in enumerate(old_ids)}
    new_model = {
        **model,
        "vocab": {token: new_id[old] for token, old in vocab.items() if token in kept},
    }
    if model["type"] == "BPE":
        new_model["merges"] = [m for m in merges if {*_pair(m), "".join(_pair(m))} <= kept]
    cut = {
        **spec,
        "model": new_model,
        "added_tokens": [{**token, "id": new_id[token["id"]]} for token in spec["added_tokens"]],
        "post_processor": _renumbered(spec["post_processor"], new_id),
        "padding": {**spec["padding"], "pad_id": new_id[spec["padding"]["pad_id"]]},
    }
    return cut, old_ids


def whole_ids(spec: dict[str, Any], texts: Iterable[str]) -> Iterator[list[list[int]]]:
    """Yield the ids of batches of texts, neither truncated nor padded."""
    from tokenizers import Tokenizer

    tokenizer: Any = Tokenizer.from_str(json.dumps(spec, ensure_ascii=False))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    remaining = iter(texts)
    while batch := list(islice(remaining, _BATCH)):
        yield [encoding.ids for encoding in tokenizer.encode_batch_fast(batch)]


def _used_ids(spec: dict[str, Any], texts: Iterable[str]) -> set[int]:
    used: set[int] = set()
    for batch in whole_ids(spec, texts):
        used.update(*batch)
    return used


def _bytes(model: dict[str, Any], vocab: dict[str, int]) -> set[str]:
    """Return the tokens that any text can be made of: <0x00> to <0xFF>, or all single characters."""
    if model["type"] != "BPE":
        return set()
    if model.get("byte_fallback"):
        return {f"<0x{byte:02X}>" for byte in range(256)} & vocab.keys()
    return {token for token in vocab if len(token) == 1}


def _pair(merge: Any) -> tuple[str, str]:
    """Return the two parts of a merge, which older files write as one string."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _parts(tokens: set[str], merges: list[Any]) -> set[str]:
    """Return all tokens that come up while the merges make each token from its characters."""
    rank = {_pair(merge): number for number, merge in enumerate(merges)}
    found: set[str] = set()
    for token in tokens:
        symbols = list(token)
        seen = set(symbols)
        while len(symbols) > 1:
            ranks = [rank.get(pair, len(merges)) for pair in pairwise(symbols)]
            best = min(range(len(ranks)), key=ranks.__getitem__)
            if ranks[best] == len(merges):
                break
            symbols[best : best + 2] = ["".join(symbols[best : best + 2])]
            seen.add(symbols[best])
        if symbols == [token]:  # not so for added tokens, which are found before any merge
            found |= seen
    return found


def _renumbered(post_processor: dict[str, Any], new_id: dict[int, int]) -> dict[str, Any]:
    special = {
        name: {**token, "ids": [new_id[index] for index in token["ids"]]}
        for name, token in post_processor["special_tokens"].items()
    }
    return {**post_processor, "special_tokens": special}
