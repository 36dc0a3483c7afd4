"""Every path of every command: ``~`` is the home folder, whoever wrote it."""

import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from siglip2_cache.cli import app
from siglip2_cache.commands import options
from siglip2_cache.commands.train import train
from siglip2_cache.student.config import SETTINGS, TrainConfig

SAYS_PATH = re.compile(r"\b(files?|folders?|paths?|URL|moved)\b", re.IGNORECASE)
NO_PATHS = {"caption_ending", "image_bytes", "image_column"}
"""Texts whose help speaks of files, and which are none."""


def parameters() -> Iterator[tuple[str, str, Any, Any]]:
    """Yield (command, name, type, typer's settings) of every parameter."""
    groups = [group.typer_instance for group in app.registered_groups]
    for command in [each for group in (app, *groups) for each in group.registered_commands]:
        assert command.callback is not None
        for name, parameter in inspect.signature(
            command.callback, eval_str=True
        ).parameters.items():
            is_setting = command.callback is train and name in SETTINGS  # make_config has its paths
            if parameter.annotation is not typer.Context and not is_setting:
                kind, settings = typing.get_args(parameter.annotation)
                yield command.callback.__name__, name, kind, settings


def types_in(hint: Any) -> set[Any]:
    """Return the types of a hint such as ``list[str] | None``."""
    return {hint}.union(*(types_in(each) for each in typing.get_args(hint)))


def test_every_path_of_a_command_is_declared_as_one() -> None:
    parsers = {Path: options.local_path, str: options.path}
    found: list[str] = []
    num_paths = 0
    for command, name, kind, settings in parameters():
        [taken] = parsers.keys() & types_in(kind) or {None}
        says_path = SAYS_PATH.search(settings.help or "") and name not in NO_PATHS
        if taken is Path or (taken is str and says_path):
            num_paths += 1
            if settings.parser is not parsers[taken]:
                found.append(f"{command} {name}")
    assert not found
    assert num_paths > 20


def test_a_path_that_a_command_takes_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    given: list[Any] = []
    monkeypatch.setattr("siglip2_cache.demo.tour.run_tour", lambda config, _: given.append(config))
    app(["demo", "--out=~/tour"], standalone_mode=False)
    app(["demo"], standalone_mode=False)
    assert [config.out for config in given] == [tmp_path / "tour", Path("siglip2-cache-demo")]


def test_a_path_that_train_takes_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    given: list[TrainConfig] = []

    def stop(config: TrainConfig, **_: Any) -> None:
        given.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("siglip2_cache.student.training.trainer.train", stop)
    paths = ["--student=~/s", "--out=~/r", "--teacher-text=~/t", "--cache-dir=~/d"]
    roots = "--corpus-root=~/old=~/new"
    app(["train", "~/c", *paths, roots, "--towers=image"], standalone_mode=False)
    [config] = given
    assert (config.cache, config.out) == (tmp_path / "c", tmp_path / "r")
    assert (config.student, config.teacher_text) == (f"{tmp_path}/s", f"{tmp_path}/t")
    assert config.cache_dir == tmp_path / "d"
    assert config.corpus_roots == {f"{tmp_path}/old": f"{tmp_path}/new"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("~/a", "HOME/a"),
        ("~", "HOME"),
        ("NAME=~/a b", "NAME=HOME/a b"),
        ("~/old=~/new", "~/old=HOME/new"),
        ("google/siglip2-base-patch16-224", "google/siglip2-base-patch16-224"),
        ("s3://bucket/~/a", "s3://bucket/~/a"),
        ("a/~/b", "a/~/b"),
        ("./~", "./~"),
        ("", ""),
    ],
)
def test_a_tilde_is_the_home_folder_only_where_a_path_begins(
    monkeypatch: pytest.MonkeyPatch, text: str, expected: str
) -> None:
    monkeypatch.setenv("HOME", "/home/of someone")
    assert options.path(text) == expected.replace("HOME", "/home/of someone")


def test_both_sides_of_a_moved_corpus_may_begin_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    roots = options.parse_roots([options.path("~/old=~/new")])
    assert roots == {f"{tmp_path}/old": f"{tmp_path}/new"}
