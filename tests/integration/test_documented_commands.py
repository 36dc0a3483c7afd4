"""Every command of the documents runs, and every block of Python, each document from top to bottom.

Hub ids are folders here, of models that take milliseconds; ``photos`` is a folder of small pictures. What
else is smaller than a reader would have it stands in the tables below. A command of a kind that has no place
in ``_KINDS`` fails.
"""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet
import pytest
import torch
from kit.documents import CHECKOUT, DOCUMENTS, Block, Command, blocks_of, commands_of, read
from kit.embeddings import pairs, write_clip_retrieval, write_datacompdr
from kit.fakes import draw_image, write_table_corpus
from kit.patience import PATIENCE_S

_SMALLER = {
    "--images": "32",
    "--sample": "2",
    "--shard-rows": "8",
    "--max-num-patches": "12",
    "--patch-targets": "2",
    "--patch-dims": "16",
    "--steps": "4",
    "--epochs": "1",
    "--global-batch-size": "8",
    "--micro-batch-size": "4",
    "--warmup-steps": "1",
    "--eval-every": "2",
    "--nproc-per-node": "2",
    "--workers": "1",
    "--engine": "local",
    "--vision-layers": "1",
    "--text-layers": "1",
}
"""Values of options that a test gives instead."""

_ADDED = {
    "build": ["--decode-workers", "0", "--device", "cpu"],
    "import": ["--decode-workers", "0"],
    "train": ["--decode-workers", "0", "--device", "cpu", "--global-batch-size", "8"],
    "eval": ["--decode-workers", "0", "--device", "cpu"],
    "report": ["--decode-workers", "0", "--device", "cpu"],
    "verify": ["--device", "cpu"],
    "convert": ["--targets-budget", "1"],  # narrow teachers change more
}
"""Options added: no process is started, no GPU asked for, a batch is smaller than the corpus."""


@dataclass(frozen=True)
class World:
    """A folder in which all that the documents name is there, and a way to run our command in it."""

    root: Path
    command: Callable[..., tuple[int, str, str]]


