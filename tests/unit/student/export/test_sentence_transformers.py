"""An exported folder in sentence-transformers: each text by itself, capitals, pictures, an image tower."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.published import SMALL_PROCESSOR, num_tokens
from numpy.typing import NDArray
from PIL import Image

from siglip2_cache import siglip
from siglip2_cache.student.export.export import export_model, export_tower
from siglip2_cache.student.export.model_card import CacheSummary, ModelCard

CARD = ModelCard(
    name="student",
    student="start",
    teachers=["teacher"],
    cache=CacheSummary(samples=1, captions=1, texts=1, views=1, corpora=("folder",)),
    objectives={"soft": 1.0},
    steps=1,
    global_batch_size=1,
    towers="both",
)
TEXTS = ["a dog", "Two Red CATS on a roof", "Word " * 99, ""]


@pytest.fixture(
    scope="module",
    params=[
        "tiny-patch16-64",
        "tiny-patch16-naflex",
    ],
)
def start(
    request: pytest.FixtureRequest,
    make_checkpoint: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> siglip.Checkpoint:
    settings: dict[str, Any] = {"dtype": "float32"}
    if request.param.endswith("naflex"):
        settings |= {"processor": SMALL_PROCESSOR, "vocab_size": num_tokens(SMALL_PROCESSOR)}
    folder = make_checkpoint(request.param, tmp_path_factory.mktemp("start") / "start", **settings)
    return siglip.resolve_checkpoint(str(folder))


@pytest.fixture(scope="module")
def exported(start: siglip.Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "model"
    export_model(
        siglip.load_model(start, device="cpu", compute_dtype="float32"), start, out, card=CARD
    )
    return out


@pytest.fixture
def picture() -> Image.Image:
    blocks = np.random.default_rng(0).integers(0, 256, (12, 9, 3), np.uint8)
    return Image.fromarray(blocks).resize((90, 120), Image.Resampling.NEAREST)


def encoder_of(folder: str) -> Any:
    from sentence_transformers import SentenceTransformer  # here: it takes seconds

    return SentenceTransformer(folder, device="cpu")


def cosines(one_BD: Any, other_BD: Any) -> NDArray[np.float64]:
    one_BD, other_BD = np.asarray(one_BD, float), np.asarray(other_BD, float)
    norms = np.linalg.norm(one_BD, axis=1) * np.linalg.norm(other_BD, axis=1)
    return (one_BD * other_BD).sum(axis=1) / norms


def test_a_text_alone_and_among_others_is_what_the_student_makes_of_it(
    exported: Path, start: siglip.Checkpoint
) -> None:
    model = siglip.load_model(start, device="cpu", compute_dtype="float32")
    ids = torch.from_numpy(siglip.TextTokenizer(start)(TEXTS))
    expected = siglip.embed_token_ids(model, ids, compute_dtype="float32").numpy()
    encoder = encoder_of(str(exported))
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    assert cosines(alone, expected) == pytest.approx(1, abs=1e-6)
    assert cosines(encoder.encode(TEXTS), expected) == pytest.approx(1, abs=1e-6)


def test_without_its_files_a_short_text_is_wrong(exported: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(exported, tmp_path / "bare")
    for name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
        (bare / name).unlink()
    right = encoder_of(str(exported)).encode(["a dog"])
    wrong = encoder_of(str(bare)).encode(["a dog"])
    assert cosines(right, wrong) < 0.99


def test_a_picture_is_what_plain_transformers_makes_of_it(
    exported: Path, picture: Image.Image
) -> None:
    from transformers import AutoImageProcessor, AutoModel

    model = AutoModel.from_pretrained(exported).eval()
    inputs = AutoImageProcessor.from_pretrained(exported)(picture, return_tensors="pt")
    with torch.no_grad():
        expected = model.get_image_features(**inputs).pooler_output
    found = encoder_of(str(exported)).encode([picture])
    assert cosines(found, expected) == pytest.approx(1, abs=1e-6)


def test_the_code_of_the_card_runs(
    exported: Path, picture: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = shutil.copytree(exported, tmp_path / "downloaded")
    picture.save(place / "picture.jpg")
    monkeypatch.chdir(place)
    codes = re.findall(r"```python\n(.*?)```", (place / "README.md").read_text(), re.DOTALL)
    [code] = [code for code in codes if "SentenceTransformer" in code]
    found: dict[str, Any] = {}
    exec(code, found)
    assert found["cosines"].shape == (1, 2)


def test_an_image_tower_alone_encodes_pictures(
    start: siglip.Checkpoint, picture: Image.Image, tmp_path: Path
) -> None:
    from transformers import AutoImageProcessor

    tower = siglip.vision_tower(siglip.load_model(start, device="cpu", compute_dtype="float32"))
    out = tmp_path / "tower"
    export_tower(tower, 0.0, 0.0, start, out, other=None, text_map=None, card=CARD)
    inputs = AutoImageProcessor.from_pretrained(out)(picture, return_tensors="pt")
    with torch.no_grad():
        expected = tower(**inputs).pooler_output
    found = encoder_of(str(out)).encode([picture])
    assert cosines(found, expected) == pytest.approx(1, abs=1e-6)


def test_a_folder_whose_words_would_be_cut_otherwise_is_not_offered(
    naflex_checkpoint: Path, tmp_path: Path
) -> None:
    start = siglip.resolve_checkpoint(
        str(naflex_checkpoint)
    )  # its tokenizer is not the published one
    model = siglip.load_model(start, device="cpu", compute_dtype="float32")
    export_model(model, start, tmp_path / "out", card=CARD)
    assert not (tmp_path / "out" / "modules.json").exists()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "sentence-transformers loads another tokenizer" in card
    assert "import SentenceTransformer" not in card


def test_a_map_to_the_teachers_space_is_applied_to_texts_and_images(
    start: siglip.Checkpoint, picture: Image.Image, tmp_path: Path
) -> None:
    model = siglip.load_model(start, device="cpu", compute_dtype="float32")
    map_ED = np.random.default_rng(3).normal(size=(96, start.embed_dim)).astype(np.float32)
    for name, to_teacher in (("plain", None), ("mapped", map_ED)):
        export_model(model, start, tmp_path / name, card=CARD, to_teacher_ED=to_teacher)
    plain, mapped = (encoder_of(str(tmp_path / n)) for n in ("plain", "mapped"))
    for inputs in (TEXTS, [picture]):
        expected = plain.encode(inputs) @ map_ED.T
        np.testing.assert_allclose(cosines(mapped.encode(inputs), expected), 1, atol=1e-6)
    assert (
        "## An index of the teacher's embeddings" in (tmp_path / "mapped" / "README.md").read_text()
    )
