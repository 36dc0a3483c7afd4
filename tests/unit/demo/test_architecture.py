"""The small architectures: their files, sizes and tokenizer."""

import functools
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from kit.fakes import tree_of

from siglip2_cache.demo.architecture import MAX_TEXT_TOKENS, Size, write_architecture
from siglip2_cache.demo.captions import every_caption
from siglip2_cache.demo.scenes import layouts
from siglip2_cache.siglip import TextTokenizer, resolve_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with random weights."""
    from transformers import AutoConfig, AutoModel

    folder = write_architecture("student", tmp_path_factory.mktemp("models") / "student")
    AutoModel.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> TextTokenizer:
    return TextTokenizer(resolve_checkpoint(str(folder)))


@functools.cache
def captions() -> tuple[str, ...]:
    """All that can be said of some scenes with every object, held-out ones too."""
    chosen = [*layouts(held_out=True)[::30], *layouts(held_out=False)[::40]]
    scenes = [layout.scene(is_first_large=i % 2 == 0) for i, layout in enumerate(chosen)]
    assert len({thing for scene in scenes for thing in (scene.large, scene.small)}) == 40
    assert len({scene.relation for scene in scenes}) == 4
    return tuple(caption.text for scene in scenes for caption in every_caption(scene))


@pytest.mark.parametrize(("size", "num_parameters"), [("teacher", 1e6), ("student", 0.2e6)])
def test_models_have_about_the_size_said(size: Size, num_parameters: float, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel

    config: Any = AutoConfig.from_pretrained(write_architecture(size, tmp_path / size))
    model: Any = AutoModel.from_config(config)
    assert model.num_parameters() == pytest.approx(num_parameters, rel=0.1)


def test_the_files_are_the_same_each_time_and_the_tokenizer_is_shared(tmp_path: Path) -> None:
    for name in ("teacher", "student"):
        write_architecture(name, tmp_path / name)
    write_architecture("teacher", tmp_path / "again")
    teacher, student = tree_of(tmp_path / "teacher"), tree_of(tmp_path / "student")
    assert teacher == tree_of(tmp_path / "again")
    assert {name for name in teacher if teacher[name] != student[name]} == {"config.json"}


def test_the_command_writes_the_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "siglip2_cache.demo.architecture", "student"]
    done = subprocess.run([*command, str(tmp_path / "out")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"wrote {tmp_path}/out, without weights\n"
    write_architecture("student", tmp_path / "same")
    assert tree_of(tmp_path / "out") == tree_of(tmp_path / "same")


def test_no_word_of_a_caption_is_unknown_and_none_is_cut(tokenizer: TextTokenizer) -> None:
    ids = tokenizer([*captions()])  # (B, 16)
    assert ids.shape[1] == MAX_TEXT_TOKENS == 16
    assert not (ids == 3).any()
    assert ((ids == 1).sum(axis=1) == 1).all()
    assert ids[:, -1].max() == 1  # the longest caption just fits: no token is spent on padding


def test_different_captions_have_different_ids(tokenizer: TextTokenizer) -> None:
    texts = list(dict.fromkeys(captions()))
    assert len({tuple(ids) for ids in tokenizer(texts).tolist()}) == len(texts)


def test_capitals_and_punctuation_do_not_count(tokenizer: TextTokenizer) -> None:
    texts = ["this is a photo of a red circle", "This is a photo of a RED circle.", "红色的大圆形"]
    plain, spoken, chinese = tokenizer(texts).tolist()
    assert plain == spoken
    assert chinese.index(1) == 4  # red, of, large, circle
    kept, cut = tokenizer(["au-dessus d'un cercle", "au dessus d un cercle"])
    assert 3 not in kept
    assert 3 in cut


def test_transformers_gives_the_same_ids(folder: Path, tokenizer: TextTokenizer) -> None:
    from transformers import AutoTokenizer

    theirs: Any = AutoTokenizer.from_pretrained(folder)
    texts = [*islice(captions(), 0, None, 7), "A photo of a dog."]
    ids = theirs(texts, padding="max_length", truncation=True)["input_ids"]
    assert ids == tokenizer(texts).tolist()
