"""A run's folder: one process at a time, whole checkpoints, each step's metrics once."""

import errno
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from siglip2_cache.errors import DamagedCacheError, DiskFullError, SettingError, TrainError
from siglip2_cache.student.export import atomic_folder
from siglip2_cache.student.training.checkpoints import Best, SavedState
from siglip2_cache.student.training.run_folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    folder = RunFolder(tmp_path / "run")
    yield folder
    folder.close()


def saved(step: int) -> SavedState:
    model = {"a.weight": torch.full((2, 3), float(step)), "b": torch.tensor([step / 3])}
    return SavedState(step, {"catalog": "abc"}, model, {"b:exp_avg": torch.tensor([1.0 / step])})


def names_of(run: RunFolder) -> list[str]:
    return sorted(path.name for path in (run.root / "checkpoints").iterdir())


# -- the lock


def test_a_second_process_is_refused_while_one_trains_there(run: RunFolder) -> None:
    with pytest.raises(TrainError) as refused:
        RunFolder(run.root)
    expected = f"another process trains in {run.root}; wait for it, or name another --out"
    assert str(refused.value) == expected
    run.close()
    RunFolder(run.root).close()


def test_a_folder_of_somebody_is_refused_and_nothing_is_written_there(tmp_path: Path) -> None:
    (tmp_path / "cache.json").write_text("{}")
    with pytest.raises(SettingError) as refused:
        RunFolder(tmp_path)
    assert str(refused.value) == (
        f"{tmp_path} holds cache.json and no config.yaml, so it is no run; name a new folder by --out"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["cache.json"]


# -- metrics


def write_metrics(run: RunFolder, text: str) -> Path:
    path = run.root / "metrics.jsonl"
    path.write_text(text)
    return path


def test_metrics_after_the_last_checkpoint_are_dropped_and_made_again(run: RunFolder) -> None:
    run.write_config("steps: 5")
    run.start_metrics(0)
    for step in range(1, 6):
        run.add_metrics({"step": step, "loss": 1 / step})
    run.close()
    again = RunFolder(run.root)
    again.start_metrics(3)
    again.add_metrics({"step": 4, "loss": 0.5})
    assert [(line["step"], line["loss"]) for line in again.metrics()] == [
        (1, 1.0),
        (2, 0.5),
        (3, 1 / 3),
        (4, 0.5),
    ]
    again.close()


@pytest.mark.parametrize(
    "torn", ['{"step": 3, "lo', '{"step": 3', '{"step": 3}', "\0\0\0\n", "x\n"]
)
def test_a_torn_line_is_dropped(run: RunFolder, torn: str) -> None:
    path = write_metrics(run, '{"step": 1}\n{"step": 2}\n' + torn)
    run.start_metrics(3)
    run.add_metrics({"step": 3})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'


def test_a_key_with_characters_like_line_ends_stays_in_its_line(run: RunFolder) -> None:
    line = {"step": 1, "nonfinite_keys": ["a\u2028b\u2029c\x85d\re"]}
    write_metrics(run, json.dumps(line, ensure_ascii=False) + "\n")
    run.start_metrics(1)
    assert run.metrics() == [line]


def test_a_line_is_on_disk_when_the_step_is_made(run: RunFolder) -> None:
    run.start_metrics(0)
    run.add_metrics({"step": 1, "loss": 0.25})
    assert json.loads((run.root / "metrics.jsonl").read_text()) == {"step": 1, "loss": 0.25}


# -- checkpoints


def test_a_checkpoint_comes_back_bit_for_bit(run: RunFolder) -> None:
    assert run.checkpoints.load_newest() is None
    run.checkpoints.save(saved(7), keep=2)
    found = run.checkpoints.load_newest()
    assert found is not None
    assert (found.step, found.state) == (7, {"step": 7, "best": None, "catalog": "abc"})
    for name, tensor in saved(7).model.items():
        assert torch.equal(found.model[name], tensor)
    assert torch.equal(found.optimizer["b:exp_avg"], torch.tensor([1.0 / 7]))


def test_only_the_newest_checkpoints_are_kept(run: RunFolder) -> None:
    for step in (5, 10, 15, 20):
        run.checkpoints.save(saved(step), keep=2)
    assert names_of(run) == ["step-0000015", "step-0000020"]
    found = run.checkpoints.load_newest()
    assert found is not None
    assert found.step == 20


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_gone_on_from(
    run: RunFolder, name: str, damage: str
) -> None:
    run.checkpoints.save(saved(5), keep=2)
    run.checkpoints.save(saved(10), keep=2)
    folder = run.root / "checkpoints" / "step-0000010"
    if damage == "cut":
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
    elif name != "state.json":  # a folder without it is none that was finished
        (folder / name).unlink()
    else:
        (folder / name).unlink()
        (folder / name).mkdir()
        found = run.checkpoints.load_newest()
        assert found is not None
        assert found.step == 5
        return
    with pytest.raises(DamagedCacheError) as refused:
        run.checkpoints.load_newest()
    said = str(refused.value)
    assert said.startswith(f"{folder} is damaged (")
    assert said.endswith("); remove it to resume from the checkpoint before it")
    shutil.rmtree(folder)
    found = run.checkpoints.load_newest()
    assert found is not None
    assert found.step == 5


def test_what_a_killed_save_left_is_not_taken_for_a_checkpoint_and_goes(run: RunFolder) -> None:
    run.checkpoints.save(saved(5), keep=2)
    shutil.copytree(
        run.root / "checkpoints" / "step-0000005", run.root / "checkpoints" / "step-0000010.partial"
    )
    (run.root / "checkpoints" / "step-0000008").mkdir()  # killed as it was pruned
    found = run.checkpoints.load_newest()
    assert found is not None
    assert found.step == 5
    run.checkpoints.save(saved(12), keep=2)  # another save_every than the killed one's
    assert names_of(run) == ["step-0000005", "step-0000012"]


def test_a_save_that_fails_leaves_what_was_there(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.checkpoints.save(saved(5), keep=1)

    def fail(folder: Path) -> None:
        raise OSError("no more")

    monkeypatch.setattr(atomic_folder, "_sync", fail)
    with pytest.raises(OSError, match="no more"):
        run.checkpoints.save(saved(10), keep=1)
    assert names_of(run) == ["step-0000005"]


def test_weights_are_known_by_their_bytes(run: RunFolder) -> None:
    with pytest.raises(TrainError, match="has no checkpoint yet; train longer"):
        run.checkpoints.weights()
    seen: set[str] = set()
    for step in (5, 10):
        run.checkpoints.save(saved(step), keep=2)
        seen.add(run.checkpoints.weights().sha256())
    assert len(seen) == 2
    run.checkpoints.save(saved(10), keep=2)
    assert run.checkpoints.weights().sha256() in seen


def test_weights_of_a_step_the_best_and_the_average_are_found_or_the_lack_is_named(
    run: RunFolder,
) -> None:
    checkpoints = run.checkpoints
    run.save_checkpoint(saved(5), keep=3)
    with pytest.raises(
        TrainError, match="no step up to 5 was evaluated; make more steps with --eval-every"
    ):
        checkpoints.weights("best")
    with pytest.raises(
        TrainError, match=r"step-0000005 has no moving average; make more steps with --ema"
    ):
        checkpoints.weights("ema")
    best = Best(7, "ema", "mean_r1", 0.5)
    run.save_best(best, {"w": torch.tensor([7.5])})
    average = {"w": torch.tensor([9.0])}
    run.save_checkpoint(replace(saved(10), best=best, ema=average), keep=3)
    found = checkpoints.weights("best")
    assert (found.step, found.kind, found.load()) == (7, "ema", {"w": torch.tensor([7.5])})
    assert checkpoints.weights("ema").load() == average
    assert checkpoints.weights(step=5).load().keys() == saved(5).model.keys()
    with pytest.raises(TrainError, match="no checkpoint of step 6; it has those of 5, 10"):
        checkpoints.weights(step=6)
    found = checkpoints.load_newest()
    assert found is not None
    assert (found.best, found.ema) == (best, average)


def test_best_weights_stay_while_a_checkpoint_refers_to_them(run: RunFolder) -> None:
    for step, of in ((10, 8), (20, 8), (30, 25), (40, 25), (50, 45)):
        best = Best(of, "model", "mean_r1", of / 100)
        run.save_best(best, {"w": torch.tensor([1.0])})
        run.save_checkpoint(replace(saved(step), best=best), keep=2, also=[20])
        kept = [name for name in names_of(run) if name.startswith("best")]
        expected = {10: [8], 20: [8], 30: [8, 25], 40: [8, 25], 50: [8, 25, 45]}[step]
        assert kept == [f"best-{each:07d}" for each in expected]
    assert run.checkpoints.steps() == [20, 40, 50]


def test_weights_that_a_training_removed_meanwhile_are_named(run: RunFolder) -> None:
    run.save_checkpoint(saved(5), keep=1)
    found = run.checkpoints.weights()
    run.save_checkpoint(saved(10), keep=1)
    for act in (found.load, found.sha256):
        with pytest.raises(
            TrainError, match=r"step-0000005 was removed meanwhile, .* same command"
        ):
            act()


# -- a folder or a disk that fails


def test_a_folder_that_was_moved_is_named_and_nothing_is_written_elsewhere(run: RunFolder) -> None:
    run.start_metrics(0)
    run.save_checkpoint(saved(5), keep=1)
    moved = run.root.rename(run.root.with_name("moved"))
    for act in (
        lambda: run.save_checkpoint(saved(10), keep=1),
        lambda: run.add_metrics({"step": 6}),
    ):
        with pytest.raises(TrainError) as refused:
            act()
        assert str(refused.value) == (
            f"{run.root} was removed or moved while a training wrote there; move it back and run the same "
            "command again, or start another run"
        )
    assert not run.root.exists()
    moved.rename(run.root)
    run.save_checkpoint(saved(10), keep=1)
    assert run.checkpoints.steps() == [10]


def test_another_folder_in_its_place_is_not_written(run: RunFolder) -> None:
    run.root.rename(run.root.with_name("moved"))
    RunFolder(run.root).close()
    with pytest.raises(TrainError, match="was removed or moved"):
        run.save_checkpoint(saved(10), keep=1)


def test_a_full_disk_is_named_and_the_last_checkpoint_stays(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.start_metrics(0)
    run.save_checkpoint(saved(5), keep=1)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic_folder, "_sync", fail)
    with pytest.raises(
        DiskFullError, match=r"no space left .* while writing step-0000010; free some"
    ):
        run.save_checkpoint(saved(10), keep=1)
    monkeypatch.setattr(run, "_metrics", Path("/dev/full").open("w"))  # noqa: SIM115 - closed by the run
    with pytest.raises(
        DiskFullError, match=r"cannot be written \(.*No space left.*the last checkpoint"
    ):
        run.add_metrics({"step": 6})
    run.close()  # what could not be written is no second error
    assert run.checkpoints.steps() == [5]


# -- settings


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "config.yaml cannot be read: while parsing"),
        ("- 1", "config.yaml holds no settings; restore it, or name another --out"),
        ("", "config.yaml holds no settings; restore it, or name another --out"),
    ],
)
def test_settings_that_cannot_be_read_are_named(run: RunFolder, text: str, said: str) -> None:
    assert run.read_config() is None
    (run.root / "config.yaml").write_text(text)
    with pytest.raises(TrainError) as refused:
        run.read_config()
    assert said in str(refused.value)


ODD = [
    b"",
    b"\xff",
    b"null",
    b"[1]",
    b"3",
    b'"step"',
    b"{",
    b"[" * 100_000,
    b'{"step": "1"}\n',
    b"{}\n",
]


@pytest.mark.parametrize("data", ODD)
def test_whatever_the_files_of_a_run_hold_the_error_is_ours(tmp_path: Path, data: bytes) -> None:
    """A run of somebody else, or one that was damaged."""
    run = RunFolder(tmp_path)
    weights = {"w": torch.zeros(1)}
    run.checkpoints.save(SavedState(3, {}, weights, weights), keep=1)
    for name in (
        "evaluation.json",
        "run.json",
        "metrics.jsonl",
        "checkpoints/step-0000003/state.json",
    ):
        (tmp_path / name).write_bytes(data)
    run.read_evaluation()
    is_object = data.strip().endswith(b"}")
    if not is_object:
        with pytest.raises(TrainError, match=r"run\.json is missing or damaged"):
            run.read_facts()
        with pytest.raises(DamagedCacheError, match="step-0000003 is damaged"):
            run.checkpoints.load_newest()
    run.start_metrics(3)
    assert run.metrics() == []
    run.close()
