"""Resuming a run: which settings may differ from those it was started with."""

from pathlib import Path
from typing import Any

import pytest

from siglip2_cache.errors import SettingError
from siglip2_cache.student.config import TrainConfig
from siglip2_cache.student.config_file import as_plain
from siglip2_cache.student.training.resume import find_changes


def config_of(**settings: Any) -> TrainConfig:
    return TrainConfig(**{"cache": Path("C"), "student": "S", "out": Path("R"), **settings})


def test_a_setting_that_decides_the_result_may_not_change(tmp_path: Path) -> None:
    old = as_plain(config_of(seed=1, weights={"soft": 1.0}))
    new = as_plain(config_of(seed=2, weights={"soft": 1.0}))
    with pytest.raises(SettingError) as refused:
        find_changes(old, new, run=tmp_path)
    assert str(refused.value) == (
        f"{tmp_path} was started with seed 1, now it is 2; resume with the old value, or start "
        "another run with another --out"
    )
    with pytest.raises(SettingError, match=r"started with weights.soft 1.0, now it is 0.5; resume"):
        find_changes(old, as_plain(config_of(seed=1, weights={"soft": 0.5})), run=tmp_path)


@pytest.mark.parametrize(
    "name", ["global_batch_size", "views_per_step", "weight_decay", "bank_size"]
)
def test_what_would_make_it_another_run_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingError, match=f"was started with {name} "):
        find_changes(as_plain(config_of()), as_plain(config_of(**{name: 3})), run=tmp_path)


def test_rates_length_precision_and_evaluation_may_change(tmp_path: Path) -> None:
    old = as_plain(config_of(lr=1e-5, steps=10, dtype="float32"))
    new = config_of(lr=2e-5, steps=20, dtype="bfloat16", clip_norm=0.5, eval_samples=7)
    assert find_changes(old, as_plain(new), run=tmp_path) == {
        "clip_norm": (1.0, 0.5),
        "dtype": ("float32", "bfloat16"),
        "eval_samples": (10_000, 7),
        "lr": (1e-5, 2e-5),
        "steps": (10, 20),
    }


def test_a_setting_that_an_older_run_did_not_know_had_its_default(tmp_path: Path) -> None:
    old = as_plain(config_of())
    del old["seed"], old["max_nonfinite_steps"]
    assert find_changes(old, as_plain(config_of()), run=tmp_path) == {}
    with pytest.raises(SettingError, match="was started with seed 0, now it is 5"):
        find_changes(old, as_plain(config_of(seed=5)), run=tmp_path)


def test_a_run_that_knew_no_schedule_decayed_as_a_cosine(tmp_path: Path) -> None:
    old = as_plain(config_of())
    assert old.pop("schedule") == "wsd"
    assert find_changes(old, as_plain(config_of(schedule="cosine")), run=tmp_path) == {}
    with pytest.raises(SettingError, match="was started with schedule 'cosine', now it is 'wsd'"):
        find_changes(old, as_plain(config_of()), run=tmp_path)


def test_what_only_says_where_and_how_fast_may_change(tmp_path: Path) -> None:
    old = as_plain(config_of())
    moved = config_of(
        cache=Path("elsewhere"),
        micro_batch_size=4,
        device="cpu",
        decode_workers=0,
        save_every=7,
        keep_checkpoints=9,
        gradient_checkpointing=True,
        check_pixels="never",
        corpus_roots={"/a": "/b"},
    )
    assert len(find_changes(old, as_plain(moved), run=tmp_path)) == 7
