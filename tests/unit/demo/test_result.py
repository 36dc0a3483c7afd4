"""What a tour came to: the table, and a verdict that the numbers carry."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from siglip2_cache.demo.result import (
    CONTRASTIVE,
    DISTILLED,
    START,
    TEACHER,
    Result,
    mean_recall,
    read_result,
    table_lines,
    verdict,
)


def column(image_to_text: float, text_to_image: float | None = None) -> dict[str, Any]:
    """An evaluation, as far as a result reads it."""
    back = image_to_text if text_to_image is None else text_to_image
    ways = {
        "image_to_text": {"1": image_to_text, "5": 0.9},
        "text_to_image": {"1": back, "5": 0.91},
    }
    return {"retrieval": {"all": ways}, "neighbour_overlap": 0.25}


def result(
    contrastive: float, distilled: float, *, start: float = 0.1, images: int = 1000
) -> Result:
    recalls = {TEACHER: 0.8, START: start, CONTRASTIVE: contrastive, DISTILLED: distilled}
    return Result(
        columns={name: column(recall) for name, recall in recalls.items()},
        num_parameters=dict.fromkeys(recalls, 1234),
        num_images=images,
    )


def test_recall_is_the_mean_of_both_ways() -> None:
    assert mean_recall(column(0.2, 0.6)) == pytest.approx(0.4)


def test_a_distilled_student_that_finds_more_is_said_to_beat_the_other() -> None:
    said = verdict(result(0.14, 0.41))
    assert said.startswith(
        "the distilled student beats the contrastive one: R@1 is 0.410 against 0.140"
    )
    assert "the start's is 0.100, the teacher's 0.800 (mean of both ways, 1,000 scenes;" in said


def test_a_distilled_student_that_finds_less_is_said_to_be_worse() -> None:
    said = verdict(result(0.41, 0.14))
    assert said.startswith("the distilled student is worse than the contrastive one")


# Of 1,000 images chance makes 2 * sqrt(2 * 0.25 / 1000) = 0.0447 between two recalls near a half.
@pytest.mark.parametrize(
    ("difference", "words"),
    [
        pytest.param(
            0.044, "does not differ from the contrastive one by more than chance", id="just not"
        ),
        pytest.param(
            -0.044, "does not differ from the contrastive one by more than chance", id="nor less"
        ),
        pytest.param(0.046, "beats the contrastive one", id="just"),
    ],
)
def test_what_chance_can_do_is_no_victory(difference: float, words: str) -> None:
    said = verdict(result(0.5 - difference / 2, 0.5 + difference / 2))
    assert said.startswith(f"the distilled student {words}: ")
    assert "chance makes differences up to 0.045" in said


def test_fewer_images_leave_more_to_chance() -> None:
    assert "beats" in verdict(result(0.4, 0.5, images=1000))
    assert "by more than chance" in verdict(result(0.4, 0.5, images=50))


def test_a_student_that_fell_below_its_start_is_named_so() -> None:
    assert "0.200 against 0.350, below its start;" in verdict(result(0.35, 0.2, start=0.3))
    assert "below" not in verdict(result(0.1, 0.2, start=0.15))


def test_the_table_has_a_column_a_model_and_is_aligned() -> None:
    lines = table_lines(result(0.14, 0.41))
    assert lines[0].split("  ")[-1].strip() == DISTILLED
    assert len({len(line) for line in lines}) == 1
    cells = {line[:20].strip(): line.split()[-4:] for line in lines[1:]}
    assert cells["image to text, R@1"] == ["0.800", "0.100", "0.140", "0.410"]
    assert cells["text to image, R@1"] == ["0.800", "0.100", "0.140", "0.410"]
    assert cells["parameters"] == ["1,234"] * 4


def test_a_result_is_read_from_what_eval_wrote_and_models_hold(tmp_path: Path) -> None:
    names = (START, CONTRASTIVE, DISTILLED)
    evaluations = {name: tmp_path / f"{name}.json" for name in names}
    for i, path in enumerate(evaluations.values()):
        columns = {"teacher": column(0.8), "model": column(0.1 * i)}
        gallery = {"images": 99, "captioned_images": 98}
        path.write_text(json.dumps({"gallery": gallery, "columns": columns}))
    save_file(
        {"a": np.zeros((3, 4), np.float32), "b": np.zeros(1, np.float32)},
        tmp_path / "model.safetensors",
    )
    found = read_result(evaluations, dict.fromkeys((TEACHER, *names), tmp_path))
    assert list(found.columns) == [TEACHER, *names]
    assert [mean_recall(each) for each in found.columns.values()] == pytest.approx(
        [0.8, 0, 0.1, 0.2]
    )
    assert found.num_images == 98
    assert found.num_parameters[DISTILLED] == 13
