"""A training by two teachers of one cache, of which the second lacks some targets."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.fakes import FakeTeacher, SilentProgress, config_of, draw_image
from kit.trainings import (
    Listening,
    Made,
    assert_same_run,
    make_cache,
    metrics_of,
    settings_of,
    train_of,
    weights_of,
)
from safetensors.torch import load_file

from siglip2_cache.errors import SettingError
from siglip2_cache.precompute.build import build
from siglip2_cache.store.cache import Cache
from siglip2_cache.store.targets.targets import Targets

pytestmark = pytest.mark.usefixtures("one_thread")

Command = Callable[..., tuple[int, str, str]]

BOTH = {"tiny": 1.0, "fake": 0.5}
SETTINGS = {"steps": 8, "weights": {"bank": 0.5}, "bank_size": 16, "save_every": 4}


@pytest.fixture(scope="module")
def made(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The cache of make_cache with a second teacher, which saw another picture 3 and no picture 14."""
    made = make_cache(tmp_path_factory.mktemp("two"), tiny_checkpoint)
    changed = [made.corpus / f"img{i:03d}.png" for i in (3, 14)]
    before = [path.read_bytes() for path in changed]
    draw_image(1000).save(changed[0])
    changed[1].write_bytes(b"no picture")
    settings = config_of(
        made.corpus, made.cache, tiny_checkpoint, num_views=2, shard_rows=16, teacher_name="fake"
    )
    other = FakeTeacher(logit_scale=2.0, logit_bias=-3.0)
    build(settings, progress=SilentProgress(), make_teacher=lambda *_: other)
    for path, data in zip(changed, before, strict=True):
        path.write_bytes(data)
    return made


