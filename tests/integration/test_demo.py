"""siglip2-cache demo as a newcomer meets it: one quick tour, and what it leaves."""

import os
import re
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from kit.commands import error_line, run
from kit.patience import PATIENCE_S
from kit.tours import typed_commands, words_of
from PIL import Image

OUT = "my demo"

Command = Callable[..., tuple[int, str, str]]


@dataclass(frozen=True)
class Tour:
    """What a tour printed, and the folder it was run in; read it, do not change it."""

    home: Path
    stdout: str

    @property
    def out(self) -> Path:
        return self.home / OUT

    @property
    def table(self) -> list[str]:
        """The lines below Result, down to the first empty one."""
        lines = self.stdout.splitlines()
        return lines[lines.index("Result") + 1 :][:7]


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Tour:
    home = tmp_path_factory.mktemp("tour")
    done = run("demo", "--quick", "--out", OUT, cwd=home)
    assert done.returncode == 0, done.stderr
    return Tour(home, done.stdout)


def test_the_table_compares_four_models(tour: Tour) -> None:
    header, *rows = tour.table
    assert re.split(r"\s{2,}", header.strip()) == [
        "teacher",
        "start",
        "contrastive only",
        "distilled",
    ]
    labels = [re.split(r"\s{2,}", row)[0] for row in rows]
    assert labels[0] == "image to text, R@1"
    assert labels[-1] == "parameters"
    teacher, start, *_ = map(float, rows[0].split()[-4:])
    assert teacher > 0.9 > start > 0  # of 100 scenes


def test_the_verdict_is_of_the_numbers_shown_and_quick_says_what_they_are_worth(tour: Tour) -> None:
    text = " ".join(tour.stdout.split())
    found = re.search(r"The distilled student .* R@1 is ([\d.]+) against ([\d.]+)", text)
    assert found is not None
    rows = [row.split()[-4:] for row in tour.table if ", R@1" in row]
    contrastive, distilled = (sum(float(row[i]) for row in rows) / 2 for i in (2, 3))
    assert float(found[1]) == pytest.approx(distilled, abs=0.002)
    assert float(found[2]) == pytest.approx(contrastive, abs=0.002)
    assert "With --quick the results mean little" in text


def test_every_command_was_shown(tour: Tour) -> None:
    words = [words_of(command) for command in typed_commands(tour.stdout)]
    ours = [each[1] for each in words if each[0] == "siglip2-cache"]
    assert ours == [
        *("build", "build", "info", "verify", "mismatched", "train", "train"),
        *("eval", "eval", "eval", "neighbors"),
    ]
    for shown in (
        "embedded   400 images",
        "verified: no fault",
        "trained    40 of 40 steps",
        "page  ",
    ):
        assert shown in tour.stdout


def test_shown_commands_run_in_a_shell(tour: Tour, tmp_path: Path) -> None:
    commands = typed_commands(tour.stdout)
    [corpus] = [each for each in commands if "--held-out" in each]
    [info] = [each for each in commands if " info " in each]
    (tmp_path / "tour").symlink_to(tour.home)
    script = "\n".join(
        [
            "set -e",
            *(each for each in commands if each.startswith("export ")),
            "cd tour",
            info,
            "cd ..",
            corpus,
        ]
    )
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    assert "teacher    teacher: complete" in done.stdout
    table = (OUT, "held-out", "captions.jsonl")
    assert tmp_path.joinpath(*table).read_bytes() == tour.home.joinpath(*table).read_bytes()


def test_page_picture_and_student_are_where_it_says(tour: Tour) -> None:
    for name in ("neighbors.html", "result.png", "distilled/model", "scenes-cache"):
        assert f"{OUT}/{name}" in tour.stdout
    assert (tour.out / "neighbors.html").read_text("utf-8").count("data:image/") > 20
    with Image.open(tour.out / "result.png") as picture:
        picture.load()
    assert (tour.out / "distilled" / "model" / "model.safetensors").is_file()
    assert not list(tour.out.rglob("*.partial"))


def test_the_report_that_it_proposes_shows_the_training_and_the_test_scenes(
    tour: Tour, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tour.home)
    [line] = [line for line in tour.stdout.splitlines() if line.startswith("more  ")]
    program, *arguments = shlex.split(line.removeprefix("more"))
    assert program == "siglip2-cache"
    status, out, err = command(*arguments, "--quiet")
    assert (status, err) == (0, "")
    assert "Where it fails" in out
    assert f"page       {OUT}/report.html" in out
    (tour.out / "report.html").unlink()


def test_a_second_tour_finds_all_done_and_shows_the_same_result(
    tour: Tour, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tour.home)
    model = tour.out / "distilled" / "model" / "model.safetensors"
    before = model.stat()
    status, out, err = command("demo", "--quick", "--out", OUT, "--quiet")
    assert (status, err) == (0, "")  # without progress
    assert out.count("already done: ") == 2
    assert out.count("nothing left to do: all 40 steps are done") == 2
    assert Tour(tour.home, out).table == tour.table
    assert model.stat() == before


def test_a_full_tour_in_the_folder_of_a_quick_one_is_refused_in_one_line(tour: Tour) -> None:
    done = run("demo", "--out", OUT, cwd=tour.home)
    message = error_line(done.returncode, done.stdout, done.stderr)
    assert message == (
        f"{OUT} is the folder of a demo with seed: 0, images: 400, steps: 40, not seed: 0, images: 4000, "
        "steps: 400; remove it, or name another folder with --out"
    )


def test_the_last_line_but_one_removes_all_of_it(tour: Tour, tmp_path: Path) -> None:
    [line] = [line for line in tour.stdout.splitlines() if line.startswith("total      ")]
    assert re.fullmatch(r"total      my demo, 1\d\.\d MB; to remove it: rm -r 'my demo'", line)
    (tmp_path / OUT / "scenes").mkdir(parents=True)
    subprocess.run(["bash", "-c", line.partition("remove it: ")[2]], cwd=tmp_path, check=True)
    assert not os.listdir(tmp_path)
