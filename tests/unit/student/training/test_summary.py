"""The summary of a training as JSON values."""

import json
from pathlib import Path

from siglip2_cache.student.config import TrainConfig
from siglip2_cache.student.training.summary import summary_values
from siglip2_cache.student.training.trainer import TrainSummary


def test_the_values_count_the_steps_of_this_process_and_have_the_evaluation(tmp_path: Path) -> None:
    config = TrainConfig(cache="C", student="S", out=tmp_path, steps=10)
    summary = TrainSummary(
        steps=10,
        first_step=7,
        seconds=2.00049,
        images_per_s=64.0,
        wait_share=0.25,
        is_first=True,
        num_skipped=3,
        num_nonfinite=1,
    )
    assert summary_values(config, summary) == {
        "run": str(tmp_path),
        "model": str(tmp_path / "model"),
        "steps": 10,
        "steps_now": 4,
        "seconds": 2.0,
        "images_per_s": 64.0,
        "wait_share": 0.25,
        "skipped_images": 3,
        "nonfinite_steps": 1,
        "evaluation": {},
    }
    (tmp_path / "evaluation.json").write_text(json.dumps({"teacher": {"name": "T"}}))
    assert summary_values(config, summary)["evaluation"] == {"teacher": {"name": "T"}}
