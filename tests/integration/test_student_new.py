"""``siglip2-cache student new``: a smaller student as a user makes, loads and trains it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kit.commands import error_line
from kit.runtimes import STUDENT, build_cache
from transformers import AutoModel, AutoTokenizer

from siglip2_cache import open_cache, siglip
from siglip2_cache.student.smaller.vocabulary_texts import vocabulary_texts

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_cache(tmp_path_factory.mktemp("cache"), num_images=40)


def captions(cache: Path) -> list[str]:
    return open_cache(cache).texts().collect()["text"].to_list()


def made(command: Command, out: Path, *arguments: object) -> dict[str, Any]:
    status, said, err = command("student", "new", out, *arguments, "--json")
    assert (status, err) == (0, "")
    return json.loads(said)


def embedded(folder: Path, texts: list[str]) -> torch.Tensor:
    checkpoint = siglip.resolve_checkpoint(str(folder))
    model = siglip.load_model(checkpoint, device="cpu", compute_dtype="float32")
    ids = torch.from_numpy(siglip.TextTokenizer(checkpoint)(texts))
    return siglip.embed_token_ids(model, ids, compute_dtype="float32")


def test_a_cut_vocabulary_leaves_every_text_of_the_cache_as_it_was(
    command: Command, cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    found = made(command, out, "--from", STUDENT, "--vocabulary", cache)
    assert found["before"]["tokens"] == 206
    assert found["after"]["tokens"] < 206
    saved = (206 - found["after"]["tokens"]) * 128
    assert found["before"]["parameters"] - found["after"]["parameters"] == saved
    texts = captions(cache)
    assert torch.equal(embedded(out, texts), embedded(STUDENT, texts))
    assert embedded(out, ["xylophones", "", "猫" * 99]).isfinite().all()
    ids = AutoTokenizer.from_pretrained(out)(texts, padding="max_length", truncation=True)
    checkpoint = siglip.resolve_checkpoint(str(out))
    assert ids["input_ids"] == siglip.TextTokenizer(checkpoint)(texts).tolist()


WORDS = {"de": ["ein", "blaues", "dreieck"], "en": ["a", "red", "circle"]}


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    """wordfreq with two languages of three words."""
    wordfreq = SimpleNamespace(
        available_languages=lambda: dict.fromkeys(WORDS),
        top_n_list=lambda language, n: WORDS[language][:n],
    )
    monkeypatch.setitem(sys.modules, "wordfreq", wordfreq)


@pytest.mark.usefixtures("words")
def test_a_vocabulary_is_cut_to_the_words_of_languages_and_the_lines_of_a_file(
    command: Command, tmp_path: Path
) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("zwei quadrate\nA Yellow square, 3 of 4", encoding="utf-8")
    one, both = tmp_path / "one", tmp_path / "both"
    of_one = made(command, one, "--from", STUDENT, "--vocabulary", "de,en")
    of_both = made(command, both, "--from", STUDENT, "--vocabulary", "de,en", "--vocabulary", lines)
    assert of_one["after"]["tokens"] < of_both["after"]["tokens"] < 206
    texts = ["red circle", "Dreieck ein blaues", "a circle"]
    assert torch.equal(embedded(one, texts), embedded(STUDENT, texts))
    texts += ["zwei quadrate", "A Yellow square, 3 of 4"]
    assert torch.equal(embedded(both, texts), embedded(STUDENT, texts))
    assert not torch.equal(embedded(one, texts), embedded(STUDENT, texts))


@pytest.mark.usefixtures("words")
def test_a_vocabulary_of_nothing_known_is_refused(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(vocabulary: object) -> str:
        arguments = ("--from", STUDENT, "--vocabulary", vocabulary)
        return error_line(*command("student", "new", tmp_path / "out", *arguments))

    assert refusal("de,tlh") == (
        "vocabulary has no words of 'tlh'; there are those of de, en; for another language name a cache or a "
        "text file"
    )
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"\xff\xfe")
    assert refusal(binary) == f"vocabulary {binary} is no UTF-8 text; write one text a line"
    nowhere = tmp_path / "nowhere"
    assert refusal(nowhere).startswith(f"no cache at {nowhere}: there is no such folder")
    monkeypatch.setitem(sys.modules, "wordfreq", None)
    assert refusal("de") == (
        "vocabulary de needs the package wordfreq, which is not installed: pip install "
        "'siglip2-cache[languages]'; or name a cache or a text file"
    )
    assert not (tmp_path / "out").exists()


def test_every_cut_at_once_loads_in_transformers_and_trains(
    command: Command, cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    sizes = ("--vision-layers", "1,3", "--text-layers", "1", "--image-size", 24, "--patch-size", 4)
    arguments = ("--from", STUDENT, "--vocabulary", cache, *sizes, "--width", 64)
    status, said, err = command("student", "new", out, *arguments)
    assert (status, err) == (0, "")
    lines = said.splitlines()
    assert lines[0].split() == ["before", "after"]
    assert lines[-1] == f"wrote {out}"
    model = AutoModel.from_pretrained(out)
    assert f"{sum(p.numel() for p in model.parameters()):,}" == lines[1].split()[-1]
    config = model.config
    assert (config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers) == (2, 1)
    assert (config.vision_config.image_size, config.vision_config.patch_size) == (24, 4)
    assert config.vision_config.hidden_size == config.text_config.projection_size == 64
    run = tmp_path / "run"
    training = ("--steps", 2, "--global-batch-size", 8, "--val-share", 0.2, "--decode-workers", 0)
    status, _, err = command("train", cache, "--student", out, "--out", run, *training)
    assert status == 0, err
    trained = siglip.resolve_checkpoint(str(run / "model"))
    assert trained.vocab_size == config.text_config.vocab_size
    assert embedded(run / "model", ["A Red circle"]).shape == (1, 64)


def test_new_weights_follow_from_the_seed(command: Command, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "again", "other")]
    for folder, seed in zip(folders, (1, 1, 2), strict=True):
        new = ("--from", STUDENT, "--init", "random", "--seed", seed)
        status, said, err = command("student", "new", folder, *new)
        assert (status, err) == (0, "")
        assert "its weights are new" in said.splitlines()[-1]
    one, again, other = (folder.joinpath("model.safetensors").read_bytes() for folder in folders)
    assert one == again != other
    model = AutoModel.from_pretrained(folders[0])
    assert (model.logit_scale.exp().item(), model.logit_bias.item()) == pytest.approx((10, -10))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--vision-layers", "5"], "vision layers must be 1 to 4, got 5"),
        (
            ["--text-layers", "1,0"],
            "text layers must be ascending positions from 0 to 1, each once, got 1,0",
        ),
        (
            ["--vision-layers", "half"],
            "vision layers must be a number such as 6, or positions such as 0,2,5, got 'half'",
        ),
        (
            ["--width", "100"],
            "width must be a multiple of 32, the width of a head of the text tower, up to 128, got 100",
        ),
        (["--image-size", "4"], "image size 4 is smaller than a patch of 8 pixels"),
        (["--patch-size", "0"], "patch size must be at least 1, got 0"),
        (
            ["--init", "random", "--seed", str(2**63)],
            f"seed must be 0 to {2**63 - 1}, got {2**63}",
        ),
        (["--init", "zeros"], "init must be one of selected, random, got 'zeros'"),
    ],
)
def test_a_setting_that_does_not_fit_is_named_and_nothing_is_written(
    command: Command, tmp_path: Path, wrong: list[str], message: str
) -> None:
    out = tmp_path / "out"
    assert error_line(*command("student", "new", out, "--from", STUDENT, *wrong)) == message
    assert list(tmp_path.iterdir()) == []


def test_a_student_that_takes_the_place_of_the_larger_one_is_compared_with_it(
    command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = made(command, out, "--from", STUDENT)
    second = made(command, out, "--from", out, "--vision-layers", 1)
    assert second["before"] == first["after"]
    assert second["after"]["parameters"] < second["before"]["parameters"]


def test_pixels_of_a_naflex_checkpoint_are_not_changed(
    command: Command, naflex_checkpoint: Path, tmp_path: Path
) -> None:
    wrong = ("--from", naflex_checkpoint, "--image-size", 128)
    found = error_line(*command("student", "new", tmp_path / "out", *wrong))
    assert found == (
        f"{naflex_checkpoint} is a NaFlex checkpoint, which takes images of any size; leave out --image-size "
        "and --patch-size, and train with --max-num-patches"
    )


def test_a_byte_order_mark_is_no_part_of_the_first_text_of_a_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("\ufeffcat\ndog\n")
    assert [*vocabulary_texts(str(tmp_path / "words.txt"))()] == ["cat", "dog"]
