"""``siglip2-cache eval``: a model beside the teacher whose embeddings a cache holds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import config_of, draw_image, write_table_corpus

from siglip2_cache.precompute.build import build

Command = Callable[..., tuple[int, str, str]]
COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 pictures in three classes and two languages; the last two are copies of the first."""
    root = tmp_path_factory.mktemp("corpus")
    lines = [
        {
            "image": f"{i:02d}.png",
            "captions": [
                {"caption": f"Picture number {i} of many", "lang": "en"},
                {"caption": f"Bild Nummer {i // 2}", "lang": "de"},
            ],
            "label": COLOURS[i % 3],
        }
        for i in range(30)
    ]
    for i in (28, 29):
        draw_image(0).save(root / f"{i:02d}.png")
    (root / "templates.txt").write_text("This is a photo of {}.\na {} thing\n")
    return write_table_corpus(root, lines)


@pytest.fixture(scope="module")
def cache(corpus: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of it by the tiny checkpoint, with prompts; read it, do not change it."""
    root = tmp_path_factory.mktemp("caches") / "cache"
    build(config_of(corpus, root, tiny_checkpoint, templates=corpus.parent / "templates.txt"))
    return root


def evaluated(command: Command, *arguments: object) -> dict[str, Any]:
    status, out, err = command("eval", *arguments, "--json", "--decode-workers", 0)
    assert (status, err) == (0, "")
    return json.loads(out)


def numbers_of(value: Any, path: str = "") -> dict[str, float]:
    """Every number of nested values by its path."""
    if not isinstance(value, dict):
        return {path: value}
    return {
        k: v
        for name, inner in value.items()
        for k, v in numbers_of(inner, f"{path}/{name}").items()
    }


def test_the_teachers_own_checkpoint_equals_the_teacher_in_every_number(
    command: Command, cache: Path, tiny_checkpoint: Path
) -> None:
    found = evaluated(command, tiny_checkpoint, cache, "--split", "all")
    columns = found["columns"]
    teacher, model = (numbers_of(columns[name]) for name in ("teacher", "model"))
    assert teacher.keys() == model.keys()
    for name, value in teacher.items():
        assert model[name] == (
            value if isinstance(value, str) else pytest.approx(value, abs=2e-3)
        ), name
    assert columns["model"]["image_cosine"] == pytest.approx(1, abs=1e-5)
