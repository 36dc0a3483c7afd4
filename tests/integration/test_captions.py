"""Captions of several kinds, from the corpus to the training."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from kit.fakes import FakeTeacher, SilentProgress, config_of, write_table_corpus
from kit.trainings import Listening, metrics_of, settings_of, train_of

from siglip2_cache.errors import SettingError
from siglip2_cache.precompute.build import build
from siglip2_cache.precompute.sources import TableColumns
from siglip2_cache.store.cache import open_cache
from siglip2_cache.student.config_file import make_config
from siglip2_cache.student.data.batch import Batch
from siglip2_cache.student.training.trainer import Trainer, train

pytestmark = pytest.mark.usefixtures("one_thread")

Command = Callable[..., tuple[int, str, str]]
NUM_IMAGES = 24


@pytest.fixture(scope="module")
def cache(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures with an alt text, two synthetic captions in German, and every third one more."""
    root = tmp_path_factory.mktemp("kinds")
    lines = [
        {
            "image": f"{i}.png",
            "alt": f"alt {i}",
            "long_de": [f"eins {i}", f"zwei {i}"],
            "caption": {"text": f"more {i}", "kind": "odd"} if i % 3 == 0 else None,
        }
        for i in range(NUM_IMAGES)
    ]
    table = write_table_corpus(root / "corpus", lines)
    settings = config_of(table, root / "cache", tiny_checkpoint, shard_rows=16)
    columns = TableColumns(captions=("alt=alt", "long_de=synthetic", "caption"))
    plan = replace(settings.plan, columns=columns)
    build(
        replace(settings, plan=plan),
        progress=SilentProgress(),
        make_teacher=lambda *_: FakeTeacher(),
    )
    return root / "cache"


def test_kinds_are_in_the_table_and_counted_by_info(command: Command, cache: Path) -> None:
    table = open_cache(cache).captions().collect()
    counts = {"synthetic": 2 * NUM_IMAGES, "alt": NUM_IMAGES, "odd": NUM_IMAGES // 3}
    assert dict(table.group_by("kind").len().iter_rows()) == counts
    assert set(table.filter(kind="synthetic")["lang"]) == {"de"}
    [part] = (cache / "catalog").glob("captions-*.parquet")
    assert pl.read_parquet(part)["kind"].to_list() == table["kind"].to_list()
    status, out, _ = command("info", cache)
    assert status == 0
    assert "kind synthetic 48, alt 24, odd 8)" in out
    found = json.loads(command("info", cache, "--json")[1])
    assert list(found["caption_kinds"].items()) == list(counts.items())
    assert command("verify", cache)[0] == 0


def drawn_texts(cache: Path, student: Path, run: Path, **settings: Any) -> list[set[str]]:
    """Train; return the texts of each step."""
    texts, found = dict(open_cache(cache).texts().collect().iter_rows()), list[set[str]]()

    class Watched(Trainer):
        def batches(self, loader: Any, done: int) -> Any:
            for batch in super().batches(loader, done):
                assert isinstance(batch, Batch)
                found.append({texts[row] for row in batch.text_rows_M.tolist()})
                yield batch

    given = settings_of(cache, student, run, eval_samples=0, **settings)
    train(make_config(None, given), progress=Listening(), trainer_class=Watched)
    return found


def test_weights_decide_which_captions_are_drawn(
    cache: Path, tiny_student: Path, tmp_path: Path
) -> None:
    weights = {"kind:alt": 0, "kind:odd": 3, "language:de": 0.5}
    steps = drawn_texts(cache, tiny_student, tmp_path / "run", caption_weights=weights)
    words = {text.split()[0] for texts in steps for text in texts}
    assert words == {"eins", "zwei", "more"}
    assert all(len(texts) == 8 for texts in steps)
    none = drawn_texts(
        cache, tiny_student, tmp_path / "none", caption_weights={"language:none": 0, "kind:odd": 9}
    )
    assert {text.split()[0] for texts in none for text in texts} == {"eins", "zwei"}


def test_two_captions_an_image_are_learned_from_in_one_step(
    cache: Path, tiny_student: Path, tmp_path: Path
) -> None:
    settings = {"captions_per_image": 2, "weights": {"bank": 0.5}, "bank_size": 16}
    steps = drawn_texts(cache, tiny_student, tmp_path / "whole", **settings)
    assert [len(texts) for texts in steps] == [16] * 4
    lines = metrics_of(tmp_path / "whole")
    assert all(line["texts"] == 16 and line["captioned"] == 8 for line in lines)
    drawn_texts(cache, tiny_student, tmp_path / "parts", micro_batch_size=3, **settings)
    for found, expected in zip(metrics_of(tmp_path / "parts"), lines, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)


def test_a_run_resumes_with_no_other_captions(
    cache: Path, tiny_student: Path, tmp_path: Path
) -> None:
    run, given = tmp_path / "run", {"caption_weights": {"kind:alt": 0.5}, "eval_samples": 0}
    train_of(cache, tiny_student, run, **given)
    for other in (
        {"caption_weights": {}},
        {"caption_weights": {"kind:alt": 0.5, "kind:odd": 0}},
        {"captions_per_image": 2},
    ):
        with pytest.raises(SettingError, match=r"was started with caption"):
            train_of(cache, tiny_student, run, **{**given, **other})
    train_of(cache, tiny_student, run, **given)


@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        (
            {"caption_weights": {"kind:alts": 1}},
            "caption_weights has kind 'alts', and the captions of the cache have alt, odd, synthetic; did "
            "you mean",
        ),
        ({"caption_weights": {"language:fr": 1}}, "has language 'fr', and .* have de, none"),
        ({"caption_weights": {"kind:alt": -1}}, "caption_weights.kind:alt must be at least 0"),
        ({"caption_weights": {"alt": 1}}, "'alt', which is not kind:NAME or language:NAME"),
        (
            {"caption_weights": {"language:de": 0, "language:none": 0}, "towers": "text"},
            "caption_weights is 0 for every caption in the train split of .*, and towers text learns from",
        ),
        (
            {"caption_weights": {"kind:synthetic": 0, "kind:odd": 0}, "captions_per_image": 2},
            "needs images of several captions, .* have at most one of a weight above 0; leave it out",
        ),
        ({"captions_per_image": 0}, "captions_per_image must be at least 1"),
        ({"captions_per_image": 2, "select": "learnability"}, "captions_per_image is 2; leave one"),
    ],
)
def test_odd_captions_are_refused(
    cache: Path, tiny_student: Path, tmp_path: Path, settings: dict[str, Any], refusal: str
) -> None:
    with pytest.raises(SettingError, match=refusal):
        train_of(cache, tiny_student, tmp_path / "run", **settings)
    assert not (tmp_path / "run" / "config.yaml").exists()
