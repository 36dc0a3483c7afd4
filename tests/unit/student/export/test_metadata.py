"""What a training left beside a model, and what is not of a training."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from siglip2_cache.errors import CheckpointError
from siglip2_cache.student.data.split import SplitPolicy
from siglip2_cache.student.export.metadata import ModelMetadata, read_metadata, read_projection

MAP = np.arange(12, dtype=np.float32).reshape(4, 3)


def model_in(folder: Path, notes: Any = None) -> Any:
    """As much of a checkpoint of width 3 as is asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    if notes is not None:
        (folder / "siglip2_cache.json").write_text(json.dumps(notes))
    return SimpleNamespace(folder=folder, embed_dim=3)


def test_notes_give_the_split_and_the_logit_where_they_say_them(tmp_path: Path) -> None:
    assert read_metadata(model_in(tmp_path / "a")) == ModelMetadata()
    assert read_metadata(model_in(tmp_path / "b", {"steps": 3})) == ModelMetadata()
    notes = {"split": {"val_share": 0.25, "val_keys": None}, "logit_scale": 2, "logit_bias": -3.5}
    found = read_metadata(model_in(tmp_path / "c", notes))
    assert found == ModelMetadata(split=SplitPolicy(val_share=0.25), logit=(2.0, -3.5))


@pytest.mark.parametrize(
    "notes",
    [[], 3, {"split": 0.5}, {"split": {"val_share": 7}}, {"logit_scale": [], "logit_bias": 0}],
)
def test_notes_that_no_training_writes_are_refused_with_the_file_and_the_way_out(
    tmp_path: Path, notes: Any
) -> None:
    with pytest.raises(CheckpointError, match=r"siglip2_cache\.json is damaged .*--val-share"):
        read_metadata(model_in(tmp_path, notes))


def test_the_map_lies_in_the_folder_of_the_model_or_in_that_of_its_run(tmp_path: Path) -> None:
    ours, foreign = model_in(tmp_path / "model", {}), model_in(tmp_path / "other")
    assert read_projection(ours, 4) is None
    save_file({"map_ED": MAP}, tmp_path / "projection.safetensors")
    np.testing.assert_array_equal(read_projection(ours, 4), MAP)
    assert read_projection(foreign, 4) is None  # what lies above it is not its own
    save_file({"map_ED": MAP + 1}, foreign.folder / "projection.safetensors")
    np.testing.assert_array_equal(read_projection(foreign, 4), MAP + 1)


def test_a_map_to_another_teacher_is_refused_and_so_is_a_damaged_one(tmp_path: Path) -> None:
    model = model_in(tmp_path, {})
    save_file({"map_ED": MAP}, tmp_path / "projection.safetensors")
    with pytest.raises(CheckpointError, match=r"shape \(4, 3\), expected \(5, 3\)"):
        read_projection(model, 5)
    save_file({"other": MAP}, tmp_path / "projection.safetensors")
    with pytest.raises(CheckpointError, match="holds no tensor map_ED"):
        read_projection(model, 4)
