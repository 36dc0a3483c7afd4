"""The command line before a command does its work: version, help, what is wrong with it, precedence."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from siglip2_cache import __version__
from siglip2_cache.cli import app, main
from siglip2_cache.student.config import TrainConfig

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tmp_path(short_path: Path) -> Path:
    """Of a short name, for messages are cut."""
    return short_path


def test_the_version_is_that_of_the_package(command: Command) -> None:
    assert command("--version") == (0, f"siglip2-cache {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            ["build", "a", "b", "--teecher", "c"],
            "no such option: --teecher; did you mean --teacher? (see siglip2-cache build --help)",
            id="a typo of an option",
        ),
        pytest.param(
            ["bild"],
            "no such command: bild; did you mean build? (see siglip2-cache --help)",
            id="a typo of a command",
        ),
        pytest.param(
            ["export", "embedings", "CACHE"],
            "no such command: embedings; did you mean embeddings? (see siglip2-cache export --help)",
            id="a typo of a command below another",
        ),
        pytest.param(
            ["zzz"],
            "no such command: zzz; known are build, import, convert, estimate, info, verify, report, "
            "neighbors, duplicates, mismatched, outliers, agreement, index, train, eval, demo, doctor, "
            "export, student (see siglip2-cache --help)",
            id="no command",
        ),
        pytest.param(
            ["build", "a", "b"],
            "missing option '--teacher' (see siglip2-cache build --help)",
            id="an option missing",
        ),
        pytest.param(
            ["verify", "a", "--sample", "x"],
            "invalid value for '--sample': Input should be a valid integer",
            id="no integer",
        ),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exits_with_2(
    arguments: list[str], message: str, command: Command
) -> None:
    status, out, err = command(*arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {message}")


@pytest.mark.parametrize("arguments", [[], ["export"]])
def test_a_command_line_that_names_no_command_shows_the_help(
    arguments: list[str], command: Command
) -> None:
    status, out, _ = command(*arguments)
    assert status == 2
    assert "Usage: siglip2-cache " in out


def all_commands() -> Iterator[list[str]]:
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        yield [name]
        yield from ([name, below] for below in getattr(command, "commands", ()))


@pytest.mark.parametrize("words", [*all_commands()], ids=" ".join)
def test_help_is_free_of_types_that_say_nothing(
    words: list[str],
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    status, out, err = command(*words, "--help")
    assert (status, err) == (0, "")
    assert f"Usage: siglip2-cache {' '.join(words)} [OPTIONS] " in out
    assert not re.search(r"<\w+>|\[\[|\{", out.replace("{000..123}", "").replace("with {}", ""))


def test_train_takes_an_option_for_a_setting_only_where_it_is_given(
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "run.yaml").write_text(
        "seed: 7\nlr: 3e-4\nepochs: 3\nweights: {soft: 2, bank: 1}\ncompile: true\ndtype: float32\n"
    )
    given: list[TrainConfig] = []

    def stop(config: TrainConfig, **_: object) -> None:
        given.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("siglip2_cache.student.training.trainer.train", stop)
    said = command(
        *("train", tmp_path / "c", "--student", "s", "--out", tmp_path / "r"),
        *("--config", tmp_path / "run.yaml", "--seed", "0", "--steps", "9", "--weight", "bank=0"),
        *("--dtype", "auto", "--from-scratch"),
    )
    assert said == (130, "", "stopped; run the same command again to resume\n")
    assert given == [
        TrainConfig(
            cache=tmp_path / "c",
            student="s",
            out=tmp_path / "r",
            lr=3e-4,  # of the file
            compile=True,
            seed=0,  # given, though it is the default
            dtype="auto",
            steps=9,
            weights={"soft": 2.0, "bank": 0.0},
            from_scratch=True,
        )
    ]


def test_a_message_of_any_length_is_cut_in_the_middle_and_keeps_its_remedy(
    command: Command, tmp_path: Path
) -> None:
    long = "x" * 100_000
    for arguments, begins, ends in (
        (("estimate", "--images", long, "--teacher", "t"), "error: images 'xx", "1M or 1B\n"),
        (("info", tmp_path, "--nothing" + long), "error: no such option", "info --help)\n"),
        (("train", tmp_path, "--weight", long), "error: weight 'xx", " such as soft=1\n"),
    ):
        _, _, err = command(*arguments)
        last = err.rstrip("\n").rpartition("\n")[2]
        assert 250 < len(last) <= 310
        assert " ... " in last
        assert err.startswith(begins)
        assert err.endswith(ends)


def test_the_traceback_is_there_for_those_who_ask(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SIGLIP2_CACHE_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["siglip2-cache", "info", str(tmp_path / "nowhere")])
    with pytest.raises(FileNotFoundError, match="no cache at"):
        main()