@pytest.fixture
def world(
    command: Callable[..., tuple[int, str, str]],
    tiny_checkpoint: Path,
    tiny_student: Path,
    naflex_checkpoint: Path,
    naflex_student: Path,
    one_thread: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[World]:
    models = {
        "google/siglip2-so400m-patch14-224": tiny_checkpoint,
        "google/siglip2-so400m-patch14-384": tiny_checkpoint,
        "google/siglip2-so400m-patch16-naflex": naflex_checkpoint,
        "google/siglip2-base-patch16-224": tiny_student,
        "google/siglip2-base-patch16-naflex": naflex_student,
    }
    for name, folder in models.items():
        shutil.copytree(folder, tmp_path / name)
    (tmp_path / "demo").symlink_to(CHECKOUT / "demo")
    (tmp_path / "photos").mkdir()
    for i, name in enumerate(["cat", *(f"photo{i:02d}" for i in range(23))]):
        draw_image(i).save(tmp_path / "photos" / f"{name}.jpg")
        (tmp_path / "photos" / f"{name}.txt").write_text(f"Picture {i}\nAnother look at it, {i}\n")
    shutil.copyfile(tmp_path / "photos" / "cat.jpg", tmp_path / "photos" / "copy.jpg")
    images, texts = pairs(24, 16)
    write_clip_retrieval(
        tmp_path / "clip-out",
        ["/data/photos/cat.jpg", *(f"/data/photos/photo{i:02d}.jpg" for i in range(23))],
        [f"Picture {i}" for i in range(24)],
        images,
        texts,
    )
    write_datacompdr(tmp_path / "datacompdr", 9)
    lines = [
        {"image": f"images/{i}.jpg", "captions": [f"Picture {i}", f"Look {i}"]} for i in range(24)
    ]
    write_table_corpus(tmp_path / "coco288", lines)
    write_benchmarks(tmp_path)
    # --compile: graphs are captured, and run without code that a compiler takes half a minute for.
    torch.compiler.set_stance(force_backend="aot_eager")
    monkeypatch.chdir(tmp_path)
    store = fsspec.filesystem("memory")  # for what documents have in a bucket of S3
    store.store.clear()
    store.put(str(tmp_path / "photos"), "/my-bucket/photos", recursive=True)
    monkeypatch.setenv(
        "PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    yield World(tmp_path, command)
    torch.compiler.set_stance("default")


def write_benchmarks(root: Path) -> None:
    """Write four pictures as COCO, Flickr30k, XM3600 and ImageNet are published."""
    images: list[dict[str, Any]] = []
    lines: list[str] = []
    for i in range(4):
        for path in (f"coco/val2014/{i}.jpg", f"flickr30k/{i}.jpg", f"xm3600/images/{i}.jpg"):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            draw_image(i).save(root / path)
        folder = root / "imagenet" / "val" / f"n0000000{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        draw_image(i).save(folder / f"{i}.JPEG")
        images.append({"filename": f"{i}.jpg", "split": "test", "sentences": [{"raw": f"No. {i}"}]})
        texts = {"en": {"caption": [f"No. {i}"]}, "de": {"caption": [f"Nr. {i}"]}}
        lines.append(json.dumps({"image/key": f"{i}", **texts}) + "\n")
    coco = [{**image, "filepath": "val2014"} for image in images]
    for name, found in (("coco", coco), ("flickr30k", images)):
        (root / name / f"dataset_{name}.json").write_text(json.dumps({"images": found}))
    (root / "xm3600" / "captions.jsonl").write_text("".join(lines))
    (root / "imagenet" / "names.txt").write_text("tench\ndog\n")


@pytest.mark.filterwarnings("default")  # torch.compile has warnings of its own
@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_can_be_followed_from_top_to_bottom(document: str, world: World) -> None:
    for command in _BEFORE.get(document, []):
        run_ours(command.split(), world)
    names: dict[str, Any] = {"rows": [2, 0]} | {n: importlib.import_module(n) for n in _AT_HAND}
    for block in blocks_of(read(document)):
        if block.language == "python":
            run_python(block, document, names)
        for command in commands_of(block):
            try:
                said = run(command, world)
            except AssertionError as error:
                raise AssertionError(
                    f"{document}:{command.line}: {command.text}\n{error}"
                ) from None
            missing = {label(line) for line in command.output} - {label(line) for line in said}
            assert not missing, (
                f"{document}:{command.line}: no line begins with {missing} in {said}"
            )


@pytest.mark.slow
def test_torchrun_starts_the_documented_training_in_two_processes(world: World) -> None:
    run_ours(["build", "photos", "CACHE", "--teacher", "google/siglip2-so400m-patch14-384"], world)
    [words] = [
        command.words
        for block in blocks_of(read("docs/guides/eight-gpus.md"))
        for command in commands_of(block)
        if command.words[0] == "torchrun"
    ]
    smaller = made_smaller([*words, *_ADDED["train"]])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        smaller, capture_output=True, text=True, timeout=PATIENCE_S, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert (world.root / "EIGHT" / "model" / "model.safetensors").is_file()


def test_a_command_of_an_unknown_kind_is_refused(world: World) -> None:
    with pytest.raises(AssertionError, match="has no place in _KINDS"):
        run(Command("rm -r CACHE", 1), world)


def test_a_documented_command_that_does_not_run_is_noticed(world: World) -> None:
    with pytest.raises(AssertionError, match="--veiws"):
        run(
            Command(
                "siglip2-cache build photos CACHE --teacher demo/checkpoints/teacher --veiws 5", 1
            ),
            world,
        )


_BUILD = "build photos CACHE --teacher google/siglip2-so400m-patch14-384"
_BEFORE = {
    "docs/guides/clean-a-corpus.md": [_BUILD],
    "docs/guides/large-caches.md": [_BUILD],
    "docs/guides/long-training.md": [_BUILD],
    "docs/guides/other-tools.md": [_BUILD],
    "docs/guides/python.md": [_BUILD],
    "docs/reference/format.md": [f"{_BUILD} --teacher-name NAME"],
}
"""Commands that make what a document names and does not make."""

_AT_HAND = ("zarr", "tensorstore", "polars")
"""Modules that docs/reference/format.md does not import before each line that uses them."""


def label(line: str) -> str:
    """Return the first word of a line, any number of it the same."""
    return re.sub(r"[\d,.]+", "0", line.split()[0]) if line.strip() else ""


def run(command: Command, world: World) -> list[str]:
    """Run a command, or check as much of it as can be without network and GPU; return its lines."""
    program, *arguments = command.words
    assert program in _KINDS, f"{program} has no place in _KINDS"
    return _KINDS[program](arguments, world)


def run_python(block: Block, document: str, names: dict[str, Any]) -> None:
    """Run a block with the names of those above it."""
    code = compile("\n" * (block.line - 1) + block.text, document, "exec")
    exec(code, names)


def made_smaller(words: list[str]) -> list[str]:
    """Return a command with smaller values."""
    smaller: list[str] = []
    rest = iter(words)
    for word in rest:
        smaller.append(word)
        if word in _SMALLER:
            next(rest)
            smaller.append(_SMALLER[word])
    return smaller


def run_ours(arguments: list[str], world: World) -> list[str]:
    if arguments == ["demo"]:  # it has a test of its own
        return []
    arguments = [word.replace("s3://my-bucket/", "memory://my-bucket/") for word in arguments]
    added = [] if "--dry-run" in arguments else _ADDED.get(arguments[0], [])
    status, out, err = world.command(*made_smaller(arguments), *added)
    assert status == 0, err or out
    for option, file in pairwise(arguments):
        assert option != "--html" or (world.root / file).stat().st_size > 1000
    return out.splitlines()


def run_module(arguments: list[str], world: World) -> list[str]:
    """``python -m MODULE ...``, or a benchmark, which has a test of its own."""
    if arguments[0].startswith("benchmarks/"):
        assert (CHECKOUT / arguments[0]).is_file(), f"there is no {arguments[0]}"
        return []
    option, name, *given = arguments
    assert option == "-m"
    module = importlib.import_module(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *made_smaller(given)])
        assert module.main() == 0
    return [f"wrote {given[0]}"]


def run_as_one_process(arguments: list[str], world: World) -> list[str]:
    """``torchrun ... -m siglip2_cache train ...``; a slow test starts it as two."""
    at = arguments.index("-m")
    assert arguments[:at] == ["--nproc-per-node", "8"]
    assert arguments[at + 1] == "siglip2_cache"
    return run_ours(arguments[at + 2 :], world)


def look_up_target(arguments: list[str], world: World) -> list[str]:
    [target] = arguments
    assert re.search(rf"^{target}:", read("Makefile"), re.MULTILINE), f"no target {target}"
    return []


def look_up_package(arguments: list[str], world: World) -> list[str]:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert arguments[0] == "install"
    package, *options = arguments[1:]
    assert not options or options[0] == "--index-url"
    if package.startswith("."):
        extras = set(re.findall(r"\w+", package))
        assert extras <= set(project["optional-dependencies"]), f"no extra {extras}"
    else:
        assert any(re.match(rf"{package}\b", each) for each in project["dependencies"]), package
    return []


def look_up_columns(arguments: list[str], world: World) -> list[str]:
    """``embedding-atlas TABLE --vector COLUMN ...``: a program that is not ours."""
    table, *options = arguments
    columns = set(pyarrow.parquet.read_schema(world.root / table).names)
    assert set(options[1::2]) <= columns, f"{options} in {columns}"
    assert set(options[::2]) <= {"--vector", "--neighbors", "--text"}
    return []


_KINDS: dict[str, Callable[[list[str], World], list[str]]] = {
    "siglip2-cache": run_ours,
    "python": run_module,
    "torchrun": run_as_one_process,
    "make": look_up_target,
    "pip": look_up_package,
    "embedding-atlas": look_up_columns,
}
