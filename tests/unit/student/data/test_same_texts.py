"""Texts that a model's cleaning makes equal are one text: labels, negatives, ranks."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from kit.fakes import FakeTeacher, SilentProgress, config_of, draw_image, write_table_corpus
from numpy.typing import NDArray

from siglip2_cache import open_cache
from siglip2_cache.precompute.build import build
from siglip2_cache.siglip import TextTokenizer, find_text_cleaning, resolve_checkpoint
from siglip2_cache.store.cache import Cache
from siglip2_cache.student.data.read_corpus import read_corpus
from siglip2_cache.student.data.same_texts import cleaning_for, one_text_of
from siglip2_cache.student.data.sampler import Sampler
from siglip2_cache.student.data.split import SplitPolicy
from siglip2_cache.student.evaluation.embeddings import Embeddings
from siglip2_cache.student.evaluation.eval_set import choose_eval_set
from siglip2_cache.student.evaluation.evaluate import evaluate
from siglip2_cache.student.losses.objective import TextColumns
from siglip2_cache.student.losses.text_bank import TextBank

LOWERCASE = "tokenizers.normalizers.Lowercase"
CAPTIONS = [["A dog", "a dog"], ["a DOG"], ["a cat"], ["A dog."], ["a Cat"]]


class _Refusing(FakeTeacher):
    """Has no embedding for one text."""

    def embed_texts(self, texts):  # type: ignore[no-untyped-def]
        rows = super().embed_texts(texts)()
        for i, text in enumerate(texts):
            if text == "A dog":
                rows[i] = np.nan
        return lambda: rows


def cache_of(root: Path, checkpoint: Path, teacher: FakeTeacher | None = None) -> Cache:
    root.mkdir()
    for i in range(len(CAPTIONS)):
        draw_image(i).save(root / f"{i}.png")
    lines = [
        {"image": f"{i}.png", "captions": captions, "label": ["Dog", "dog"][i % 2]}
        for i, captions in enumerate(CAPTIONS)
    ]
    (root / "templates.txt").write_text("a photo of a {}\n")
    config = config_of(
        write_table_corpus(root, lines),
        root / "cache",
        checkpoint,
        templates=root / "templates.txt",
    )
    build(config, progress=SilentProgress(), make_teacher=lambda *_: teacher or FakeTeacher())
    return open_cache(root / "cache")


@pytest.fixture(scope="module")
def cache(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return cache_of(tmp_path_factory.mktemp("same") / "root", tiny_checkpoint)


def stands(cache: Cache, one_text: NDArray[np.int64]) -> dict[str, str]:
    """By each text the one that stands for it."""
    texts = dict(cache.texts().collect().iter_rows())
    return {text: texts[int(one_text[row])] for row, text in texts.items()}


@pytest.mark.parametrize(
    ("name", "one", "other", "is_one"),
    [
        (LOWERCASE, "A Dog", "a dog", True),
        (LOWERCASE, "A dog.", "a dog", False),
        (LOWERCASE, "\u039f\u03a3", "\u03bf\u03c3", True),
        (LOWERCASE, "\u039f\u03a3", "\u03bf\u03c2", False),  # str.lower() would make it final
        ("str.lower, punctuation removed, whitespace collapsed", "A  dog.", "a dog", True),
        ("punctuation removed, whitespace collapsed", "A dog", "a dog", False),
        ("punctuation removed, whitespace collapsed", "a dog!", "a dog", True),
    ],
)
def test_a_cleaning_is_known_by_the_name_that_identities_have(
    name: str, one: str, other: str, is_one: bool
) -> None:
    clean = find_text_cleaning(name)
    assert clean is not None
    assert (clean(one) == clean(other)) == is_one
    assert find_text_cleaning("another program's") is find_text_cleaning(None) is None


def test_what_the_cleaning_makes_equal_has_equal_tokens(tiny_checkpoint: Path) -> None:
    tokenizer, clean = (
        TextTokenizer(resolve_checkpoint(str(tiny_checkpoint))),
        find_text_cleaning(LOWERCASE),
    )
    assert clean is not None
    texts = ["A Dog", "\u039f\u03a3", "STRASSE", "\u0130stanbul", "\u1e9e"]
    np.testing.assert_array_equal(tokenizer(texts), tokenizer([clean(text) for text in texts]))


def test_the_first_of_equal_texts_stands_for_all(cache: Cache) -> None:
    targets = cache.text_targets()
    clean = cleaning_for(cache.teacher())
    found = stands(cache, one_text_of(cache, targets, clean))
    assert [found[text] for text in ("A dog", "a dog", "a DOG")] == ["A dog"] * 3
    assert found["a Cat"] == "a cat"
    assert found["A dog."] == "A dog."
    assert found["a photo of a dog"] == found["a photo of a Dog"]


def test_a_text_without_target_is_stood_for_by_an_equal_one_that_has_one(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    cache = cache_of(tmp_path / "root", tiny_checkpoint, _Refusing())
    corpus = read_corpus(cache, None, None)
    assert stands(cache, corpus.one_text)["A dog"] == "a dog"
    assert corpus.caption_counts.tolist() == [1, 1, 1, 1, 1]


def test_texts_of_a_teacher_whose_cleaning_is_unknown_are_all_told_apart(cache: Cache) -> None:
    record = replace(cache.teacher(), identity={"text_cleaning": "another program's"})
    one_text = one_text_of(cache, cache.text_targets(), cleaning_for(record))
    np.testing.assert_array_equal(one_text, np.arange(len(one_text)))


def test_a_students_own_cleaning_makes_more_texts_equal(
    cache: Cache, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "one")
    path = tmp_path / "one" / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"tokenizer_class": "SiglipTokenizer"}
    path.write_text(json.dumps(settings))
    student = resolve_checkpoint(str(tmp_path / "one"))
    corpus = read_corpus(cache, None, None, student=student)
    assert stands(cache, corpus.one_text)["A dog."] == "A dog"
    assert stands(cache, read_corpus(cache, None, None).one_text)["A dog."] == "A dog."


def test_equal_texts_are_known_to_match_and_are_nobodys_negatives(cache: Cache) -> None:
    corpus = read_corpus(cache, None, None)
    assert corpus.caption_counts.tolist() == [1, 1, 1, 1, 1]
    dog, cat, dot = corpus.caption_text_row[[0, 2, 3]]
    assert corpus.caption_text_row.tolist() == [dog, dog, cat, dot, cat]
    known = corpus.matching_pairs(np.arange(5), np.array([dog, cat, dot]))
    assert known.T.tolist() == [[0, 0], [1, 0], [2, 1], [3, 2], [4, 1]]


def test_a_text_that_a_held_out_image_has_in_other_letters_leaves_the_bank(cache: Cache) -> None:
    corpus = read_corpus(cache, None, SplitPolicy(val_keys="1*"))  # "a DOG"
    train, val = corpus.select(~corpus.is_val_N), corpus.select(corpus.is_val_N)
    assert len(val) == 1
    bank = TextBank(train, val, cache.text_targets(), size=9, seed=0)
    assert len(bank) == 2  # "a cat", "A dog."
    assert choose_eval_set(cache, corpus, split="val").num_texts_in_train == 1


def test_equal_captions_of_perfect_pairs_do_not_cost_each_other_their_rank(cache: Cache) -> None:
    corpus = read_corpus(cache, None, None)
    three = corpus.select(np.isin(np.arange(5), [0, 1, 2]))  # "A dog" / "a dog", "a DOG", "a cat"
    eval_set = choose_eval_set(cache, three, split="all")
    assert (eval_set.num_captioned, eval_set.num_captions) == (3, 2)
    dog, cat = np.eye(len(eval_set.text_rows_M), dtype=np.float32)[eval_set.text_P[[0, 2]]]
    model = Embeddings(
        name="perfect",
        images_ND=np.stack([dog, dog, cat]),
        texts_MD=np.eye(len(eval_set.text_rows_M), dtype=np.float32),
        logit_scale=0.0,
        logit_bias=0.0,
    )
    found = evaluate(model, model, eval_set)["retrieval"]["all"]
    assert found["image_to_text"]["1"] == found["text_to_image"]["1"] == 1.0


def test_equal_captions_of_different_images_pull_both_and_push_neither(cache: Cache) -> None:
    corpus = read_corpus(cache, None, None)
    batch = Sampler(corpus, global_batch_size=5).global_batch(0)
    N, M = len(batch.positions_N), len(batch.global_text_rows_M)
    assert (N, M) == (5, 3)  # dog, cat, "A dog."
    matching = corpus.matching_pairs(batch.positions_N, batch.global_text_rows_M)
    columns = TextColumns(
        text=torch.eye(3),
        caption_NC=torch.from_numpy(batch.caption_NC),
        matching_2P=torch.from_numpy(matching),
        teacher_text_ME=torch.eye(3),
    )
    logits = torch.zeros(N, M)
    labels = columns.hard_labels(N)
    loss = labels.chunk_loss(N, M, dtype=torch.float32, chunk_size=N)
    gradient_NM = loss(0, logits, needs_gradient=True).gradient_CM
    assert gradient_NM is not None
    is_own_NM = batch.caption_NC == np.arange(M)
    dogs = np.flatnonzero(np.isin(batch.positions_N, [0, 1]))
    assert len(set(batch.caption_NC[dogs, 0])) == 1
    np.testing.assert_array_equal(gradient_NM.numpy() < 0, is_own_NM)


def test_classes_whose_prompts_are_one_text_are_one_class(cache: Cache) -> None:
    eval_set = choose_eval_set(cache, read_corpus(cache, None, None), split="all")
    assert len(eval_set.prompt_Q) == 1  # that of "Dog" and of "dog"
    assert eval_set.class_Q.tolist() == [0]
    assert set(eval_set.label_N.tolist()) == {0}
    assert eval_set.num_labelled == 5
