"""``siglip2-cache train`` from a cache to a finished model: whole, killed, refused."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from kit.commands import error_line
from kit.fakes import FakeTeacher, SilentProgress, config_of, draw_image, write_folder_corpus
from kit.patience import PATIENCE_S, wait_until
from kit.processes import Process
from kit.ranks import train_in_two, two_trainings
from kit.students import write_student
from kit.trainings import (
    BATCH,
    NUM_IMAGES,
    Listening,
    Made,
    assert_same_run,
    make_cache,
    metrics_of,
    run_trainings,
    settings_of,
    train_of,
    weights_of,
)
from safetensors.torch import load_file

from siglip2_cache.errors import SettingError, TrainError
from siglip2_cache.precompute.build import build
from siglip2_cache.store.cache import open_cache
from siglip2_cache.student.config_file import make_config
from siglip2_cache.student.data.batch import Batch
from siglip2_cache.student.launch import Launch
from siglip2_cache.student.training import components, trainer
from siglip2_cache.student.training.distiller import Distiller
from siglip2_cache.student.training.export_checkpoint import (
    ExportCheckpointConfig,
    export_checkpoint,
)
from siglip2_cache.student.training.resolve import resolve
from siglip2_cache.student.training.schedule import Schedule
from siglip2_cache.student.training.train_step import StepMaker
from siglip2_cache.student.training.trainer import Trainer, TrainSummary, train

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 20
GOLDEN = Path(__file__).parents[1] / "data" / "train-golden.json"
"""Loss and gradient norm of each step of the run of ``finished``. It moves only when a commit says why."""

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The cache of make_cache; read it, do not change it."""
    return make_cache(tmp_path_factory.mktemp("train"), tiny_checkpoint)


