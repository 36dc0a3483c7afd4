"""What one column says of a model, and how columns are shown."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from kit.evaluations import embeddings, eval_set, unit_rows

from siglip2_cache import open_cache
from siglip2_cache.errors import SettingError
from siglip2_cache.store.cache import Cache
from siglip2_cache.student.data.corpus import Corpus
from siglip2_cache.student.data.read_corpus import read_corpus
from siglip2_cache.student.data.split import SplitPolicy
from siglip2_cache.student.evaluation.embeddings import teacher_embeddings
from siglip2_cache.student.evaluation.eval_set import _classes, choose_eval_set  # pyright: ignore[reportPrivateUsage]
from siglip2_cache.student.evaluation.evaluate import evaluate, in_student_space
from siglip2_cache.student.evaluation.report import (
    eval_set_lines,
    eval_set_numbers,
    main_metrics,
    table_lines,
)

NAN = np.nan
SPLIT = SplitPolicy(val_share=0.5)


def test_a_perfect_model_hits_always_and_agrees_with_itself() -> None:
    """Texts lie on their images; the shared one between its two."""
    images = np.eye(4, dtype=np.float32)
    images[3] = images[2]
    shared = (images[0] + images[1]) / np.sqrt(2)
    texts = np.stack([images[0], shared, images[2], images[3], images[0], images[1], images[1]])
    model = embeddings(images, texts)
    found = evaluate(model, model, eval_set())
    everything = found["retrieval"]["all"]
    assert everything == {
        "images": 4,
        "captioned_images": 4,
        "texts": 4,
        # Image 2 has a text that ties with that of its copy, and image 3 too.
        "image_to_text": {"1": 0.5, "5": 1.0, "10": 1.0},
        "text_to_image": {"1": 1.0, "5": 1.0, "10": 1.0},
    }
    # Image 2 is as far from its class as from the other.
    assert found["zero_shot"]["all"]["accuracy"] == {"1": 2 / 3, "5": 1.0}
    assert found["image_cosine"] == found["text_cosine"] == pytest.approx(1)
    everything_found = {"1": 1.0, "5": 1.0, "10": 1.0}
    ways = ("text_to_image", "image_to_image")
    assert found["teacher_index"] == {
        **dict.fromkeys(ways, everything_found),
        "neighbour_overlap": dict.fromkeys(ways, 1),
    }
    assert found["image_correlation"] is None  # three pictures at right angles: no spread
    assert found["neighbour_overlap"] == 1
    assert found["soft_loss_excess"] == 0
    assert found["missing_images"] == found["missing_texts"] == 0
    # A language knows copies, too.
    one = evaluate(model, model, eval_set(lang_P=np.zeros(5, np.int32)))["retrieval"]["languages"]
    assert one == {"de": everything}


def test_a_language_has_its_own_queries_and_gallery_and_weighs_as_much_as_another() -> None:
    # de: images 0 and 2 with texts 0 and 2; en: images 0 and 1, which share text 1
    images = np.array([[1, 0], [0, 1], [0.8, 0.6], [0.8, 0.6]], np.float32)
    texts = np.array([[0.6, 0.8], [1, 0], [1, 0], [1, 0], *[[1, 0]] * 3], np.float32)
    found = evaluate(embeddings(images, texts), embeddings(images, texts), eval_set())["retrieval"]
    # de, to texts: image 0: own .6 behind 1; image 2: own .8 behind .48 + .48 = .96.
    # de, to images: text 0: own .6 behind .96; text 2: own .8 behind 1.
    assert found["languages"]["de"]["image_to_text"]["1"] == 0
    assert found["languages"]["de"]["text_to_image"]["1"] == 0
    assert found["languages"]["en"]["image_to_text"]["1"] == 1
    assert found["languages"]["en"]["text_to_image"]["1"] == 1
    sizes = {lang: (each["images"], each["texts"]) for lang, each in found["languages"].items()}
    assert sizes == {"de": (2, 2), "en": (2, 1)}
    assert found["macro_mean"]["image_to_text"]["1"] == 0.5


def test_a_pair_of_two_languages_counts_in_both_and_once_among_all() -> None:
    model = embeddings(unit_rows(0, (4, 6)), unit_rows(1, (7, 6)))
    once = evaluate(model, model, eval_set())
    twice = eval_set(
        image_P=np.array([0, 0, 0, 1, 2, 3]),
        text_P=np.array([0, 1, 1, 1, 2, 3]),
        lang_P=np.array([0, 0, 1, 1, 0, 2], np.int32),
    )
    found = evaluate(model, model, twice)
    assert found["retrieval"]["languages"]["de"]["texts"] == 3
    assert found["retrieval"]["all"] == once["retrieval"]["all"]
    assert found["calibration_error"] == once["calibration_error"]
    intervals, expected = found["intervals"], once["intervals"]
    assert intervals["retrieval"]["all"] == expected["retrieval"]["all"]
    assert intervals["calibration_error"] == expected["calibration_error"]


def test_prompts_without_language_speak_in_every_one() -> None:
    images = np.array([[1, 0], [0, 1], [0, 1], [1, 0]], np.float32)
    texts = np.zeros((7, 2), np.float32)
    texts[4:] = [1, 0], [0.8, -0.6], [-0.8, 0.6]  # class 0; class 1 twice
    model = embeddings(images, texts)

    def accuracies(*langs: str | None) -> dict[str, tuple[int, int, float]]:
        found = evaluate(model, model, eval_set(lang_Q=langs))["zero_shot"]["languages"]
        return {k: (v["images"], v["classes"], v["accuracy"]["1"]) for k, v in found.items()}

    # en: class 1 is (-.8, .6): images 1 and 2 are nearer to it than to (1, 0), image 0 is not.
    # fr: class 1 is (.8, -.6): images 1 and 2 are nearer to (1, 0), at 0 against -.6.
    assert accuracies(None, "fr", "en") == {"en": (3, 2, 1.0), "fr": (3, 2, 1 / 3)}
    # Without the prompt of no language, English knows class 1 alone.
    assert accuracies("fr", "fr", "en") == {"en": (2, 1, 1.0), "fr": (3, 2, 1 / 3)}


def test_a_model_without_texts_or_logits_has_no_numbers_that_need_them() -> None:
    images, texts = unit_rows(0, (4, 6)), unit_rows(1, (7, 6))
    teacher = embeddings(images, texts)
    none = np.full_like(texts, NAN)
    found = evaluate(embeddings(images, none), teacher, eval_set())
    assert found["retrieval"] is found["zero_shot"] is found["text_cosine"] is None
    assert found["soft_loss_excess"] is found["calibration_error"] is None
    assert found["missing_texts"] == 4
    assert found["image_cosine"] == pytest.approx(1)
    found = evaluate(embeddings(images, texts, logit_scale=None), teacher, eval_set())
    assert found["soft_loss_excess"] is found["calibration_error"] is None
    assert found["retrieval"] is not None


def test_an_image_that_is_missing_never_hits_and_is_counted() -> None:
    images, texts = unit_rows(0, (4, 6)), unit_rows(1, (7, 6))
    texts[0] = images[0]
    teacher = embeddings(images, texts)
    whole = evaluate(teacher, teacher, eval_set())
    holes = images.copy()
    holes[0] = NAN
    found = evaluate(embeddings(holes, texts), teacher, eval_set())
    assert found["missing_images"] == 1
    lost = {
        way: whole["retrieval"]["all"][way]["10"] - found["retrieval"]["all"][way]["10"]
        for way in ("image_to_text", "text_to_image")
    }
    assert lost == {"image_to_text": 0.25, "text_to_image": 0.25}  # text 1 is image 1's, too


def test_an_evaluation_during_a_training_has_the_same_figures_and_leaves_the_costly_ones_out() -> (
    None
):
    images, texts = unit_rows(0, (4, 6)), unit_rows(1, (7, 6))
    turned = embeddings(images[[1, 0, 2, 3]], texts)
    whole = evaluate(turned, embeddings(images, texts), eval_set())
    found = evaluate(turned, embeddings(images, texts), eval_set(), is_whole=False)
    left_out = {"teacher_index": None, "calibration": None, "intervals": {}}
    assert all(whole[name] for name in left_out)
    assert found == whole | left_out
    assert main_metrics(found) == main_metrics(whole)


def test_the_cosine_goes_through_the_map_and_is_left_out_where_widths_differ() -> None:
    teacher = embeddings(unit_rows(0, (4, 6)), unit_rows(1, (7, 6)))
    basis = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0][:, :3]
    inside = embeddings(*(side @ basis @ basis.T for side in (teacher.images_ND, teacher.texts_MD)))
    student = embeddings(
        teacher.images_ND @ basis, teacher.texts_MD @ basis
    )  # maps back by the basis
    found = evaluate(student, inside, eval_set(), map_ED=basis)
    assert found["image_cosine"] == pytest.approx(1, abs=1e-6)
    assert found["text_cosine"] == pytest.approx(1, abs=1e-6)
    unmapped = evaluate(student, inside, eval_set())
    assert unmapped["image_cosine"] is unmapped["text_cosine"] is None
    mapped = in_student_space(teacher.texts_MD, basis)
    np.testing.assert_allclose(np.linalg.norm(mapped, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.sum(mapped * student.texts_MD, 1) > 0, True)
    assert in_student_space(teacher.texts_MD, None) is teacher.texts_MD


def test_a_picture_that_is_there_twice_is_compared_with_others_once() -> None:
    angle = np.radians([0, 20, 70, 70])
    images = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    turned = images[[0, 1, 2, 0]]  # the copy stands elsewhere in the student: it is not asked
    texts = unit_rows(1, (7, 2))
    found = evaluate(embeddings(turned, texts), embeddings(images, texts), eval_set())
    assert found["image_correlation"] == pytest.approx(1)


def test_the_soft_loss_of_many_pairs_is_that_of_a_seeded_choice_of_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher = embeddings(unit_rows(0, (4, 6)), unit_rows(1, (7, 6)))
    student = embeddings(unit_rows(2, (4, 6)), unit_rows(3, (7, 6)))
    monkeypatch.setattr(
        "siglip2_cache.student.evaluation.probabilities._SOFT_PAIRS", 8
    )  # 2 images by 4 captions
    found = {
        evaluate(student, teacher, eval_set(), seed=seed)["soft_loss_excess"] for seed in range(20)
    }
    assert 2 < len(found) <= 6  # pairs of four images
    again = evaluate(student, teacher, eval_set(), seed=1)["soft_loss_excess"]
    assert again == evaluate(student, teacher, eval_set(), seed=1)["soft_loss_excess"]


@pytest.fixture
def cache(foreign_cache: Path) -> Cache:
    return open_cache(foreign_cache)


@pytest.fixture
def corpus(cache: Cache) -> Corpus:
    return read_corpus(cache, cache.teachers[0], SplitPolicy(val_share=0.5), allow_partial=True)


def test_a_gallery_holds_the_split_with_its_captions_and_prompts(
    cache: Cache, corpus: Corpus
) -> None:
    found = {
        split: choose_eval_set(cache, corpus, split=split) for split in ("val", "train", "all")
    }
    rows = {split: each.rows_N.tolist() for split, each in found.items()}
    assert sorted(rows["val"] + rows["train"]) == rows["all"] == corpus.rows_N.tolist()
    assert rows["val"]
    assert rows["train"]
    captions = cache.captions().collect()
    for each in found.values():
        pairs = set(
            zip(
                each.rows_N[each.image_P].tolist(),
                each.text_rows_M[each.text_P].tolist(),
                strict=True,
            )
        )
        expected = {
            (row, text)
            for row, text in captions.select("row", "text_row").iter_rows()
            if row in each.rows_N and cache.text_targets(cache.teachers[0]).available([text])[0]
        }
        assert pairs == expected
    of_train = set(found["train"].text_rows_M[found["train"].text_P].tolist())
    of_val = set(found["val"].text_rows_M[found["val"].text_P].tolist())
    assert found["val"].num_texts_in_train == len(of_train & of_val)
    assert found["all"].num_texts_in_train is None


def test_a_caption_counts_in_each_of_its_languages(cache: Cache, corpus: Corpus) -> None:
    found = choose_eval_set(cache, corpus, split="all")
    row_P, text_P = found.rows_N[found.image_P], found.text_rows_M[found.text_P]
    of_row_7 = {
        (text, found.langs[lang])
        for text, lang in zip(text_P[row_P == 7].tolist(), found.lang_P[row_P == 7], strict=True)
    }
    assert of_row_7 == {(5, "de"), (5, "nl")}
    assert len(text_P) == corpus.num_captions + 1
    assert len(found.shares()[0]) == corpus.num_captions  # but one caption over all languages


def test_labels_whose_prompts_are_the_same_texts_are_one_class() -> None:
    prompts = pl.DataFrame(
        {"label": ["Dog", "dog", "cat", "dog", "Dog", "pup"], "text_row": [0, 0, 2, 1, 1, 1]}
    )
    found = _classes(prompts)
    assert found["Dog"] == found["dog"]
    assert len(set(found.values())) == 3


def test_a_limit_takes_a_seeded_choice_and_says_how_many_there_were(
    cache: Cache, corpus: Corpus
) -> None:
    several = [
        choose_eval_set(cache, corpus, split="all", max_images=5, seed=seed).rows_N.tolist()
        for seed in range(9)
    ]
    one = choose_eval_set(cache, corpus, split="all", max_images=5, seed=3)
    assert one.rows_N.tolist() == several[3] == sorted(several[3])
    assert len(one.rows_N) == 5
    assert one.num_split_images == len(corpus)
    assert len(set(map(tuple, several))) > 5


def test_an_empty_split_and_settings_that_are_none_are_refused(
    cache: Cache, corpus: Corpus
) -> None:
    none = replace(corpus, is_val_N=np.zeros(len(corpus), np.bool_))
    with pytest.raises(
        SettingError, match=r"split val is empty: it has none of the \d+ images of .*--val-share"
    ):
        choose_eval_set(cache, none)
    with pytest.raises(SettingError, match="split must be one of val, train, all, got 'test'"):
        choose_eval_set(cache, corpus, split="test")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="samples must be at least 1"):
        choose_eval_set(cache, corpus, max_images=0)


def test_a_teachers_embeddings_are_those_of_the_cache_and_nan_where_there_is_none(
    cache: Cache,
) -> None:
    name = cache.teachers[0]
    found = teacher_embeddings(cache, name, np.array([0, 8, 3]), np.array([4, 3]))
    stored = cache.image_targets(name).read([0, 3]).astype(np.float32)
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    np.testing.assert_allclose(found.images_ND[[0, 2]], stored, rtol=1e-6)
    assert np.isnan(found.images_ND[1]).all()  # row 8 and text 3 were rejected
    assert np.isnan(found.texts_MD[1]).all()
    record = cache.teacher(name)
    assert found.logit == (pytest.approx(np.exp(record.logit_scale)), record.logit_bias)


def test_a_table_is_aligned_and_says_what_is_missing_and_how_to_add_it() -> None:
    images, texts = unit_rows(0, (4, 6)), unit_rows(1, (7, 6))
    holes = images.copy()
    holes[0] = NAN
    teacher = embeddings(images, texts)
    none = np.empty(0, np.int64)
    without = eval_set(prompt_Q=none, class_Q=none, lang_Q=(), has_prompts=False)
    columns = {
        "teacher": evaluate(teacher, teacher, without),
        "student before": evaluate(embeddings(holes, texts), teacher, without),
    }
    *table, last = table_lines(columns, eval_set_numbers(without, SPLIT))
    assert last.startswith("zero-shot needs prompts of the images' classes: siglip2-cache build ")
    assert "--templates FILE" in last
    assert "'This is a photo of {}.'" in last
    assert table[0].split() == ["teacher", "student", "before"]
    assert len({len(line) for line in table}) == 1
    shown = {line[: len(table[0]) - 25].strip(): line.split()[-2:] for line in table[1:]}
    assert not any(label.startswith("zero-shot") for label in shown)  # no model has a number
    assert shown["cosine to the teacher, images"] == ["1.0000", "1.0000"]
    assert shown["missing images"] == ["0", "1"]
    assert shown["de: image to text, R@1 (2 images, 2 texts)"]
    assert shown["mean of languages: text to image, R@1"]
    rates = columns["teacher"]["retrieval"]["all"]["image_to_text"]
    assert shown["image to text, R@5"][0] == f"{rates['5']:.4f}"


def test_a_table_has_the_interval_of_each_number_where_it_is_asked_for() -> None:
    images, texts = unit_rows(0, (4, 6)), unit_rows(1, (7, 6))
    column = evaluate(embeddings(images, texts), embeddings(texts[:4], texts), eval_set())
    numbers = eval_set_numbers(eval_set(), SPLIT)
    [line] = [
        line
        for line in table_lines({"model": column}, numbers, has_intervals=True)
        if line.startswith("cosine to the teacher, images")
    ]
    low, high = column["intervals"]["image_cosine"]
    assert low < column["image_cosine"] < high
    assert line.endswith(f"{column['image_cosine']:.4f} [{low:.4f}, {high:.4f}]")
    assert not any("[" in line for line in table_lines({"model": column}, numbers))


def test_a_table_of_prompts_has_no_word_of_how_to_add_them() -> None:
    model = embeddings(unit_rows(0, (4, 6)), unit_rows(1, (7, 6)))
    numbers = eval_set_numbers(eval_set(), SPLIT)
    lines = table_lines({"teacher": evaluate(model, model, eval_set())}, numbers)
    assert not any("needs prompts" in line for line in lines)


def test_a_row_without_any_number_is_left_out_and_the_reason_is_told() -> None:
    images, none = unit_rows(0, (4, 6)), np.empty(0, np.int64)
    bare = eval_set(
        text_rows_M=none, image_P=none, text_P=none, lang_P=none, label_N=np.full(4, -1),
        class_Q=none, prompt_Q=none, lang_Q=(), num_labelled=3, unprompted=("7", "8", "9", "a"),
    )  # fmt: skip
    model = embeddings(images, np.empty((0, 6), np.float32))
    columns = {"teacher": evaluate(model, model, bare)}
    lines = table_lines(columns, eval_set_numbers(bare, SPLIT))
    assert not any("n/a" in line for line in lines)
    assert [line.split("  ")[0] for line in lines[1:6]] == [
        "cosine to the teacher, images",
        "image-image cosines, correlation",
        "10 nearest images, overlap",
        "index of the teacher's images, the images themselves, R@1",
        "10 nearest in the teacher's index, images, overlap",
    ]
    assert lines[6:] == [
        "retrieval, text cosine and calibration need images with captions; none of these has one",
        "zero-shot needs prompts of the images' classes; the cache has none for "
        "'7', '8', '9' or 1 more: build again with --labels that name them",
    ]
    unlabelled = eval_set_numbers(replace(bare, num_labelled=0, unprompted=()), SPLIT)
    assert "zero-shot needs images with a label; none of these has one" in table_lines(
        columns, unlabelled
    )


def test_a_number_that_one_model_lacks_is_told_with_the_model() -> None:
    texts = unit_rows(1, (7, 6))
    teacher = embeddings(unit_rows(0, (4, 6)), texts)
    tower = embeddings(unit_rows(2, (4, 6)), np.full((7, 6), NAN, np.float32), logit_scale=None)
    columns = {
        "teacher": evaluate(teacher, teacher, eval_set()),
        "tower": evaluate(tower, teacher, eval_set(), is_one_space=False),
    }
    assert columns["tower"]["image_cosine"] is None
    lines = table_lines(columns, eval_set_numbers(eval_set(), SPLIT))
    assert "n/a for tower: no text embeddings" in lines
    assert (
        "cosine to the teacher is n/a for tower: there is no map from its space to the teacher's"
        in lines
    )


def test_images_that_zero_shot_leaves_out_are_counted() -> None:
    some = eval_set(label_N=np.array([0, -1, -1, -1]), num_labelled=3, unprompted=("cat",))
    [line] = [line for line in eval_set_lines(some, SPLIT) if line.startswith("zero-shot")]
    assert line == (
        "zero-shot  of 1 image; left out: 2 without a prompt for their class ('cat'), "
        "1 without a label"
    )
    whole = eval_set(label_N=np.array([0, 1, 1, 0]), num_labelled=4)
    assert not any(line.startswith("zero-shot") for line in eval_set_lines(whole, SPLIT))
