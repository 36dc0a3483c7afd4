"""Where a student fails: which queries are shown, with what is right and what it finds first."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.evaluations import embeddings
from kit.fakes import write_table_corpus
from kit.reports import build_cache, keys_of
from numpy.typing import NDArray

from siglip2_cache.report.failures import failures_section
from siglip2_cache.store.cache import Cache
from siglip2_cache.student.evaluation.compare import Embedded
from siglip2_cache.student.evaluation.eval_set import CacheEvalSet

N = 6


@pytest.fixture(scope="module")
def cache(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    root = tmp_path_factory.mktemp("failures")
    lines = [{"image": f"{i}.png", "key": f"k{i}", "captions": [f"text {i}"]} for i in range(N)]
    return build_cache(write_table_corpus(root / "corpus", lines), root / "cache", tiny_checkpoint)


def embedded(cache: Cache, model_images: NDArray[np.float32]) -> Embedded:
    """A teacher that is right about everything, and a model with these images."""
    rows = np.array(sorted(keys_of(cache).values()))
    captions = cache.captions().sort("row").collect()
    eye = np.eye(N, dtype=np.float32)
    eval_set = CacheEvalSet(
        split="all",
        num_split_images=N,
        rows_N=rows,
        sha256_N=np.zeros((N, 32), np.uint8),
        picture_N=np.arange(N),
        text_rows_M=captions["text_row"].to_numpy(),
        image_P=np.arange(N),
        text_P=np.arange(N),
        lang_P=np.zeros(N, np.int32),
        langs=(None,),
        label_N=np.full(N, -1),
        class_Q=np.empty(0, np.int64),
        prompt_Q=np.empty(0, np.int64),
        lang_Q=(),
        num_texts_in_train=None,
        num_labelled=0,
        unprompted=(),
        has_prompts=False,
    )
    unused: Any = None
    return Embedded(
        cache=cache,
        record=cache.teacher(),
        checkpoint=unused,
        metadata=unused,
        policy=None,
        space=unused,
        eval_set=eval_set,
        num_unseen=None,
        teacher=embeddings(eye, eye),
        model=embeddings(model_images, eye),
    )


def test_a_query_that_only_the_teacher_gets_right_is_shown_with_what_the_student_finds(
    cache: Cache,
) -> None:
    images = np.eye(N, dtype=np.float32)
    images[[0, 1]] = images[[1, 0]]  # the student takes these two for each other
    section = failures_section(embedded(cache, images), cache, examples=8)
    assert section is not None
    expected = {"both": N - 2, "teacher_alone": 2, "student_alone": 0, "neither": 0}
    assert section.values == {"text_to_image": expected, "image_to_text": expected}
    to_image, to_text = section.groups[:2], section.groups[2:]
    assert [group.query.captions[0].text for group in to_image if group.query] == [
        "text 0",
        "text 1",
    ]
    right, first = to_image[0].items
    assert (right.key, first.key) == ("k0", "k1")
    assert (right.cosine, first.cosine) == (0, 1)
    assert right.remarks == ("right, rank 6",)  # ties count against the query
    assert [group.query.key for group in to_text if group.query] == ["k0", "k1"]
    assert [item.captions[0].text for item in to_text[0].items] == ["text 0", "text 1"]


def test_the_worst_rank_comes_first_and_examples_bound_the_rows(cache: Cache) -> None:
    images = np.eye(N, dtype=np.float32)
    images[4] = images[5] + 0.5 * images[4]  # rank 2 for its own text
    images[2] = 0.1 * images[2] + 0.2 * images[0] + 0.2 * images[1] + images[3]  # rank 4
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    section = failures_section(embedded(cache, images), cache, examples=8)
    assert section is not None
    texts = [g for g in section.groups if g.query is not None and g.query.kind == "image"]
    assert [g.items[0].remarks[0] for g in texts] == ["right, rank 4", "right, rank 2"]
    few = failures_section(embedded(cache, images), cache, examples=1)
    assert few is not None
    assert len([g for g in few.groups if g.query is not None and g.query.kind == "image"]) == 1


def test_without_embeddings_of_texts_there_is_no_such_part(cache: Cache) -> None:
    lacking = embedded(cache, np.eye(N, dtype=np.float32))
    lacking.model.texts_MD[:] = np.nan
    assert failures_section(lacking, cache, examples=8) is None