@pytest.fixture(scope="module")
def uncaptioned(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of 60 pictures without a caption."""
    root = tmp_path_factory.mktemp("uncaptioned")
    corpus = write_folder_corpus(root / "corpus", 60, captions=0)
    settings = config_of(corpus, root / "cache", tiny_checkpoint, shard_rows=8)
    build(settings, progress=SilentProgress(), make_teacher=lambda *_: FakeTeacher())
    return root / "cache"


FINISHED = {"steps": STEPS, "weights": {"bank": 0.5}, "bank_size": 16, "save_every": 6}


WATCHED = {**FINISHED, "ema": 0.9, "eval_every": 4, "export": "best"}


@dataclass(frozen=True)
class Finished:
    run: Path
    summary: TrainSummary
    heard: Listening


@pytest.fixture(scope="module")
def finished(
    one_thread: None, made: Made, tiny_student: Path, tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    """An undisturbed run of 20 steps in this process; read it, do not change it."""
    run, heard = tmp_path_factory.mktemp("finished") / "run", Listening()
    return Finished(run, train_of(made.cache, tiny_student, run, progress=heard, **FINISHED), heard)


# -- whole


def test_a_run_learns_and_leaves_what_it_says(finished: Finished) -> None:
    names = {path.name for path in finished.run.iterdir()}
    assert names == {
        "checkpoints",
        "config.yaml",
        "evaluation.json",
        "lock",
        "loss.png",
        "metrics.jsonl",
        "model",
        "projection.safetensors",
        "run.json",
    }
    steps = sorted(path.name for path in (finished.run / "checkpoints").iterdir())
    assert steps == ["step-0000018", "step-0000020"]
    assert (finished.run / "loss.png").read_bytes().startswith(b"\x89PNG")
    lines = metrics_of(finished.run)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    weights = {"soft": 1.0, "cosine": np.exp(4.75), "contrastive": 0.1, "bank": 0.5}
    for line in lines:
        total = sum(weight * line[term] for term, weight in weights.items())
        assert line["loss"] == pytest.approx(total, rel=1e-6)
        assert line["soft"] > line["soft_floor"] > 0
        assert line["images"] == BATCH
        assert 0 < line["captioned"] <= BATCH
        assert line["texts"] <= line["captioned"] == line["caption_weight"]
        assert line["skipped"] == 0
        assert line["clipped"] == (line["gradient_norm"] > 1)
    assert min(line["captioned"] for line in lines) < BATCH
    assert sum(line["loss"] for line in lines[-4:]) < 0.8 * sum(line["loss"] for line in lines[:4])
    assert (finished.summary.first_step, finished.summary.steps) == (1, STEPS)
    assert 0 <= finished.summary.wait_share < 1
    assert finished.heard.said[0].startswith("training tiny on ")


def test_twenty_steps_have_the_losses_that_they_always_had(finished: Finished) -> None:
    found = {
        name: [line[name] for line in metrics_of(finished.run)]
        for name in ("loss", "gradient_norm")
    }
    golden = json.loads(GOLDEN.read_text())
    for name, values in golden.items():
        assert found[name] == pytest.approx(values, rel=1e-4), name


def test_running_a_finished_command_again_does_nothing(
    finished: Finished, made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished.run, tmp_path / "run")
    before = {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in run.rglob("*")
        if path.is_file() and path.name not in ("config.yaml", "lock", "metrics.jsonl")
    }
    summary = train_of(made.cache, tiny_student, run, **FINISHED)
    assert summary.first_step == STEPS + 1
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before
    assert_same_run(run, finished.run)
    again = make_config(run / "config.yaml", {"out": run})
    assert train(again, progress=Listening()).first_step == STEPS + 1


def test_a_run_without_its_checkpoints_begins_anew_and_leaves_the_new_model(
    finished: Finished, made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished.run, tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    heard = Listening()
    settings = {**FINISHED, "steps": 2, "lr": 1e-2}
    train_of(made.cache, tiny_student, run, progress=heard, **settings)
    assert f"{run / 'model'} is of an earlier training without a checkpoint" in heard.said[0]
    train_of(made.cache, tiny_student, tmp_path / "new", **settings)
    assert_same_run(run, tmp_path / "new")
    assert not torch.equal(
        weights_of(run)["model: logit_scale"], weights_of(finished.run)["model: logit_scale"]
    )
    evaluations = [json.loads((r / "evaluation.json").read_text()) for r in (run, tmp_path / "new")]
    assert evaluations[0] == evaluations[1]


def test_a_model_that_is_not_of_the_last_weights_is_made_again(
    finished: Finished, made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished.run, tmp_path / "run")
    (run / "model" / "model.safetensors").write_bytes(b"of before")
    notes = json.loads((run / "model" / "siglip2_cache.json").read_text())
    notes["made_from"]["weights_sha256"] = "0" * 64
    (run / "model" / "siglip2_cache.json").write_text(json.dumps(notes))
    said = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").write_text(json.dumps(said | {"after": "of before"}))
    train_of(made.cache, tiny_student, run, **FINISHED)
    assert_same_run(run, finished.run)


def test_the_settings_of_a_run_take_another_teachers_scale_bias_and_weight(
    finished: Finished, made: Made, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    settings = config_of(made.corpus, tmp_path / "cache", tiny_checkpoint, shard_rows=16)
    other = FakeTeacher(logit_scale=2.0, logit_bias=-3.0)
    build(settings, progress=SilentProgress(), make_teacher=lambda *_: other)
    flags = {"cache": tmp_path / "cache", "out": tmp_path / "run"}
    found = resolve(make_config(finished.run / "config.yaml", flags), Launch(), "cpu")
    assert found.teacher_scale == pytest.approx(math.exp(2.0))
    assert found.teacher_bias == -3.0
    assert found.weights["cosine"] == pytest.approx(math.exp(2.0))
    assert found.weights["bank"] == 0.5  # which was given


def test_the_model_is_worth_what_the_run_said(
    command: Command, finished: Finished, made: Made
) -> None:
    status, out, err = command(
        "eval", finished.run / "model", made.cache, "--json", "--decode-workers", 0
    )
    assert (status, err) == (0, "")
    found = json.loads(out)["columns"]
    said = json.loads((finished.run / "evaluation.json").read_text())
    assert said["before"]["image_cosine"] is None  # the map was random then
    for column, of in (("after", "model"), ("teacher", "teacher")):
        assert numbers_of(said[column]) == pytest.approx(numbers_of(found[of]), rel=1e-3, abs=1e-4)
    assert said["after"]["image_cosine"] > 0.2


def numbers_of(column: dict[str, Any], path: str = "") -> dict[str, float]:
    """Every number of nested values by its path."""
    found: dict[str, float] = {}
    for name, value in column.items():
        if isinstance(value, dict):
            found |= numbers_of(value, f"{path}/{name}")
        elif isinstance(value, int | float):
            found[f"{path}/{name}"] = value
    return found


def assert_pipeline_agrees(model: Path) -> None:
    """Plain transformers gives the scores that we give."""
    from transformers import pipeline

    from siglip2_cache import siglip

    labels = ["A Red CAT", "two dogs", "Picture 3 as seen 1"]
    picture = draw_image(7, (64, 64))
    checkpoint = siglip.resolve_checkpoint(str(model))
    loaded = siglip.load_model(checkpoint, device="cpu", compute_dtype="float32")
    pixels = np.asarray(picture.resize((32, 32), 2))[None]
    image_1D = siglip.embed_image_pixels(
        loaded, checkpoint, torch.from_numpy(pixels.copy()), compute_dtype="float32"
    )
    ids = torch.from_numpy(siglip.TextTokenizer(checkpoint)(labels))
    text_MD = siglip.embed_token_ids(loaded, ids, compute_dtype="float32")
    scale, bias = siglip.logit_scale_and_bias(checkpoint)
    scores = torch.sigmoid(np.exp(scale) * (image_1D @ text_MD.T)[0] + bias).tolist()
    classify = pipeline("zero-shot-image-classification", model=str(model))
    found = classify(picture, candidate_labels=labels, hypothesis_template="{}")
    by_label = {each["label"]: each["score"] for each in found}
    assert by_label == pytest.approx(dict(zip(labels, scores, strict=True)), rel=1e-4)
    assert len({round(score, 9) for score in scores}) == len(labels)


def test_plain_transformers_gives_the_scores_that_we_give(finished: Finished) -> None:
    assert_pipeline_agrees(finished.run / "model")


def test_an_image_tower_learns_and_leaves_with_the_teachers_text_tower(
    made: Made, tiny_student: Path, tmp_path: Path, command: Command
) -> None:
    run, heard = tmp_path / "run", Listening()
    settings = {
        "towers": "image",
        "teacher_text": str(made.teacher),
        "micro_batch_size": 3,
        "weights": {"bank": 1.0, "affinity": 1.0, "relations": 1.0},
        "bank_labels": "hard",
        "positives": "weighed",
        "ignore_similar": 0.9,
    }
    train_of(made.cache, tiny_student, run, progress=heard, steps=30, **settings)
    assert heard.said[0].startswith("pca map    64 -> 32 keeps 0.")
    assert " pairs the mean error of a logit is " in heard.said[1]
    assert "the map changes the soft targets by " in heard.said[2]
    lines = metrics_of(run)
    assert all(0 < line["caption_weight"] < line["captioned"] for line in lines)
    for term in ("cosine", "bank", "affinity", "relations"):
        assert sum(line[term] for line in lines[-5:]) < sum(line[term] for line in lines[:5])
    assert_pipeline_agrees(run / "model")
    status, out, err = command("eval", run / "model", made.cache, "--json", "--decode-workers", 0)
    assert (status, err) == (0, "")
    found = json.loads(out)["columns"]["model"]
    after = json.loads((run / "evaluation.json").read_text())["after"]
    assert numbers_of(found) == pytest.approx(numbers_of(after), rel=1e-3, abs=1e-4)


def test_a_run_trains_on_selected_images_and_resumes_with_no_other(
    made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    run, heard = tmp_path / "run", Listening()
    settings = {"steps": 2, "save_every": 1, "select": "keep=0.5"}
    train_of(made.cache, tiny_student, run, progress=heard, **settings)
    [note] = [line for line in heard.said if line.startswith("note: select keep=0.5: ")]
    kept = int(note.split()[3])
    assert f"on {kept} images ({kept} with captions)" in heard.said[-1]
    with pytest.raises(SettingError, match=r"select .*keep=0.5.*all"):
        train_of(made.cache, tiny_student, run, steps=3, save_every=1)
    recorded = json.loads((run / "run.json").read_text())
    assert recorded["selected images"]
    (run / "run.json").write_text(json.dumps(recorded | {"selected images": "0"}))
    with pytest.raises(SettingError, match="started with another cache: selected images was 0"):
        train_of(made.cache, tiny_student, run, **settings)


def test_a_pca_map_of_other_selected_images_is_not_exported(
    made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train_of(made.cache, tiny_student, run, steps=2, select="keep=0.5", projection="pca")
    export_checkpoint(ExportCheckpointConfig(run=run, out=tmp_path / "out"))
    recorded = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(recorded | {"selected images": "0"}))
    with pytest.raises(TrainError, match=r"select keep=0.5 takes other images than when"):
        export_checkpoint(ExportCheckpointConfig(run=run, out=tmp_path / "other"))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("projection", ["pca", "learned"])
def test_a_student_that_no_term_pulls_through_the_map_is_in_a_space_of_its_own(
    made: Made, tiny_student: Path, tmp_path: Path, projection: Literal["pca", "learned"]
) -> None:
    run, settings = tmp_path / "run", {"steps": 1, "weights": {"cosine": 0.0}}
    train_of(made.cache, tiny_student, run, projection=projection, **settings)
    assert json.loads((run / "model" / "siglip2_cache.json").read_text())["space"] is None
    assert json.loads((run / "evaluation.json").read_text())["after"]["image_cosine"] is None
    assert not (run / "projection.safetensors").exists()
    with pytest.raises(SettingError) as refused:
        export_checkpoint(
            ExportCheckpointConfig(run=run, out=tmp_path / "out", into_teacher_space=True)
        )
    assert str(refused.value) == (
        f"{run} has no map to the teacher's space: it was trained with projection {projection} and without "
        "the cosine term, so its space is its own; leave out --into-teacher-space"
    )


def test_a_batch_that_learnability_cannot_fill_is_refused_with_the_largest(
    made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    settings = {"select": "learnability", "super_batch": 3, "global_batch_size": 40}
    with pytest.raises(SettingError, match=r"reads 120 images .* 40 may be at most (\d+)") as error:
        train_of(made.cache, tiny_student, tmp_path / "run", **settings)
    largest = int(str(error.value).split()[-1])
    train_of(
        made.cache, tiny_student, tmp_path / "run", **settings | {"global_batch_size": largest}
    )
    more = settings | {"global_batch_size": largest + 1}
    with pytest.raises(SettingError, match="may be at most"):
        train_of(made.cache, tiny_student, tmp_path / "more", **more)


def test_a_step_is_drawn_by_learnability_from_twice_as_many_images(
    made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    heard, settings = Listening(), {"steps": 4, "select": "learnability"}
    runs = [tmp_path / name for name in ("whole", "pieces")]
    for run, pieces in zip(runs, ({}, {"micro_batch_size": 3}), strict=True):
        train_of(made.cache, tiny_student, run, progress=heard, **settings, **pieces)
    size = BATCH
    line = f"note: select learnability: of each {2 * size} images read, {size} are trained on; an epoch has "
    assert any(said.startswith(line) for said in heard.said)
    whole, pieces = (metrics_of(run) for run in runs)
    trained = [line for line in whole if line["lr"] > 0]
    assert [line["images"] for line in trained] == [size] * len(trained)
    for each, other in zip(whole, pieces, strict=True):
        assert other["loss"] == pytest.approx(each["loss"], rel=1e-4)


def test_texts_learn_from_a_bank_of_images_and_an_image_tower_cannot(
    made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    only = {"soft": 0.0, "cosine": 0.0, "contrastive": 0.0, "image_bank": 1.0}
    settings = {"weights": only, "bank_size": 16, "steps": 12, "lr": 3e-4}
    train_of(made.cache, tiny_student, tmp_path / "run", **settings)
    lines = metrics_of(tmp_path / "run")
    learned = [line["image_bank"] - line["image_bank_floor"] for line in lines]
    assert min(learned) > 0
    assert max(learned[2:]) < learned[0] / 4
    with pytest.raises(
        SettingError, match=r"weights.image_bank goes with a text tower, and towers"
    ):
        train_of(made.cache, tiny_student, tmp_path / "no", towers="image", **settings)


def test_the_pca_map_is_fitted_to_a_sample_that_the_seed_draws(
    made: Made, tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(components, "_MOST_PCA_ROWS", 20)
    maps: list[np.ndarray] = []
    for seed in (0, 0, 1):
        given = settings_of(made.cache, tiny_student, tmp_path / "run", towers="image", seed=seed)
        found = components.fit_pca(resolve(make_config(None, given), Launch(), "cpu"))
        assert (found.num_images, found.num_texts) == (20, 20)
        maps.append(found.map_ED)
    assert np.array_equal(maps[0], maps[1])
    assert not np.allclose(maps[0], maps[2])


def test_an_image_tower_alone_leaves_as_one(made: Made, tiny_student: Path, tmp_path: Path) -> None:
    from transformers import AutoModel

    train_of(made.cache, tiny_student, tmp_path / "run", towers="image")
    model = AutoModel.from_pretrained(tmp_path / "run" / "model")
    assert type(model).__name__ == "SiglipVisionModel"


def test_a_run_of_the_image_tower_begins_from_an_image_tower_alone(
    made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    from transformers import AutoImageProcessor, SiglipModel

    tower = tmp_path / "tower"
    SiglipModel.from_pretrained(tiny_student).vision_model.save_pretrained(tower)
    AutoImageProcessor.from_pretrained(tiny_student).save_pretrained(tower)
    train_of(made.cache, tiny_student, tmp_path / "whole", towers="image")
    train_of(made.cache, tower, tmp_path / "alone", towers="image")
    losses = [[line["loss"] for line in metrics_of(tmp_path / name)] for name in ("whole", "alone")]
    assert losses[0] == losses[1]
    train_of(made.cache, tower, tmp_path / "new", towers="image", from_scratch=True)
    assert (tmp_path / "new" / "model" / "model.safetensors").is_file()


def test_a_naflex_student_learns_too(made: Made, naflex_student: Path, tmp_path: Path) -> None:
    from transformers import AutoModel

    run = tmp_path / "run"
    train_of(made.cache, naflex_student, run, steps=20, micro_batch_size=3, max_num_patches=9)
    losses = [line["loss"] for line in metrics_of(run)]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    assert type(AutoModel.from_pretrained(run / "model")).__name__ == "Siglip2Model"


def test_several_views_of_an_image_are_learned_from_in_one_step(
    made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    train_of(made.cache, tiny_student, tmp_path / "run", views_per_step=2, eval_samples=0)
    for line in metrics_of(tmp_path / "run"):
        assert line["images"] == BATCH
        assert line["texts"] <= BATCH // 2
    with pytest.raises(SettingError, match="views_per_step must be 1 to 2, the number of views"):
        train_of(made.cache, tiny_student, tmp_path / "more", views_per_step=4)


def test_images_without_any_caption_teach_by_their_targets(
    uncaptioned: Path, tiny_student: Path, tmp_path: Path
) -> None:
    told, settings = Listening(), {"steps": 12, "micro_batch_size": 5}
    train_of(uncaptioned, tiny_student, tmp_path / "run", progress=told, **settings)
    lines = metrics_of(tmp_path / "run")
    assert {line["captioned"] for line in lines} == {0}
    assert any(
        "no image to train on has a caption, so the text tower" in line for line in told.said
    )
    weights = weights_of(tmp_path / "run")
    at_start = load_file(tiny_student / "model.safetensors")
    name = "text_model.head.weight"
    assert torch.equal(weights[f"model: {name}"], at_start[name])
    assert lines[-1]["cosine"] < lines[0]["cosine"]
    with pytest.raises(SettingError) as refused:
        train_of(uncaptioned, tiny_student, tmp_path / "other", weights={"cosine": 0.0})
    assert str(refused.value) == (
        f"{uncaptioned} has no caption in its train split, so only the cosine term has data, and its "
        "weight is 0; use --weight cosine=1"
    )


def test_an_image_tower_alone_learns_without_any_text(
    uncaptioned: Path, tiny_student: Path, tmp_path: Path
) -> None:
    told = Listening()
    train_of(uncaptioned, tiny_student, tmp_path / "run", towers="image", progress=told, steps=2)
    [line] = [line for line in told.said if line.startswith("pca map")]
    assert line.endswith("there are no texts to fit it to, and it may lose what they need")
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["texts with a target"] == 0  # with others the map would be another
    with pytest.raises(SettingError) as refused:
        train_of(uncaptioned, tiny_student, tmp_path / "no", weights={"bank": 1.0}, towers="image")
    assert str(refused.value) == (
        "weights.bank needs captions, and the train split has none; leave it out"
    )
    with pytest.raises(SettingError) as refused:
        train_of(uncaptioned, tiny_student, tmp_path / "no", select="learnability")
    assert str(refused.value) == (
        f"{uncaptioned} has no caption in its train split, and select learnability chooses among captions; "
        "leave it out"
    )


def test_captions_that_held_out_images_have_too_still_make_a_map(
    tiny_checkpoint: Path, tiny_student: Path, tmp_path: Path
) -> None:
    """As where captions are the names of a few classes."""
    (tmp_path / "corpus").mkdir()
    for i in range(40):
        draw_image(i, (4, 4)).save(tmp_path / f"corpus/{i:02d}.png")
        (tmp_path / f"corpus/{i:02d}.txt").write_text("cat" if i % 2 else "dog")
    settings = config_of(tmp_path / "corpus", tmp_path / "cache", tiny_checkpoint, shard_rows=32)
    build(settings, progress=SilentProgress(), make_teacher=lambda *_: FakeTeacher())
    told, split = Listening(), {"val_share": None, "val_keys": "0[01]"}
    run = tmp_path / "run"
    train_of(tmp_path / "cache", tiny_student, run, towers="image", progress=told, steps=1, **split)
    assert any(" of the texts'" in line for line in told.said)
    with pytest.raises(SettingError) as refused:
        train_of(tmp_path / "cache", tiny_student, tmp_path / "no", weights={"bank": 1.0}, **split)
    assert "of the 2 different ones of the train split none is left" in str(refused.value)


def test_a_pca_map_for_a_student_wider_than_the_teacher_is_refused_with_what_to_do(
    tiny_checkpoint: Path, tiny_student: Path, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 4)
    narrow = FakeTeacher(embed_dim=8)
    settings = config_of(corpus, tmp_path / "cache", tiny_checkpoint, shard_rows=8)
    build(settings, progress=SilentProgress(), make_teacher=lambda *_: narrow)
    for given, instead in (
        ({"towers": "image"}, "train both towers"),
        ({"projection": "pca"}, "take projection learned"),
    ):
        with pytest.raises(SettingError) as refused:
            train_of(tmp_path / "cache", tiny_student, tmp_path / "run", steps=1, **given)
        assert str(refused.value) == (
            "a PCA map makes rows narrower, and the student is wider than the teacher (the student's 32, the "
            f"teacher's 8); {instead}, or a narrower student"
        )


def test_the_best_weights_are_refused_where_no_default_metric_applies(
    uncaptioned: Path, tiny_student: Path, tmp_path: Path
) -> None:
    first = open_cache(uncaptioned).samples().collect()["key"][0]
    settings: dict[str, Any] = {"val_share": None, "val_keys": first, "eval_every": 1, "steps": 1}
    with pytest.raises(SettingError) as refused:
        train_of(uncaptioned, tiny_student, tmp_path / "run", export="best", **settings)
    assert str(refused.value) == (
        "best_metric image_correlation, the default, does not apply to the held-out images; of these there "
        "are image_cosine"
    )
    assert not (tmp_path / "run" / "checkpoints").exists()
    train_of(uncaptioned, tiny_student, tmp_path / "run", **settings)
    [line] = metrics_of(tmp_path / "run")
    assert "eval_image_cosine" in line


def test_a_new_student_begins_at_the_teachers_scale_and_the_seeds_weights(
    made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    # Of a student that is begun anew no weights are read: there need not be any.
    config = shutil.copytree(tiny_student, tmp_path / "config")
    (config / "model.safetensors").unlink()
    losses: list[list[float]] = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run = tmp_path / name
        train_of(
            made.cache, config, run, from_scratch=True, seed=seed, steps=1, eval_samples=0, lr=1e-9
        )
        losses.append([line["loss"] for line in metrics_of(run)])
    assert losses[0] == losses[1] != losses[2]
    model = load_file(tmp_path / "a" / "model" / "model.safetensors")
    assert model["logit_scale"].item() == pytest.approx(4.75, abs=1e-4)
    assert model["logit_bias"].item() == pytest.approx(-16.8, abs=1e-4)


def test_bfloat16_and_recomputed_activations_learn_as_float32_does(
    finished: Finished, made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    shared = {**FINISHED, "eval_samples": 0, "steps": STEPS}
    train_of(made.cache, tiny_student, tmp_path / "a", gradient_checkpointing=True, **shared)
    for found, expected in zip(metrics_of(tmp_path / "a"), metrics_of(finished.run), strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    train_of(made.cache, tiny_student, tmp_path / "b", dtype="bfloat16", **shared)
    found, expected = (
        [line["loss"] for line in metrics_of(run)] for run in (tmp_path / "b", finished.run)
    )
    # Later ones drift apart: this run's rate is high, so that 20 steps show something.
    assert found[:12] == pytest.approx(expected[:12], rel=0.1)
    assert found != pytest.approx(expected, rel=1e-4)


# -- disturbed


@pytest.fixture(scope="module")
def changed(made: Made, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Corpus roots that lead to a copy in which every sixth picture is another one."""
    corpus = shutil.copytree(made.corpus, tmp_path_factory.mktemp("changed") / "corpus")
    for i in range(0, NUM_IMAGES, 6):
        draw_image(1000 + i).save(corpus / f"img{i:03d}.png")
    return {str(made.corpus): str(corpus)}


def test_a_picture_that_was_changed_is_left_out_and_named(
    made: Made, tiny_student: Path, tmp_path: Path, changed: dict[str, str]
) -> None:
    run, heard = tmp_path / "run", Listening()
    settings = {"corpus_roots": changed, "eval_samples": 0}
    summary = train_of(made.cache, tiny_student, run, progress=heard, **settings)
    skipped = sum(line["skipped"] for line in metrics_of(run))
    assert summary.num_skipped == skipped > 0
    warnings = [line for line in heard.said if line.startswith("warning: ")]
    assert len(warnings) == min(skipped, 5)
    for warning in warnings:
        key, _, reason = warning.removeprefix("warning: image 'img").partition("' is skipped: ")
        assert int(key) % 6 == 0
        assert reason.startswith("its bytes are not those the teacher saw; ")
    for line in metrics_of(run):
        assert line["images"] == BATCH - line["skipped"]


@pytest.fixture(scope="module")
def dropping_student(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student whose attention drops a tenth of its weights."""
    folder = tmp_path_factory.mktemp("students") / "dropping"
    return write_student(tiny_checkpoint, folder, dropout=0.1)


@pytest.fixture(scope="module")
def undisturbed(
    one_thread: None, made: Made, dropping_student: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run with dropout, a moving average and evaluations; read it, do not change it."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    train_of(made.cache, dropping_student, run, **WATCHED)
    return run


@pytest.mark.parametrize("num_workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_run_killed_again_and_again_ends_as_if_it_had_not_been(
    undisturbed: Path, made: Made, dropping_student: Path, tmp_path: Path, num_workers: int
) -> None:
    run = tmp_path / "run"
    settings = settings_of(
        made.cache, dropping_student, run, **WATCHED | {"decode_workers": num_workers}
    )
    # A process makes some 15 operations before its first step, and 13 for 6 steps and a checkpoint.
    kills = np.random.default_rng(num_workers).integers(3, 33, 3 if num_workers else 5)
    ran = run_trainings(tmp_path, settings, *kills, "t19")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    statuses = [int(line.split()[1]) for line in ran.stdout.splitlines() if line[:7] == "status "]
    assert statuses.count(-9) == len(kills), ran.stdout
    assert statuses[-2:] == [130, 0], ran.stdout
    [said] = [line for line in ran.stdout.splitlines() if line.startswith("stopped ")]
    assert re.fullmatch(
        r"stopped after step \d+ of 20; a checkpoint is saved, run the same command again to resume",
        said,
    )
    assert_same_run(run, undisturbed)


def test_two_processes_in_pieces_make_the_model_of_one_in_one_piece(
    made: Made, tiny_student: Path, tmp_path: Path, changed: dict[str, str]
) -> None:
    one, two, settings = tmp_path / "one", tmp_path / "two", tmp_path / "run.yaml"
    shared = {**FINISHED, "corpus_roots": changed}  # so that they have not as many images
    train_of(made.cache, tiny_student, one, **shared)
    given = settings_of(made.cache, tiny_student, two, **shared, micro_batch_size=3)
    settings.write_text(json.dumps(given, default=str))  # JSON is YAML
    first, second = train_in_two("--config", settings)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "trained    20 of 20 steps in " in first.stdout
    assert second.stdout == ""  # one of the two talks
    assert ", on cpu and 1 more" in first.stderr
    skipped = sum(line["skipped"] for line in metrics_of(one))
    assert f"skipped    {skipped} images that could not be used" in first.stdout
    said = first.stderr + second.stderr
    assert said.count("is skipped: its bytes are not those the teacher saw") == 5
    for found, expected in zip(metrics_of(two), metrics_of(one), strict=True):
        # Norms of gradients and single terms carry more of the map's rounding than the loss does.
        assert found == pytest.approx(expected, rel=1e-4)
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    weights = weights_of(two)
    for name, tensor in weights_of(one).items():
        if not name.startswith("optimizer"):
            found, expected = (without_key_biases(name, each) for each in (weights[name], tensor))
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, msg=name)


def test_a_process_without_a_usable_image_goes_on_with_the_other(
    made: Made, tiny_student: Path, tmp_path: Path, changed: dict[str, str]
) -> None:
    """With one image each a step: where it is skipped, a process has none."""
    one, two, settings = tmp_path / "one", tmp_path / "two", tmp_path / "run.yaml"
    watched = {"eval_every": 10, "ema": 0.9}
    shared = {**FINISHED, "corpus_roots": changed, "global_batch_size": 2, **watched}
    train_of(made.cache, tiny_student, one, **shared)
    given = settings_of(made.cache, tiny_student, two, **shared)
    settings.write_text(json.dumps(given, default=str))
    ran = train_in_two("--config", settings)
    assert [each.returncode for each in ran] == [0, 0], ran
    assert {line["images"] for line in metrics_of(two)} == {1, 2}
    for found, expected in zip(metrics_of(two), metrics_of(one), strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert found["skipped"] == expected["skipped"]
        evaluated = {name: expected[name] for name in expected if "eval_" in name}
        assert {name: found[name] for name in found if "eval_" in name} == pytest.approx(
            evaluated, rel=1e-3
        )
    assert len([line for line in metrics_of(two) if "ema_eval_mean_r1" in line]) == 2
    before, expected = (
        json.loads((run / "evaluation.json").read_text())["before"] for run in (two, one)
    )
    assert before == expected


def test_a_step_in_which_no_process_has_an_image_ends_the_run(
    made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    run, gone = tmp_path / "run", {str(made.corpus): str(tmp_path / "gone")}
    given = settings_of(made.cache, tiny_student, run, corpus_roots=gone, eval_samples=0)
    settings = tmp_path / "run.yaml"
    settings.write_text(json.dumps(given, default=str))
    ran = train_in_two("--config", settings)
    assert [each.returncode for each in ran] == [1, 1]
    errors = "".join(each.stderr for each in ran)
    [line] = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert re.fullmatch(
        r"error: no image of step 1 can be used \(first: 'img\d+', no such file\); if the corpus has "
        r"moved, add --corpus-root OLD=NEW",
        line,
    )


def without_key_biases(name: str, weight: torch.Tensor) -> torch.Tensor:
    """Their gradients are 0: Adam makes steps of what rounding leaves of them."""
    if name.endswith("k_proj.bias"):
        return torch.zeros_like(weight)
    if name.endswith("in_proj_bias"):
        return weight.view(3, -1)[[0, 2]]
    return weight


def poisoned(*steps: int) -> type[Trainer]:
    """A Trainer whose batches have a NaN among their targets at some steps."""

    class Poisoned(Trainer):
        def batches(self, loader: Any, done: int) -> Iterator[Batch]:
            for batch in super().batches(loader, done):
                if batch.step + 1 in steps:
                    batch.targets[0].image_NE[0, 0] = float("nan")
                yield batch

    return Poisoned


def poisoned_train_of(
    made: Made,
    student: Path,
    run: Path,
    poison: Sequence[int],
    *,
    on_step: Callable[[Any], None] = lambda _: None,
    **settings: Any,
) -> tuple[TrainSummary, Listening]:
    heard = Listening(on_step)
    config = make_config(None, settings_of(made.cache, student, run, **settings))
    return train(config, progress=heard, trainer_class=poisoned(*poison)), heard


def stop_at(step: int) -> Callable[[Any], None]:
    def stop(metrics: Any) -> None:
        if metrics["step"] == step:
            raise KeyboardInterrupt

    return stop


def test_a_step_that_is_not_finite_is_skipped_and_the_run_finishes(
    made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    # Step 1 only fits the learned map; step 8 is the last.
    summary, heard = poisoned_train_of(
        made, tiny_student, run, (1, 4, 8), save_every=1, steps=8, keep_checkpoints=9
    )
    assert summary.num_nonfinite == 3
    warnings = [line for line in heard.said if line.startswith("warning: ")]
    assert [line.split(" is skipped: ")[0] for line in warnings] == [
        f"warning: step {step}" for step in (1, 4, 8)
    ]
    assert re.search(
        r"the loss is not finite \(soft nan, cosine nan\); the batch: img\d+(, img\d+){7}$",
        warnings[0],
    )
    lines = metrics_of(run)
    assert [line["step"] for line in lines if "nonfinite_keys" in line] == [1, 4, 8]
    assert len(lines[3]["nonfinite_keys"]) == BATCH
    assert lines[3]["soft"] is lines[3]["loss"] is None
    saved = {int(path.name[-7:]): path for path in (run / "checkpoints").iterdir()}
    assert sorted(saved) == [2, 3, 5, 6, 7, 8]  # no checkpoint of a skipped step, except at the end
    before, after = (load_file(saved[step] / "model.safetensors") for step in (7, 8))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(tensor.isfinite().all() for tensor in weights_of(run).values())


def test_a_run_whose_steps_are_read_late_as_on_cuda_is_the_same(
    made: Made, tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, late = tmp_path / "now", tmp_path / "late"
    settings = {"steps": 10, "save_every": 4, "eval_every": 5, "ema": 0.9}
    poisoned_train_of(made, tiny_student, now, (3, 8), **settings)
    monkeypatch.setattr(trainer, "reads_late", lambda _: True)
    order: list[str] = []
    make, read = StepMaker.make, Trainer._read

    def make_step(self: StepMaker, step: int, batch: Batch) -> Any:
        order.append(f"make {step}")
        return make(self, step, batch)

    def read_step(self: Trainer, made_step: Any) -> None:
        order.append(f"read {made_step.step}")
        read(self, made_step)

    monkeypatch.setattr(StepMaker, "make", make_step)
    monkeypatch.setattr(Trainer, "_read", read_step)
    poisoned_train_of(made, tiny_student, late, (3, 8), **settings)
    assert_same_run(late, now)
    # Steps 4, 5 and 8 to 10 are due for a checkpoint, an evaluation, or are the last: read at once.
    assert order[:10] == [
        *("make 1", "make 2", "read 1", "make 3", "read 2"),
        *("make 4", "read 3", "read 4", "make 5", "read 5"),
    ]


def test_a_step_that_does_not_fit_in_memory_ends_the_run_with_the_remedy(
    made: Made, tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore.")

    run = tmp_path / "run"
    train_of(made.cache, tiny_student, run, steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(StepMaker, "make", fail)
        with pytest.raises(TrainError) as stopped:
            train_of(made.cache, tiny_student, run, steps=4)
    assert str(stopped.value) == (
        "a forward and backward pass of 8 images does not fit in the memory of cpu (CUDA out of memory. "
        "Tried to allocate 2.00 GiB.); resume with --micro-batch-size 4, which changes no result, or with "
        "--gradient-checkpointing"
    )
    summary = train_of(made.cache, tiny_student, run, steps=4, micro_batch_size=4)
    assert summary.first_step == 3


def run_out_of_memory(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Let a pass with a graph run out of memory after its forward pass if it has more images."""
    embed = Distiller.embed

    def limited(self: Distiller, micro_batch: Any) -> Any:
        found = embed(self, micro_batch)
        if torch.is_grad_enabled() and micro_batch.num_images > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore.")
        return found

    monkeypatch.setattr(Distiller, "embed", limited)


def test_a_step_that_does_not_fit_in_memory_is_made_again_in_smaller_pieces(
    made: Made, tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, small, heard = tmp_path / "run", tmp_path / "small", Listening()
    settings = {"projection": "pca"}  # no step fits a map
    train_of(made.cache, tiny_student, small, micro_batch_size=2, **settings)
    run_out_of_memory(monkeypatch, 2)
    train_of(made.cache, tiny_student, run, progress=heard, **settings)
    assert_same_run(run, small)
    warnings = [line for line in heard.said if line.startswith("warning: a forward")]
    assert warnings == [
        f"warning: a forward and backward pass of {old} images does not fit in the memory of cpu (CUDA out "
        f"of memory. Tried to allocate 2.00 GiB.); step 1 is made again with {old // 2} at a time, and all "
        "after it"
        for old in (8, 4)
    ]
    changes = json.loads((run / "run.json").read_text())["changes"]
    sizes = [each["settings"]["micro_batch_size"] for each in changes]
    assert sizes == [{"old": 8, "new": 4}, {"old": 4, "new": 2}]
    assert {each["after_step"] for each in changes} == {0}


def test_memory_that_runs_out_for_one_image_ends_the_run_with_the_remedy(
    made: Made, tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_out_of_memory(monkeypatch, 0)
    with pytest.raises(TrainError) as stopped:
        train_of(made.cache, tiny_student, tmp_path / "run", projection="pca")
    assert str(stopped.value) == (
        "a forward and backward pass of one image does not fit in the memory of cpu (CUDA out of memory. "
        "Tried to allocate 2.00 GiB.); resume with --gradient-checkpointing, or on a device with more memory"
    )


def test_a_run_that_skipped_a_step_resumes_bit_for_bit(
    made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    settings = {"steps": 8, "save_every": 2}
    poisoned_train_of(made, tiny_student, whole, (3,), **settings)
    with pytest.raises(KeyboardInterrupt):
        poisoned_train_of(made, tiny_student, resumed, (3,), on_step=stop_at(5), **settings)
    summary, _ = poisoned_train_of(made, tiny_student, resumed, (3,), **settings)
    assert summary.first_step == 5
    assert_same_run(resumed, whole)


def test_too_many_steps_in_a_row_that_are_not_finite_end_the_run(
    made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = {"steps": 12, "save_every": 1}
    with pytest.raises(TrainError) as stopped:
        poisoned_train_of(made, tiny_student, run, range(5, 13), max_nonfinite_steps=3, **settings)
    assert re.fullmatch(
        r"step 7: the loss is not finite \(soft nan, cosine nan\), as in 3 steps in a row; the batch: "
        r"img\d+(?:, img\d+){7}; resume from the last checkpoint with a smaller --lr or --dtype float32, "
        "or remove that checkpoint to resume from the one before it",
        str(stopped.value),
    )
    assert sorted(path.name for path in (run / "checkpoints").iterdir())[-1] == "step-0000004"
    assert not (run / "model").exists()
    # The remedies work: with another rate, and here with sound batches, it finishes.
    heard = Listening()
    summary = train_of(made.cache, tiny_student, run, progress=heard, **settings, lr=1e-4)
    assert (summary.first_step, summary.num_nonfinite) == (5, 0)
    assert "from step 5 on, lr is 0.0001; it was 0.001" in heard.said


def test_a_rate_that_destroys_the_weights_ends_the_run_and_exports_nothing(
    made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(TrainError, match=r"the loss is not finite .*, as in \d steps in a row; "):
        train_of(made.cache, tiny_student, run, lr=1e30, save_every=1, steps=8)
    assert not (run / "model").exists()


# -- changed


def test_a_run_resumes_with_other_rates_and_more_steps_and_records_them(
    made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    run, heard = tmp_path / "run", Listening()
    train_of(made.cache, tiny_student, run, steps=10, eval_samples=4)
    warm = metrics_of(run)
    settings = {"steps": 20, "lr": 5e-4, "clip_norm": 0.5, "eval_samples": 6}
    summary = train_of(made.cache, tiny_student, run, progress=heard, **settings)
    assert (summary.first_step, summary.steps) == (11, 20)
    lines = metrics_of(run)
    assert lines[:10] == warm
    assert [line["step"] for line in lines] == list(range(1, 21))
    # Warm-up and fit of the map are those of the start; the rate falls to the new end.
    schedule = Schedule(steps=20, warmup_steps=4, alone_steps=2)
    assert lines[12]["lr"] == pytest.approx(5e-4 * schedule.factor(13))
    assert lines[-1]["lr"] < lines[10]["lr"] < 5e-4
    changes = json.loads((run / "run.json").read_text())["changes"]
    assert [change["after_step"] for change in changes] == [10]
    assert changes[0]["settings"] == {
        "clip_norm": {"old": 1.0, "new": 0.5},
        "eval_samples": {"old": 4, "new": 6},
        "lr": {"old": 1e-3, "new": 5e-4},
        "steps": {"old": 10, "new": 20},
    }
    assert "from step 11 on, steps is 20; it was 10" in heard.said
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert {"teacher", "before", "after"} <= evaluation.keys()
    assert evaluation["gallery"]["images"] == 6
    # With the same settings again there is nothing to do, and nothing new to record.
    assert train_of(made.cache, tiny_student, run, **settings).first_step == 21
    assert len(json.loads((run / "run.json").read_text())["changes"]) == 1


def test_a_run_can_end_early_but_not_before_its_last_checkpoint(
    made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train_of(
            made.cache, tiny_student, run, progress=Listening(stop_at(7)), steps=12, save_every=3
        )
    with pytest.raises(SettingError) as refused:
        train_of(made.cache, tiny_student, run, steps=5, save_every=3)
    assert str(refused.value) == (f"{run} has made 6 steps, so steps must be at least 6, got 5")
    assert train_of(made.cache, tiny_student, run, steps=6, save_every=3).first_step == 7
    assert (run / "model" / "model.safetensors").is_file()


# -- refused


def assert_refused(command: Command, said: str, *arguments: object) -> None:
    assert error_line(*command("train", *arguments)) == said


def test_a_changed_setting_is_refused_with_old_and_new_value(
    command: Command, finished: Finished, made: Made, tiny_student: Path
) -> None:
    arguments = (made.cache, "--config", finished.run / "config.yaml")
    assert_refused(
        command,
        f"{finished.run} was started with seed 0, now it is 2; resume with the old value, or start "
        "another run with another --out",
        *arguments,
        "--seed",
        2,
    )
    line = error_line(*command("train", *arguments, "--weight", "bank=0.25"))
    assert "started with weights.bank 0.5, now it is 0.25; resume" in line


def test_another_cache_or_student_is_refused_with_both_digests(
    finished: Finished,
    uncaptioned: Path,
    naflex_student: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    made: Made,
) -> None:
    run = shutil.copytree(finished.run, tmp_path / "run")
    facts = json.loads((run / "run.json").read_text())
    for name, changed in (
        ("cache", {"cache": uncaptioned, "global_batch_size": BATCH}),
        ("student", {"student": str(tiny_checkpoint)}),
    ):
        with pytest.raises(SettingError) as refused:
            train(make_config(run / "config.yaml", {"out": run, **changed}), progress=Listening())
        said = str(refused.value)
        fact = {"cache": "catalog", "student": "student"}[name]
        assert said.startswith(
            f"{run} was started with another {name}: {fact} was {facts[fact]}, now "
        )
        assert said.endswith("; start another run with another --out")


def test_an_unknown_setting_of_a_file_is_refused_with_the_nearest_name(
    command: Command, tmp_path: Path
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("cache: C\nmicrobatch_size: 8\n")
    assert_refused(
        command,
        f"{path} has an unknown setting 'microbatch_size'; did you mean micro_batch_size?",
        "--config",
        path,
    )
    assert_refused(
        command, "weight 'soft' is not TERM=NUMBER, such as soft=1", "C", "--weight", "soft"
    )


def test_an_unfinished_cache_is_refused_and_used_as_far_as_it_goes_when_asked(
    made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    cache = shutil.copytree(made.cache, tmp_path / "cache")
    [record] = cache.glob("teachers/*/commits/image-00001.json")
    record.unlink()
    with pytest.raises(TrainError) as refused:
        train_of(cache, tiny_student, tmp_path / "run")
    assert re.fullmatch(
        rf"{cache} is unfinished: tiny has not embedded 1 of 3 image units and 0 of \d+ text units; "
        rf"finish it with siglip2-cache build {made.corpus} {cache} --teacher {made.teacher} \(and the "
        r"options it was started with\), or train on what is there with --allow-partial",
        str(refused.value),
    )
    heard = Listening()
    train_of(cache, tiny_student, tmp_path / "run", progress=heard, allow_partial=True)
    num_train = int(heard.said[0].split(" images ")[0].rsplit(" ", 1)[1])
    assert num_train <= 32
    # What was committed since is another corpus.
    with pytest.raises(
        SettingError, match="another cache: images with a target was 32, now it is 48"
    ):
        train_of(made.cache, tiny_student, tmp_path / "run", allow_partial=True)


def test_a_folder_in_which_another_process_trains_is_refused(
    made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    def begin_another(_: Any) -> None:
        with pytest.raises(TrainError, match=r"another process trains in .*; wait for it"):
            train_of(made.cache, tiny_student, tmp_path / "run")
        seen.append(1)

    seen: list[int] = []
    train_of(
        made.cache,
        tiny_student,
        tmp_path / "run",
        progress=Listening(begin_another),
        steps=1,
        eval_samples=0,
    )
    assert seen


def test_of_two_processes_one_says_what_is_refused_and_both_end(
    made: Made, tiny_student: Path
) -> None:
    options = ["--student", tiny_student, "--out", made.cache, "--device", "cpu"]
    ran = train_in_two(made.cache, *options)
    refusal = f"error: {made.cache} holds cache.json and no config.yaml, so it is no run; name a "
    assert [each.returncode for each in ran] == [1, 1]
    assert ran[0].stderr.startswith(refusal)
    assert (ran[0].stderr.count("\n"), ran[1].stderr) == (1, "")


def test_a_term_signal_saves_and_says_how_to_go_on(
    made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = tmp_path / "run.yaml"
    given = settings_of(made.cache, tiny_student, run, steps=100_000, save_every=50_000)
    settings.write_text(json.dumps(given, default=str))
    process = Process(
        [sys.executable, "-m", "siglip2_cache", "train", "--config", settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        metrics = run / "metrics.jsonl"
        wait_until(
            lambda: process.poll() or (metrics.is_file() and metrics.read_text().count("\n") >= 3),
            "three steps",
        )
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, "")
    step = metrics_of(run)[-1]["step"]
    assert err.splitlines()[-1] == (
        f"stopped after step {step} of 100,000; a checkpoint is saved, run the same command again to resume"
    )
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{step:07d}"]


def test_sigusr1_writes_a_checkpoint_and_the_run_goes_on(
    made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    def save_at_3(metrics: Any) -> None:
        if metrics["step"] == 3:
            os.kill(os.getpid(), signal.SIGUSR1)

    run = tmp_path / "run"
    settings = {
        "steps": 6,
        "save_every": 5,
        "keep_checkpoints": 9,
        "progress": Listening(save_at_3),
    }
    train_of(made.cache, tiny_student, run, **settings)
    saved = sorted(path.name for path in (run / "checkpoints").iterdir())
    # The signal comes after step 3 asked the other processes, so step 4 saves, once.
    assert saved == ["step-0000004", "step-0000005", "step-0000006"]
    assert len(metrics_of(run)) == 6


def test_sigusr1_before_the_first_step_and_after_the_last_does_nothing(
    made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    class Signalling(Listening):
        def say(self, message: str) -> None:
            os.kill(os.getpid(), signal.SIGUSR1)
            super().say(message)

        def stop(self) -> None:
            os.kill(os.getpid(), signal.SIGUSR1)
            super().stop()

    before = signal.getsignal(signal.SIGUSR1)
    heard = Signalling()
    train_of(made.cache, tiny_student, tmp_path / "run", progress=heard, steps=2, eval_samples=0)
    assert heard.said
    assert (tmp_path / "run" / "model").is_dir()
    assert signal.getsignal(signal.SIGUSR1) == before


def test_signals_to_one_of_two_processes_save_and_stop_both(
    made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    run, settings = tmp_path / "run", tmp_path / "run.yaml"
    given = settings_of(made.cache, tiny_student, run, steps=100_000, save_every=50_000)
    settings.write_text(json.dumps(given | {"eval_samples": 0}, default=str))
    metrics, checkpoints = run / "metrics.jsonl", run / "checkpoints"

    def saved() -> list[str]:
        names = [path.name for path in checkpoints.iterdir()] if checkpoints.exists() else []
        return sorted(name for name in names if not name.endswith(".partial"))

    with two_trainings("--config", settings) as processes:
        wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") > 2, "two steps")
        processes[1].send_signal(signal.SIGUSR1)
        wait_until(saved, "a checkpoint")
        processes[1].send_signal(signal.SIGTERM)
        said = [process.communicate(timeout=PATIENCE_S) for process in processes]
    assert [process.returncode for process in processes] == [130, 130], said
    assert len(saved()) == 2  # each of them as all processes asked each other
    last = int(saved()[-1].removeprefix("step-"))
    assert f"stopped after step {last:,} of 100,000; a checkpoint is saved" in said[0][1]
    assert "stopped" not in said[1][1]
    assert len(metrics_of(run)) == last
