"""Resuming a run: which settings may differ from those it was started with."""

from pathlib import Path
from typing import Any

import pytest

from siglip2_cache.errors import SettingError
from siglip2_cache.student.config import TrainConfig
from siglip2_cache.student.config_file import as_plain
from siglip2_cache.student.training.resume import refuse_changes


def config_of(**settings: Any) -> TrainConfig:
    return TrainConfig(**{"cache": Path("C"), "student": "S", "out": Path("R"), **settings})


def test_a_setting_that_decides_the_result_may_not_change(tmp_path: Path) -> None:
    old = as_plain(config_of(lr=1e-5, weights={"soft": 1.0}))
    new = as_plain(config_of(lr=2e-5, weights={"soft": 1.0}))
    with pytest.raises(SettingError) as refused:
        refuse_changes(old, new, run=tmp_path)
    assert str(refused.value) == (
        f"{tmp_path} was started with lr 1e-05, now it is 2e-05; resume with the old value, or start "
        "another run with another --out"
    )
    del old["seed"]
    with pytest.raises(SettingError, match="started with seed 'not known', now it is 0"):
        refuse_changes(old, as_plain(config_of(lr=1e-5, weights={"soft": 1.0})), run=tmp_path)


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
    refuse_changes(old, as_plain(moved), run=tmp_path)
