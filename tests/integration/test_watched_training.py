"""A training that is evaluated as it goes, keeps its best weights, grows, and leaves any checkpoint."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.commands import error_line
from kit.trainings import (
    Listening,
    Made,
    assert_same_run,
    make_cache,
    metrics_of,
    settings_of,
    train_of,
)
from safetensors.torch import load_file

from siglip2_cache.errors import SettingError, TrainError
from siglip2_cache.siglip import graph_limit_reported
from siglip2_cache.student.config_file import make_config
from siglip2_cache.student.training.loggers import Callbacks
from siglip2_cache.student.training.trainer import train

pytestmark = pytest.mark.usefixtures("one_thread")

Command = Callable[..., tuple[int, str, str]]
WATCHED: dict[str, Any] = {
    "best_metric": "soft_loss_excess",
    "steps": 12,
    "eval_every": 3,
    "ema": 0.9,
    "save_every": 4,
    "export": "best",
}


@pytest.fixture(scope="module")
def made(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The cache of make_cache; read it, do not change it."""
    return make_cache(tmp_path_factory.mktemp("watched"), tiny_checkpoint)


@pytest.fixture(scope="module")
def heard() -> Listening:
    return Listening()


@pytest.fixture(scope="module")
def watched(
    one_thread: None,
    made: Made,
    tiny_student: Path,
    heard: Listening,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A run of 12 steps that is evaluated four times; read it, do not change it."""
    run = tmp_path_factory.mktemp("watched") / "run"
    train_of(made.cache, tiny_student, run, progress=heard, **WATCHED)
    return run


def state_of(run: Path) -> dict[str, Any]:
    last = sorted((run / "checkpoints").glob("step-*"))[-1]
    return json.loads((last / "state.json").read_text())


def model_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Every tensor of ``expected``, whose names may have a prefix less, is there and the same."""
    assert expected
    for name, tensor in expected.items():
        assert torch.equal(found.get(name, found.get(f"model.{name}", torch.empty(0))), tensor), (
            name
        )


# -- evaluated


def test_the_model_and_its_average_are_evaluated_and_the_best_is_kept_and_exported(
    watched: Path, heard: Listening
) -> None:
    lines = metrics_of(watched)
    assert [line["step"] for line in lines] == list(range(1, 13))
    evaluated = {line["step"]: line for line in lines if "eval_mean_r1" in line}
    assert sorted(evaluated) == [3, 6, 9, 12]
    for line in evaluated.values():
        both = line["eval_image_to_text_r1"] + line["eval_text_to_image_r1"]
        assert line["eval_mean_r1"] == pytest.approx(both / 2)
        assert line["ema_eval_soft_loss_excess"] > 0
    values = {
        (step, kind): line[f"{prefix}eval_soft_loss_excess"]
        for step, line in evaluated.items()
        for kind, prefix in (("model", ""), ("ema", "ema_"))
    }
    assert len(set(values.values())) > 2
    lowest = min(values, key=lambda key: values[key])
    best = state_of(watched)["best"]
    assert (best["step"], best["weights"]) == lowest
    assert (best["metric"], best["value"]) == ("soft_loss_excess", values[lowest])
    weights = load_file(watched / "checkpoints" / f"best-{best['step']:07d}" / "model.safetensors")
    assert_equal(weights, model_of(watched / "model"))
    after = json.loads((watched / "evaluation.json").read_text())["after"]
    assert after["soft_loss_excess"] == pytest.approx(best["value"])  # of the same few images
    said = [line for line in heard.said if line.startswith("evaluated step ")]
    assert [line.split(":")[0] for line in said] == [f"evaluated step {s}" for s in (3, 6, 9, 12)]
    assert any(line.endswith(", the best so far") for line in said)


def test_evaluations_change_nothing_of_the_training(
    watched: Path, made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    train_of(made.cache, tiny_student, tmp_path / "run", steps=12, save_every=4)
    names = metrics_of(tmp_path / "run")[0].keys()
    for found, expected in zip(metrics_of(watched), metrics_of(tmp_path / "run"), strict=True):
        assert {name: found[name] for name in names} == expected
    last = tmp_path / "run" / "checkpoints" / "step-0000012"
    assert_equal(model_of(watched / "checkpoints" / last.name), model_of(last))


def test_callbacks_get_every_step_and_every_evaluation(
    watched: Path, made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    steps: list[Any] = []
    evaluations: list[Any] = []
    config = make_config(None, settings_of(made.cache, tiny_student, tmp_path / "run", **WATCHED))
    train(
        config,
        progress=Listening(),
        callbacks=Callbacks(on_step=steps.append, on_eval=evaluations.append),
    )
    assert [line["step"] for line in steps] == list(range(1, 13))
    assert [line["step"] for line in evaluations] == [3, 6, 9, 12]
    for line in evaluations:
        assert line.items() <= metrics_of(watched)[line["step"] - 1].items()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"eval_every": 0}, "eval_every must be at least 1, got 0"),
        ({"ema": 1.0}, "ema must be above 0 and below 1, got 1.0"),
        ({"ema": float("nan")}, "ema must be above 0 and below 1, got nan"),
        ({"ema": -0.5}, "ema must be above 0 and below 1, got -0.5"),
        ({"export": "best"}, "export best needs eval_every: else no step is evaluated"),
        ({"export": "ema"}, "export ema needs ema, a decay such as 0.9999"),
        ({"decay_steps": 5}, "decay_steps 5 goes with schedule wsd"),
        ({"schedule": "linear"}, "schedule 'linear' is not one of cosine, wsd"),
        (
            {"best_metric": "r1"},
            "best_metric 'r1' is not one of mean_r1, image_to_text_r1, text_to_image_r1, zero_shot_top1, "
            "image_cosine, text_cosine, image_correlation, soft_loss_excess",
        ),
        (
            {"best_metric": "zero_shot_top1", "eval_every": 2},
            "best_metric zero_shot_top1 does not apply to the held-out images; of these there are mean_r1, "
            "image_to_text_r1, text_to_image_r1, image_cosine, text_cosine, image_correlation, "
            "soft_loss_excess",
        ),
        (
            {"best_metric": "image_cosine", "eval_every": 2, "weights": {"cosine": 0.0}},
            "best_metric image_cosine needs a term that compares the student with the teacher's embeddings, "
            "such as the cosine term; give it a weight, or take another metric",
        ),
        (
            {"val_share": 0.0, "eval_every": 2},
            "eval_every 2 needs held-out images, and val_share 0.0 ",
        ),
    ],
)
def test_what_cannot_be_watched_is_refused(
    settings: dict[str, Any], said: str, made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingError) as refused:
        train_of(made.cache, tiny_student, tmp_path / "run", **settings)
    assert str(refused.value).startswith(said)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_weights_and_biases_gets_the_metrics_of_every_step(
    made: Made, tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in takes the calls: the package itself would start a service of its own."""
    logged: list[tuple[int, Any]] = []
    begun: list[Any] = []

    class Run:
        def log(self, values: Any, step: int) -> None:
            logged.append((step, values))

        def finish(self) -> None:
            logged.append((-1, "finished"))

    class Wandb:
        Settings = staticmethod(dict)

        @staticmethod
        def init(**settings: Any) -> Run:
            begun.append(settings)
            return Run()

    monkeypatch.setitem(sys.modules, "wandb", Wandb)
    run = tmp_path / "run"
    train_of(made.cache, tiny_student, run, wandb="teachers", eval_every=2, steps=2)
    train_of(made.cache, tiny_student, run, wandb="teachers", eval_every=2, steps=4)
    assert [step for step, _ in logged] == [1, 2, -1, 3, 4, -1]
    assert logged[1][1]["eval_mean_r1"] == metrics_of(run)[1]["eval_mean_r1"]
    assert [each["project"] for each in begun] == ["teachers", "teachers"]
    assert begun[0]["id"] == begun[1]["id"]  # resumed, it is the same run
    assert begun[0]["config"]["steps"] == 2

    class NoLogin(Wandb):
        Error = RuntimeError

        @staticmethod
        def init(**settings: Any) -> Run:
            raise RuntimeError("No API key configured.")

    monkeypatch.setitem(sys.modules, "wandb", NoLogin)
    with pytest.raises(
        SettingError, match=r"cannot be logged to \(No API key configured.*wandb login"
    ):
        train_of(made.cache, tiny_student, run, wandb="teachers", eval_every=2, steps=5)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        SettingError, match="--wandb needs the package wandb, which is not installed"
    ):
        train_of(made.cache, tiny_student, run, wandb="teachers", steps=5)


# -- of a part of the student


def test_frozen_layers_stay_and_patches_are_dropped_but_in_the_last_steps(
    made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    whole, part, pieces = tmp_path / "whole", tmp_path / "part", tmp_path / "pieces"
    shared = {"steps": 10, "freeze_text": 1, "layer_decay": 0.5, "image_lr": 1e-2}
    train_of(made.cache, tiny_student, whole, **shared)
    train_of(made.cache, tiny_student, part, patch_dropout=0.5, **shared)
    start = load_file(tiny_student / "model.safetensors")
    model = model_of(part / "model")
    moved = {name for name, tensor in model.items() if not torch.equal(tensor, start[name])}
    assert not [name for name in moved if name.startswith("text_model.")]
    assert [name for name in moved if name.startswith("vision_model.encoder.layers.0.")]
    losses = [[line["loss"] for line in metrics_of(run)] for run in (whole, part)]
    num_alone = sum(line["lr"] == 0 for line in metrics_of(part))
    assert losses[0][:num_alone] == losses[1][:num_alone]
    assert all(a != b for a, b in zip(losses[0][num_alone:], losses[1][num_alone:], strict=True))
    # A run that is resumed drops the same patches.
    train_of(made.cache, tiny_student, pieces, patch_dropout=0.5, save_every=3, **shared)
    shutil.rmtree(pieces / "checkpoints" / "step-0000010")
    train_of(made.cache, tiny_student, pieces, patch_dropout=0.5, save_every=3, **shared)
    assert_same_run(pieces, part)


def test_layers_and_towers_that_are_not_there_are_refused(
    made: Made, tiny_student: Path, naflex_student: Path, tmp_path: Path
) -> None:
    for student, settings, said in (
        (
            tiny_student,
            {"freeze_image": 2},
            "freeze_image must be 0 to 1, the layers of the image tower, got 2",
        ),
        (
            tiny_student,
            {"towers": "image", "text_lr": 1e-3},
            "text_lr and freeze_text go with towers both: ",
        ),
        (tiny_student, {"layer_decay": 1.5}, "layer_decay must be above 0 and below 1, got 1.5"),
        (
            tiny_student,
            {"patch_dropout": 0.0},
            "patch_dropout must be above 0 and below 1, got 0.0",
        ),
        (tiny_student, {"image_lr": float("nan")}, "image_lr must be above 0, got nan"),
        (
            naflex_student,
            {"patch_dropout": 0.5},
            "patch_dropout goes with students of fixed resolution, and ",
        ),
    ):
        with pytest.raises(SettingError) as refused:
            train_of(made.cache, student, tmp_path / "run", **settings)
        assert str(refused.value).startswith(said)


# -- compiled


@pytest.fixture
def without_code_generation() -> Iterator[None]:
    """Graphs are captured and differentiated as for a GPU, but run by PyTorch: no compiler of C++ takes
    half a minute for each."""
    torch.compiler.reset()
    with (
        torch.compiler.set_stance(force_backend="aot_eager"),
        torch._dynamo.config.patch(fail_on_recompile_limit_hit=True),  # pyright: ignore[reportPrivateUsage]
    ):
        yield
    torch.compiler.reset()


@pytest.mark.filterwarnings("default")  # torch.compile has warnings of its own
@pytest.mark.parametrize("is_naflex", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_compiled_layers_learn_the_same_with_one_graph_a_tower_and_mode(
    is_naflex: bool,
    made: Made,
    tiny_student: Path,
    naflex_student: Path,
    tmp_path: Path,
    without_code_generation: None,
) -> None:
    from torch._dynamo.utils import counters

    student = naflex_student if is_naflex else tiny_student
    num_graphs: list[int] = []
    listening = Listening(lambda _: num_graphs.append(counters["stats"]["unique_graphs"]))
    # 8 images in pieces of 3, 3 and 2, fewer texts, and evaluations in between.
    shared = {"steps": 8, "micro_batch_size": 3, "eval_every": 3, "warmup_steps": 2}
    before = counters["stats"]["unique_graphs"]
    train_of(made.cache, student, tmp_path / "a", compile=True, progress=listening, **shared)
    train_of(made.cache, student, tmp_path / "b", **shared)
    for found, expected in zip(metrics_of(tmp_path / "a"), metrics_of(tmp_path / "b"), strict=True):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert num_graphs[-1] - before <= (8 if is_naflex else 4)
    # The fit of the map needs none with gradients; the first steps after it add those.
    num_first = 2 + sum(line["lr"] == 0 for line in metrics_of(tmp_path / "a"))
    assert set(num_graphs[num_first:]) == {num_graphs[-1]}, num_graphs


@pytest.mark.filterwarnings("default")
def test_a_reached_limit_of_graphs_is_reported_once() -> None:
    said: list[str] = []

    def layer(x: torch.Tensor, number: int) -> torch.Tensor:
        return x * number

    compiled = torch.compile(layer, backend="eager", dynamic=False)
    with graph_limit_reported(said.append):
        for number in range(2, 24):
            compiled(torch.ones(number), number)
    assert [line[:59] for line in said] == [
        "warning: torch.compile has reached its limit of graphs, and"
    ]


# -- grown


WSD: dict[str, Any] = {
    "schedule": "wsd",
    "decay_steps": 4,
    "warmup_steps": 2,
    "save_every": 100,
    "keep_checkpoints": 1,
    "ema": 0.9,
}


def test_a_run_resumed_with_twice_the_steps_ends_as_one_that_had_them_from_the_start(
    made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    grown, whole, heard = tmp_path / "grown", tmp_path / "whole", Listening()
    # A step of 8 images does not fit the map: enough steps for that do not depend on the run's length.
    shared = {**WSD, "projection": "pca"}
    train_of(made.cache, tiny_student, grown, steps=12, **shared)
    names = sorted(path.name for path in (grown / "checkpoints").iterdir())
    assert names == ["step-0000008", "step-0000012"]  # where the decay began, and the last
    rates = [line["lr"] for line in metrics_of(grown)]
    assert rates[2:8] == [1e-3] * 6
    assert rates[8:] == sorted(rates[8:], reverse=True)
    train_of(made.cache, tiny_student, grown, steps=24, progress=heard, **shared)
    assert "the decay to step 12 is undone: the training goes on after step 8" in heard.said
    train_of(made.cache, tiny_student, whole, steps=24, **shared)
    assert_same_run(grown, whole)


def test_a_run_without_a_checkpoint_from_before_its_decay_cannot_grow(
    made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train_of(made.cache, tiny_student, run, steps=8, **WSD)
    shutil.rmtree(run / "checkpoints" / "step-0000004")
    with pytest.raises(SettingError) as refused:
        train_of(made.cache, tiny_student, run, steps=12, **WSD)
    assert str(refused.value) == (
        f"{run} has no checkpoint from before its decay, which began after step 4, so it cannot grow; start "
        "another run with --init-from"
    )
    assert (run / "checkpoints" / "step-0000008").is_dir()


def test_a_run_whose_warm_up_takes_the_place_of_its_decay_can_grow(
    made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = {**WSD, "decay_steps": None, "warmup_steps": 9}
    train_of(
        made.cache, tiny_student, run, steps=11, **settings
    )  # 2 fit the map: none is left to decay
    train_of(made.cache, tiny_student, run, steps=16, **settings)
    assert [line["lr"] for line in metrics_of(run)][10:12] == [1e-3] * 2


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"decay_steps": 20}, "decay_steps 20 is more than the 9 steps after the warm-up"),
        ({"wandb": "teachers"}, "--wandb needs the package wandb, which is not installed"),
    ],
)
def test_a_run_that_is_refused_to_grow_keeps_its_decay(
    wrong: dict[str, Any],
    said: str,
    made: Made,
    tiny_student: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"
    train_of(made.cache, tiny_student, run, steps=8, **WSD)
    config = (run / "config.yaml").read_text()
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SettingError, match=said):
        train_of(made.cache, tiny_student, run, steps=12, **{**WSD, **wrong})
    assert (run / "checkpoints" / "step-0000008").is_dir()
    assert (run / "config.yaml").read_text() == config


# -- begun with the weights of another run


@pytest.mark.parametrize(
    ("end", "name"),
    [
        ("", "step-0000012/model"),
        ("/step-0000008", "step-0000008/model"),
        ("/8", "step-0000008/model"),
        ("/ema", "step-0000012/ema"),
        ("/best", "best"),
    ],
)
def test_a_run_begins_with_the_weights_of_another(
    end: str, name: str, watched: Path, made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train_of(made.cache, tiny_student, run, init_from=f"{watched}{end}", steps=2, lr=1e-12)
    if name == "best":
        name = f"best-{state_of(watched)['best']['step']:07d}/model"
    expected = load_file(watched / "checkpoints" / f"{name}.safetensors")
    model = {name: tensor for name, tensor in expected.items() if name.startswith("model.")}
    found = load_file(run / "checkpoints" / "step-0000002" / "model.safetensors")
    for name, tensor in model.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)
    if end != "":
        return
    before = json.loads((run / "evaluation.json").read_text())["before"]
    line = metrics_of(watched)[11]
    assert before["soft_loss_excess"] == pytest.approx(line["eval_soft_loss_excess"], rel=1e-5)


def test_weights_to_begin_with_that_are_not_there_are_named(
    watched: Path, made: Made, tiny_student: Path, naflex_student: Path, tmp_path: Path
) -> None:
    for given, student, said in (
        (
            tmp_path,
            tiny_student,
            f"init_from {tmp_path} is no run: neither it nor the folder above has",
        ),
        (
            watched / "7",
            tiny_student,
            f"{watched} has no checkpoint of step 7; it has those of 8, 12",
        ),
        (
            watched / "model",
            tiny_student,
            "init_from .*/model ends with 'model', which is no step, best or",
        ),
        (
            watched,
            naflex_student,
            "init_from .* is of another architecture than the student: model.visi",
        ),
    ):
        with pytest.raises(TrainError, match=said):
            train_of(made.cache, student, tmp_path / "run", init_from=str(given))
        shutil.rmtree(tmp_path / "run", ignore_errors=True)


# -- exported


@pytest.mark.parametrize(
    ("flags", "name", "said"),
    [
        ((), "step-0000012/model", "the weights after step 12"),
        (("--step", 8), "step-0000008/model", "the weights after step 8"),
        (("--ema",), "step-0000012/ema", "moving average of the weights after step 12"),
        (("--ema", "--step", 8), "step-0000008/ema", "moving average of the weights after step 8"),
    ],
)
def test_any_checkpoint_leaves_as_a_model(
    flags: tuple[object, ...], name: str, said: str, watched: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "out"
    assert command("export", "model", watched, out, *flags) == (
        0,
        f"model      {out}: {said}\n",
        "",
    )
    expected = load_file(watched / "checkpoints" / f"{name}.safetensors")
    assert_equal(expected, model_of(out))
    notes = json.loads((out / "siglip2_cache.json").read_text())
    assert (notes["steps"], notes["weights"]) == (
        int(name[5:12]),
        "ema" if name.endswith("ema") else "model",
    )


def test_the_best_leaves_as_the_model_of_the_run_with_its_results_and_map(
    watched: Path, made: Made, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "out"
    status, _, err = command("export", "model", watched, out, "--best")
    assert (status, err) == (0, "")
    for name in ("model.safetensors", "README.md", "tokenizer.json", "config.json"):
        assert (out / name).read_bytes() == (watched / "model" / name).read_bytes(), name
    status, text, _ = command("eval", out, made.cache, "--json", "--decode-workers", 0)
    assert status == 0
    found = json.loads(text)["columns"]["model"]
    after = json.loads((watched / "evaluation.json").read_text())["after"]
    assert found["image_cosine"] == pytest.approx(after["image_cosine"], abs=1e-4)
    assert "## Results" in (out / "README.md").read_text()
    command("export", "model", watched, tmp_path / "other", "--step", 8)
    assert "## Results" not in (tmp_path / "other" / "README.md").read_text()


def test_a_running_training_can_be_exported(
    made: Made, tiny_student: Path, tmp_path: Path, command: Command
) -> None:
    run, out, found = tmp_path / "run", tmp_path / "out", list[Any]()

    def export(metrics: Any) -> None:
        if metrics["step"] == 3:
            found.append(command("export", "model", run, out))

    train_of(made.cache, tiny_student, run, progress=Listening(export), save_every=2)
    assert found == [(0, f"model      {out}: the weights after step 2\n", "")]


def test_an_image_tower_leaves_with_the_teachers_text_tower_that_was_named_later(
    made: Made, tiny_student: Path, tmp_path: Path, command: Command
) -> None:
    from transformers import AutoModel

    run, out = tmp_path / "run", tmp_path / "out"
    train_of(made.cache, tiny_student, run, towers="image")
    assert type(AutoModel.from_pretrained(run / "model")).__name__ == "SiglipVisionModel"
    moved = shutil.copytree(made.cache, tmp_path / "moved")
    flags = ("--teacher-text", made.teacher, "--cache", moved)
    status, _, err = command("export", "model", run, out, *flags)
    assert (status, err) == (0, "")
    train_of(made.cache, tiny_student, run, towers="image", teacher_text=str(made.teacher))
    assert type(AutoModel.from_pretrained(run / "model")).__name__ == "SiglipModel"
    assert_equal(model_of(out), model_of(run / "model"))


def test_what_cannot_be_exported_is_named_and_nothing_is_written(
    watched: Path, tmp_path: Path, command: Command
) -> None:
    out, foreign = tmp_path / "out", tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    for arguments, said in (
        (
            (tmp_path, out),
            f"{tmp_path} is no run: it has no config.yaml; name the --out of a training",
        ),
        (
            (watched, out, "--step", 7),
            f"{watched} has no checkpoint of step 7; it has those of 8, 12",
        ),
        ((watched, out, "--best", "--ema"), "--best and --ema both say which weights: give one"),
        (
            (watched, watched / "model"),
            f"{watched / 'model'} is in the run {watched}, which its training writes; name a folder "
            "elsewhere",
        ),
        ((watched, out, "--cache", tmp_path / "no"), f"no cache at {tmp_path / 'no'}: there is"),
        (
            (watched, foreign),
            f"{foreign} exists without siglip2_cache.json, so it is no earlier export and is not replaced; "
            "name another folder, or remove it",
        ),
    ):
        assert error_line(*command("export", "model", *arguments)).startswith(said)
    assert not out.exists()
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]
