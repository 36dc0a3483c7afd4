"""A smaller vocabulary: texts of the corpus keep their tokens, any other text falls back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.published import REAL_PROCESSOR, SMALL_PROCESSOR, needs_real_processor
from tokenizers import Tokenizer

from siglip2_cache import siglip
from siglip2_cache.errors import SettingError
from siglip2_cache.student.export.tokenizer import write_tokenizer
from siglip2_cache.student.smaller.vocabulary import cut_vocabulary, whole_ids

DEMO = Path(__file__).parents[4] / "demo" / "checkpoints" / "teacher"
CORPUS = [
    "A photo of two CATS on a roof.",
    "Zwei große Hündchen, Straße bei Nacht",
    "两只猫在沙发上",
    "two  spaces\n\n\nand lines",
    "word " * 200 + "antidisestablishmentarianism",
    "😀 <eos> ½",
    "",
]


def spec_of(folder: Path, out: Path) -> dict[str, Any]:
    checkpoint = siglip.resolve_checkpoint(str(folder), has_weights=False)
    write_tokenizer(checkpoint, out, processor_class="SiglipProcessor")
    return json.loads((out / "tokenizer.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def byte_level(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return spec_of(tiny_checkpoint, tmp_path_factory.mktemp("byte-level"))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(SMALL_PROCESSOR, id="small"),
        pytest.param(REAL_PROCESSOR, id="whole", marks=[needs_real_processor, pytest.mark.slow]),
    ],
)
def published(
    request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("published")
    names = ("config.json", "preprocessor_config.json")
    sources = [tiny_checkpoint / name for name in names]
    for source in (*sources, *request.param.glob("*token*")):
        (folder / source.name).write_bytes(source.read_bytes())
    return spec_of(folder, folder)


def ids_of(spec: dict[str, Any], texts: list[str]) -> list[list[int]]:
    [found] = whole_ids(spec, texts)
    return found


def same_tokens(spec: dict[str, Any], corpus: list[str], texts: list[str]) -> bool:
    cut, old_ids = cut_vocabulary(spec, corpus)
    return ids_of(spec, texts) == [old_ids[ids].tolist() for ids in ids_of(cut, texts)]


def test_texts_of_the_corpus_keep_their_tokens_and_any_other_its_characters(
    published: dict[str, Any],
) -> None:
    cut, old_ids = cut_vocabulary(published, CORPUS)
    assert len(old_ids) < 1000
    found = ids_of(cut, CORPUS)
    assert ids_of(published, CORPUS) == [old_ids[ids].tolist() for ids in found]
    others = [
        "зебра",
        "A ROOF of cats",
        "straßen 猫猫 沙",
        "xylophone \U0001f9d1\u200d\U0001f680",
        "<unk>",
    ]
    tokenizer: Any = Tokenizer.from_str(json.dumps(cut))
    unknown = tokenizer.token_to_id("<unk>")
    for text, ids in zip(others, ids_of(cut, others), strict=True):
        if text != "<unk>":
            assert unknown not in ids
            assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text.lower()
    assert cut["padding"]["pad_id"] == old_ids.tolist().index(0)
    assert tokenizer.encode("a cat").ids[-1] == cut["padding"]["pad_id"]
    assert len(tokenizer.encode("word " * 200).ids) == 64


# Letters that the small tokenizer has merges of.
WORDS = st.lists(st.text("acdehinorst ", max_size=12), min_size=1, max_size=6)


@given(WORDS, st.text(max_size=20))
def test_no_corpus_changes_its_own_tokens_and_no_text_is_lost(
    byte_level: dict[str, Any], corpus: list[str], other: str
) -> None:
    assert same_tokens(byte_level, corpus, corpus)
    cut, _ = cut_vocabulary(byte_level, corpus)
    tokenizer: Any = Tokenizer.from_str(json.dumps(cut))
    lowered = tokenizer.normalizer.normalize_str(other)
    tokenizer.no_truncation()
    if not any(token["content"] in lowered for token in cut["added_tokens"]):
        assert tokenizer.decode(tokenizer.encode(other).ids) == lowered


def test_a_merge_whose_parts_are_kept_by_other_tokens_is_kept(byte_level: dict[str, Any]) -> None:
    """BPE ends with what the merges of lower rank left: each token needs the tokens it was made from."""
    merges = [
        tuple(m) if isinstance(m, list) else tuple(m.split(" "))
        for m in byte_level["model"]["merges"]
    ]
    long = max(("".join(m) for m in merges), key=len)
    text = long.replace("Ġ", " ").strip()
    cut, _ = cut_vocabulary(byte_level, [f"x {text}"])
    kept = {
        tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in cut["model"]["merges"]
    }
    assert {"".join(m) for m in kept} >= {long}
    assert kept < set(merges)


def test_words_of_a_word_level_tokenizer_are_kept_and_others_are_unknown(tmp_path: Path) -> None:
    spec = spec_of(DEMO, tmp_path)
    corpus = ["a red circle", "ein blaues Dreieck"]
    cut, old_ids = cut_vocabulary(spec, corpus)
    assert len(old_ids) == 4 + 6
    assert same_tokens(spec, corpus, corpus)
    [ids] = ids_of(cut, ["a green circle"])
    assert ids[1] == cut["model"]["vocab"]["<unk>"]


def test_another_kind_of_tokenizer_is_refused(byte_level: dict[str, Any]) -> None:
    other = {**byte_level, "model": {**byte_level["model"], "type": "Unigram"}}
    with pytest.raises(SettingError) as error:
        cut_vocabulary(other, CORPUS)
    assert str(error.value) == (
        "the vocabulary of a Unigram tokenizer is not cut, only that of BPE or WordLevel; leave out "
        "--vocabulary"
    )


def test_ids_ascend_so_that_the_special_tokens_keep_theirs(byte_level: dict[str, Any]) -> None:
    cut, old_ids = cut_vocabulary(byte_level, ["a dog"])
    assert old_ids[:4].tolist() == [0, 1, 2, 3]
    assert (np.diff(old_ids) > 0).all()
    assert sorted(cut["model"]["vocab"].values()) == list(range(len(old_ids)))