def test_a_run_of_two_teachers_logs_both_and_leaves_in_the_space_of_the_first(
    command: Command, made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    run, heard = tmp_path / "run", Listening()
    train_of(made.cache, tiny_student, run, teacher=BOTH, progress=heard, **SETTINGS)
    assert [line for line in heard.said if "fake" in line] == [
        "note: teacher fake has no target of 2 images to train on, which the others teach"
    ]
    weights = {"soft": 1.0, "cosine": np.exp(4.75), "contrastive": 0.1, "bank": 0.5}
    weights |= {"soft/fake": 0.5, "cosine/fake": 0.5 * np.exp(2.0), "bank/fake": 0.25}
    for line in metrics_of(run):
        total = sum(weight * line[term] for term, weight in weights.items())
        assert line["loss"] == pytest.approx(total, rel=1e-6)
        assert line["soft/fake"] >= line["soft_floor/fake"] > 0
        assert line["soft_gradient_norm/fake"] > 0
        assert "contrastive/fake" not in line
    notes = json.loads((run / "model" / "siglip2_cache.json").read_text())
    assert (notes["teacher"], notes["teachers"]) == ("tiny", BOTH)
    maps = {name for name in weights_of(run) if "projection" in name and "weight" in name}
    assert {name.split(": ")[1].split(":")[0] for name in maps} == {
        "projection.weight",
        "projection_1.weight",
    }
    tensors = load_file(run / "checkpoints" / "step-0000008" / "model.safetensors")
    map_ED = load_file(run / "projection.safetensors")["map_ED"]
    assert torch.equal(map_ED, tensors["projection.weight"])
    assert tensors["projection_1.weight"].shape[0] == FakeTeacher().embed_dim
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "embeddings of the teachers" in (run / "model" / "README.md").read_text()
    status, _, error = command("export", "model", run, tmp_path / "exported")
    assert status == 0, error
    exported = load_file(tmp_path / "exported" / "projection.safetensors")["map_ED"]
    assert torch.equal(exported, map_ED)


def test_texts_that_another_teacher_lacks_are_told(
    made: Made, tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text_targets = Cache.text_targets

    def lacking(self: Cache, teacher: str | None = None) -> Targets:
        targets = text_targets(self, teacher)
        if teacher == "fake":
            monkeypatch.setattr(targets, "available", lambda rows: np.asarray(rows) > 1)
        return targets

    monkeypatch.setattr(Cache, "text_targets", lacking)
    heard = Listening()
    settings = {**SETTINGS, "steps": 1, "weights": {}}
    train_of(made.cache, tiny_student, tmp_path / "run", teacher=BOTH, progress=heard, **settings)
    assert (
        "note: teacher fake has no target of 2 texts to train on, which the others teach"
        in heard.said
    )


def test_a_teacher_of_weight_0_leaves_the_run_of_the_other(
    made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    for name, teacher in (("one", "tiny"), ("two", {"tiny": 1, "fake": 0})):
        train_of(made.cache, tiny_student, tmp_path / name, teacher=teacher, **SETTINGS)
    assert metrics_of(tmp_path / "two") == metrics_of(tmp_path / "one")
    one, two = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    for name, tensor in one.items():
        assert torch.equal(two[name], tensor), name


def test_a_run_of_two_teachers_resumes_bit_for_bit_and_with_no_other_teachers(
    made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    train_of(made.cache, tiny_student, whole, teacher=BOTH, **SETTINGS)

    def stop(metrics: Any) -> None:
        if metrics["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_of(made.cache, tiny_student, run, teacher=BOTH, progress=Listening(stop), **SETTINGS)
    for other in ({"tiny": 1.0, "fake": 0.25}, {"tiny": 1.0}, "tiny"):
        with pytest.raises(SettingError, match=r"was started with"):
            train_of(made.cache, tiny_student, run, teacher=other, **SETTINGS)
    with pytest.raises(
        SettingError,
        match=r"was started with teacher \{'tiny': 1.0, 'fake': 0.5\}, now it is \{'fake'",
    ):
        train_of(made.cache, tiny_student, run, teacher={"fake": 0.5, "tiny": 1.0}, **SETTINGS)
    train_of(made.cache, tiny_student, run, teacher=BOTH, **SETTINGS)
    assert_same_run(run, whole)


@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        ({"teacher": {"tiny": 1, "fake": -1}}, "teacher.fake must be at least 0, got -1.0"),
        ({"teacher": {}}, "teacher must name at least one teacher"),
        ({"teacher": {"tiny": 0, "fake": 0}, "weights": {"contrastive": 0}}, "all weights are 0"),
        ({"teacher": {"tiny": 1, "fake": 1, "third": 1}}, "no teacher 'third'"),
        ({"towers": "image"}, "towers image goes with one teacher, and there are 2"),
        ({"projection": "pca"}, "projection pca goes with one teacher"),
        ({"projection": "none"}, "projection none goes with one teacher"),
        ({"teacher_scale": 10}, "teacher_scale 10.0 goes with one teacher"),
    ],
)
def test_what_does_not_go_with_two_teachers_is_refused(
    made: Made, tiny_student: Path, tmp_path: Path, settings: dict[str, Any], refusal: str
) -> None:
    with pytest.raises(SettingError, match=refusal):
        train_of(made.cache, tiny_student, tmp_path / "run", **{"teacher": BOTH, **settings})
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_the_command_takes_teachers_with_weights(
    command: Command, made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    given = settings_of(made.cache, tiny_student, tmp_path / "run", **SETTINGS, teacher=BOTH)
    settings = tmp_path / "run.yaml"
    settings.write_text(json.dumps({**given, "teacher": "fake"}, default=str))
    arguments = ["train", "--config", settings, "--teacher", "tiny", "--teacher"]
    for wrong in ("=2", "fake=", "fake=x", "tiny"):
        status, _, error = command(*arguments, wrong)
        assert status == 1
        assert error.startswith("error: teacher ")
    status, _, error = command(*arguments, "fake=0.5")
    assert status == 0, error
    train_of(made.cache, tiny_student, tmp_path / "same", teacher=BOTH, **SETTINGS)
    assert_same_run(tmp_path / "run", tmp_path / "same")
