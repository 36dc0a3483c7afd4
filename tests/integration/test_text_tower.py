"""``siglip2-cache train --towers text``: a text tower against cached images, alone and completed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.trainings import Listening, Made, make_cache, metrics_of, train_of
from safetensors.torch import load_file

from siglip2_cache.errors import CheckpointError, SettingError
from siglip2_cache.siglip import resolve_checkpoint
from siglip2_cache.student.export.metadata import read_projection

pytestmark = pytest.mark.usefixtures("one_thread")

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The cache of make_cache without its corpus: a text tower needs no pixels."""
    made = make_cache(tmp_path_factory.mktemp("text"), tiny_checkpoint)
    shutil.copytree(made.corpus, made.corpus.with_name("kept"))
    shutil.rmtree(made.corpus)
    return made


def text_run(made: Made, student: Path, run: Path, **settings: Any) -> Path:
    train_of(made.cache, student, run, towers="text", **settings)
    return run / "model"


def embed_texts(model: Path) -> torch.Tensor:
    """Unit rows of two texts by plain transformers."""
    from transformers import AutoModel, AutoTokenizer, SiglipTextModel

    texts = AutoTokenizer.from_pretrained(model)(
        ["A red CAT", "two dogs"], padding="max_length", truncation=True, return_tensors="pt"
    )
    is_alone = not resolve_checkpoint(str(model), needed=()).has_image
    loaded = (SiglipTextModel if is_alone else AutoModel).from_pretrained(model).eval()
    get = loaded if is_alone else loaded.get_text_features
    with torch.no_grad():
        return torch.nn.functional.normalize(get(texts["input_ids"]).pooler_output, dim=-1)


@pytest.fixture(scope="module")
def alone(made: Made, tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RUN/model of a text tower of width 32 that is exported in the teacher's space, of width 64."""
    return text_run(made, tiny_student, tmp_path_factory.mktemp("alone") / "run", steps=30)


def test_a_text_tower_learns_and_comes_out_in_the_teachers_space(
    made: Made, alone: Path, command: Command
) -> None:
    lines = metrics_of(alone.parent)
    for term in ("cosine", "soft"):
        assert sum(line[term] for line in lines[-5:]) < sum(line[term] for line in lines[:5])
    assert all(line["soft_gradient_norm"] > 0 for line in lines)
    found = resolve_checkpoint(str(alone), needed=("text",))
    assert (found.embed_dim, found.has_image, found.has_text) == (64, False, True)
    assert embed_texts(alone).shape == (2, 64)
    assert not (alone.parent / "projection.safetensors").exists()
    status, out, err = command("eval", alone, made.cache, "--json")
    assert (status, err) == (0, "")
    model = json.loads(out)["columns"]["model"]
    after = json.loads((alone.parent / "evaluation.json").read_text())["after"]
    for name in ("text_cosine", "soft_loss_excess", "calibration_error"):
        assert model[name] == pytest.approx(after[name], abs=1e-4), name
    assert model["retrieval"] == after["retrieval"]
    card = (alone / "README.md").read_text()
    assert "SiglipTextModel.from_pretrained(folder)" in card
    assert "import SentenceTransformer" not in card
    assert not (alone / "modules.json").exists()
    assert "| towers trained | text only |" in card


def test_the_teachers_image_tower_completes_it_also_after_the_training(
    made: Made, tiny_student: Path, alone: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "out"
    status, _, err = command(
        "export",
        "model",
        alone.parent,
        out,
        "--image-tower",
        made.teacher,
        "--student",
        tiny_student,
    )
    assert (status, err) == (0, "")
    whole, teacher = (
        load_file(out / "model.safetensors"),
        load_file(made.teacher / "model.safetensors"),
    )
    images = [name for name in whole if name.startswith("vision_model.")]
    assert images
    assert all(torch.equal(whole[name], teacher[name].float()) for name in images)
    torch.testing.assert_close(embed_texts(out), embed_texts(alone), atol=1e-6, rtol=0)
    found, expected = resolve_checkpoint(str(out)), resolve_checkpoint(str(made.teacher))
    assert (found.embed_dim, found.image) == (64, expected.image)


def test_a_training_goes_on_from_a_text_tower_alone(
    made: Made, alone: Path, tmp_path: Path
) -> None:
    heard = Listening()
    text_run(made, alone, tmp_path / "run", progress=heard, lr=1e-6, eval_every=4)
    columns = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    last = json.loads((alone.parent / "evaluation.json").read_text())["after"]
    assert columns["before"]["text_cosine"] == pytest.approx(last["text_cosine"], abs=1e-4)
    assert embed_texts(tmp_path / "run" / "model").shape == (2, 64)


def test_two_towers_trained_apart_by_one_pca_map_are_one_student(
    made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    roots = {"corpus_roots": {str(made.corpus): str(made.corpus.with_name("kept"))}}
    train_of(made.cache, tiny_student, tmp_path / "images", towers="image", **roots)
    images = tmp_path / "images" / "model"
    settings = {"projection": "pca", "image_tower": str(images)}
    model = text_run(made, tiny_student, tmp_path / "texts", **settings)
    whole, image = load_file(model / "model.safetensors"), load_file(images / "model.safetensors")
    assert image.keys() < whole.keys()
    assert all(torch.equal(whole[name], image[name]) for name in image)
    maps = [read_projection(resolve_checkpoint(str(m), needed=()), 64) for m in (images, model)]
    assert all(each is not None for each in maps)
    np.testing.assert_allclose(*maps, atol=1e-6)
    with pytest.raises(SettingError, match=r"was trained with another PCA map"):
        text_run(made, tiny_student, tmp_path / "other", val_share=0.5, **settings)
    with pytest.raises(
        SettingError, match=r"is not in the space of the text tower; name the check"
    ):
        text_run(made, tiny_student, tmp_path / "other", image_tower=str(images))
    with pytest.raises(
        SettingError, match=r"space of the text tower; name the model of a training"
    ):
        text_run(
            made,
            tiny_student,
            tmp_path / "other",
            projection="pca",
            image_tower=str(made.teacher),
        )


def test_a_text_tower_alone_is_refused_where_images_are_needed(alone: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is a text tower alone .* without an image tower"):
        resolve_checkpoint(str(alone))
