"""``siglip2-cache export model --push``: what gets to a hub on this machine, and what never does."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.commands import error_line
from kit.hub import TOKEN, Hub, running_hub
from kit.trainings import make_cache, train_of

from siglip2_cache.student.export import export

pytestmark = pytest.mark.usefixtures("one_thread")

Command = Callable[..., tuple[int, str, str]]
REPO = "org/student"


@pytest.fixture(scope="module")
def run(
    tiny_checkpoint: Path, tiny_student: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished run; read it, do not change it."""
    root = tmp_path_factory.mktemp("push")
    made = make_cache(root, tiny_checkpoint)
    train_of(made.cache, tiny_student, root / "run")
    return root / "run"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine, and a token for it."""
    import huggingface_hub

    with running_hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def files_of(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_an_export_gets_to_the_hub_whole_and_replaces_an_earlier_one(
    run: Path, hub: Hub, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "out"
    arguments = ("export", "model", run, out, "--push", REPO, "--private", "--json")
    status, said, err = command(*arguments)
    assert (status, err) == (0, ""), err
    assert json.loads(said)["pushed"] == f"{hub.url}/{REPO}"
    assert hub.files[REPO] == {**files_of(out), ".gitattributes": b""}
    assert hub.private == {REPO}
    hub.files[REPO]["1_Dense/config.json"] = b"of an earlier export"
    assert command(*arguments, "--dtype", "bfloat16")[0] == 0
    assert hub.files[REPO] == {**files_of(out), ".gitattributes": b""}
    assert len(hub.commits) == 2


def test_the_end_of_a_training_pushes_what_an_export_of_it_would(
    run: Path, tiny_student: Path, hub: Hub, tmp_path: Path, command: Command
) -> None:
    arguments = ("train", run.parent / "cache", "--student", tiny_student, "--out", run)
    again = (*arguments, "--config", run / "config.yaml", "--push", REPO, "--private")
    hub.files[REPO] = {"model.safetensors": b"theirs"}
    line = error_line(*command(*again))
    assert line.startswith(f"{REPO} has files on the hub and no siglip2_cache.json")
    del hub.files[REPO]
    hub.refuses_commits = True
    status, _, err = command(*again)
    assert status == 1
    assert f"error: {run / 'model'} is written, but could not be pushed to {REPO}: " in err
    hub.refuses_commits = False
    status, said, err = command(*again, "--json", "--quiet")
    assert status == 0, err
    assert json.loads(said)["pushed"] == f"{hub.url}/{REPO}"
    assert command("export", "model", run, tmp_path / "out")[0] == 0
    pushed = hub.files[REPO]
    assert pushed.keys() == {*files_of(tmp_path / "out"), ".gitattributes"}
    assert pushed["model.safetensors"] == (run / "model" / "model.safetensors").read_bytes()
    assert hub.private == {REPO}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("a name", "push 'a name' is no id of the hub, such as ORG/NAME"),
        (
            "org/theirs",
            "org/theirs has files on the hub and no siglip2_cache.json, so it is no earlier",
        ),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_the_export(
    run: Path, hub: Hub, tmp_path: Path, command: Command, wrong: str, message: str
) -> None:
    hub.files["org/theirs"] = {"model.safetensors": b"theirs"}
    out = tmp_path / "out"
    line = error_line(*command("export", "model", run, out, "--push", wrong))
    assert line.startswith(message)
    assert not out.exists()
    assert hub.files == {"org/theirs": {"model.safetensors": b"theirs"}}


def test_without_a_token_or_with_a_wrong_one_nothing_is_written(
    run: Path, hub: Hub, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    line = error_line(*command("export", "model", run, out, "--push", REPO))
    assert line.startswith(f"{REPO} cannot be pushed to the hub: ")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    line = error_line(*command("export", "model", run, out, "--push", REPO))
    assert line == f"push {REPO} needs a token of the hub: set HF_TOKEN, or run hf auth login"
    assert (out.exists(), hub.files) == (False, {})


def test_a_folder_that_does_not_compute_the_same_is_not_pushed(
    run: Path, hub: Hub, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = export._write_model

    def write_wrong(folder: Path, model_class: Any, config: Any, tensors: Any, dtype: Any) -> None:
        name = "text_model.head.weight"
        write(folder, model_class, config, tensors | {name: tensors[name].flip(0)}, dtype)

    monkeypatch.setattr(export, "_write_model", write_wrong)
    line = error_line(*command("export", "model", run, tmp_path / "out", "--push", REPO))
    assert line.startswith(
        f"the export of {run} does not compute what the training has: a cosine of text embeddings is "
    )
    assert (list(tmp_path.iterdir()), hub.files) == ([], {})


def test_the_check_reads_a_corpus_that_has_moved(
    run: Path, hub: Hub, tmp_path: Path, command: Command
) -> None:
    corpus = run.parent / "corpus"
    moved = corpus.rename(tmp_path / "elsewhere")
    try:
        words = ("export", "model", run, tmp_path / "out", "--push", REPO)
        assert "add --corpus-root OLD=NEW" in error_line(*command(*words))
        assert hub.files == {}
        status, _, err = command(*words, "--corpus-root", f"{corpus}={moved}")
        assert (status, err) == (0, ""), err
        assert hub.files.keys() == {REPO}
    finally:
        moved.rename(corpus)


def test_a_hub_that_refuses_leaves_the_folder_and_one_line(
    run: Path, hub: Hub, tmp_path: Path, command: Command
) -> None:
    hub.refuses_commits = True
    out = tmp_path / "out"
    line = error_line(*command("export", "model", run, out, "--push", REPO))
    assert line.startswith(f"{out} is written, but could not be pushed to {REPO}: ")
    assert line.endswith("run the same command again")
    assert (out / "model.safetensors").is_file()


def test_private_without_push_is_refused(run: Path, tmp_path: Path, command: Command) -> None:
    line = error_line(*command("export", "model", run, tmp_path / "out", "--private"))
    assert line == "--private goes with --push: else nothing is pushed"
