"""The guided tour with a command line that only notes what it is asked for."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from kit.tours import typed_commands, words_of

from siglip2_cache.demo.steps import COMMAND, Step, TourConfig, checkpoint, tour_steps
from siglip2_cache.demo.tour import run_tour
from siglip2_cache.errors import SettingError


class CommandLine:
    """Notes the arguments of each command; stops the tour at the one named."""

    def __init__(self, stop_at: str, status: int = 130) -> None:
        self.stop_at, self.status = stop_at, status
        self.asked: list[list[str]] = []

    def __call__(self, arguments: Sequence[str]) -> int:
        self.asked.append(list(arguments))
        print(f"ran {arguments[0]}")
        return self.status if arguments[0] == self.stop_at else 0


def quick(out: Path, seed: int = 0) -> TourConfig:
    return TourConfig(out=out, seed=seed, is_quick=True)


def stopped_tour(out: Path, *, stop_at: str = "build") -> CommandLine:
    """A tour up to a command that fails."""
    command_line = CommandLine(stop_at)
    assert run_tour(quick(out), command_line) == 130
    return command_line


def test_a_command_is_printed_as_it_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "it's a folder"
    asked = stopped_tour(out, stop_at="eval").asked
    printed = [words_of(command) for command in typed_commands(capsys.readouterr().out)]
    ours = [words[1:] for words in printed if words[0] == "siglip2-cache"]
    evaluation = ours[-1]
    assert evaluation[-2:] == [">", str(out / "eval-start.json")]
    assert [*ours[:-1], evaluation[:-2]] == asked
    corpora = [words for words in printed if words[0] == "python"]
    assert [words[3] for words in corpora] == [str(out / "scenes"), str(out / "held-out")]
    assert all(words[1:3] == ["-m", "siglip2_cache.demo.corpus"] for words in corpora)


def test_a_long_command_is_broken_where_an_option_begins() -> None:
    step = Step(
        purpose="",
        program=COMMAND,
        arguments=("train", "c" * 60, "--student", "s" * 60, "--out", "a run", "--lr", "1e-3"),
        into=Path("found.json"),
    )
    assert step.as_typed() == (
        f"siglip2-cache train {'c' * 60} \\\n"
        f"    --student {'s' * 60} --out 'a run' --lr 1e-3 \\\n"
        "    > found.json"
    )


def test_a_seed_goes_into_everything_that_is_drawn() -> None:
    steps = tour_steps(TourConfig(out=Path("out"), seed=7))
    drawn = {"--seed 7": 0, "--key held-out-7-000003": 0}
    for step in steps:
        for words in drawn:
            drawn[words] += words in step.as_typed()
    assert drawn == {
        "--seed 7": 5,
        "--key held-out-7-000003": 1,
    }  # two corpora, verify, two trainings


def test_a_shipped_model_is_named_from_the_current_folder_where_it_lies_below(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = checkpoint("teacher")
    assert folder.is_absolute()
    monkeypatch.chdir(folder.parents[2])
    assert checkpoint("teacher") == Path("demo/checkpoints/teacher")
    assert (checkpoint("student") / "config.json").is_file()


def test_a_tour_ends_where_a_command_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command_line = CommandLine("verify", status=1)
    assert run_tour(quick(tmp_path / "out"), command_line) == 1
    assert [arguments[0] for arguments in command_line.asked] == [
        "build",
        "build",
        "info",
        "verify",
    ]
    assert "Result" not in capsys.readouterr().out


def test_what_a_command_prints_goes_where_the_printed_command_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class EndedError(Exception):
        pass

    class AtThePage(CommandLine):
        def __call__(self, arguments: Sequence[str]) -> int:
            if "--html" in arguments:
                raise EndedError
            return super().__call__(arguments)

    out = tmp_path / "out"
    with pytest.raises(EndedError):
        run_tour(quick(out), AtThePage("nothing"))
    assert (out / "eval-distilled.json").read_text() == "ran eval\n"
    said = capsys.readouterr().out
    assert "ran train" in said
    assert "ran eval" not in said


def test_a_failed_command_leaves_no_output_file(tmp_path: Path) -> None:
    stopped_tour(tmp_path / "out", stop_at="eval")
    assert not list((tmp_path / "out").glob("eval-*"))


def test_a_second_tour_leaves_finished_scenes_alone_and_makes_unfinished_ones_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    stopped_tour(out)
    (out / "held-out" / "captions.jsonl").unlink()  # as if killed while images were drawn
    before = (out / "scenes" / "captions.jsonl").stat()
    capsys.readouterr()
    stopped_tour(out)
    said = capsys.readouterr().out
    assert f"already done: {out / 'scenes' / 'captions.jsonl'} exists" in said
    assert f"incomplete, writing it again: {out / 'held-out'}" in said
    assert (out / "scenes" / "captions.jsonl").stat() == before
    assert len((out / "held-out" / "captions.jsonl").read_text("utf-8").splitlines()) == 100


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(SettingError, match=r"has thesis\.tex and no demo\.json.*--out$"):
        stopped_tour(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match=r"file is a file; name a folder with --out$"):
        stopped_tour(tmp_path / "file")


def test_a_tour_with_another_seed_is_refused_with_both(tmp_path: Path) -> None:
    stopped_tour(tmp_path / "out")
    with pytest.raises(SettingError, match=r"with seed: 0, images: 400.*not seed: 1, images"):
        run_tour(quick(tmp_path / "out", seed=1), CommandLine("build"))


def test_settings_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text('{"seed": ')
    with pytest.raises(
        SettingError, match=r"demo\.json cannot be read \(Expecting value.*; remove "
    ):
        stopped_tour(tmp_path)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(SettingError, match="--seed must be at least 0, got -1"):
        TourConfig(out=Path("out"), seed=-1)


def test_quick_is_a_tenth_of_all(tmp_path: Path) -> None:
    full, short = TourConfig(out=tmp_path), quick(tmp_path)
    for name in ("num_images", "num_held_out", "num_steps"):
        assert getattr(full, name) == 10 * getattr(short, name)


def test_the_settings_are_kept_beside_what_they_made(tmp_path: Path) -> None:
    stopped_tour(tmp_path / "out")
    found = json.loads((tmp_path / "out" / "demo.json").read_text())
    assert found == {"seed": 0, "images": 400, "steps": 40}


def test_torch_is_told_to_use_one_thread_before_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Threads(CommandLine):
        def __call__(self, arguments: Sequence[str]) -> int:
            print(f"threads: {os.environ.get('OMP_NUM_THREADS')}")
            return super().__call__(arguments)

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    run_tour(quick(tmp_path / "one"), Threads("build"))
    said = capsys.readouterr().out
    assert "threads: 1" in said
    assert "export OMP_NUM_THREADS=1" in typed_commands(said)
    assert "OMP_NUM_THREADS" not in os.environ

    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    run_tour(quick(tmp_path / "own"), Threads("build"))
    said = capsys.readouterr().out
    assert "threads: 3" in said
    assert "export OMP_NUM_THREADS" not in said

    code = "import siglip2_cache.demo.tour, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_tour_that_ends_early_says_how_to_resume_and_how_to_begin_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped_tour(tmp_path)
    assert capsys.readouterr().out.splitlines()[-1] == (
        "the tour ended at step 3; to resume it run the demo again, to start anew remove "
        f"{tmp_path} first"
    )
