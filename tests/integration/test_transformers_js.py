"""The same folder in Node: transformers.js reads it and computes what PyTorch does."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.documents import blocks_of, read
from kit.fakes import draw_image
from kit.patience import PATIENCE_S
from kit.runtimes import STUDENT, build_cache, export_settings
from PIL import Image
from transformers import AutoModel

from siglip2_cache import siglip
from siglip2_cache.student.export.export import write_settings
from siglip2_cache.student.runtimes.export import export_runtimes

FILES = Path(__file__).parents[1] / "data" / "transformers-js"
REAL_PROCESSOR = Path(__file__).parents[3] / "shared" / "data" / "siglip2_base_processor"
TEXTS = ["A Red circle", "ein blaues Dreieck", "two  squares", "Word " * 99]

pytestmark = pytest.mark.slow  # npm fetches 300 MB


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the script and the packages that it imports."""
    folder = tmp_path_factory.mktemp("node")
    for path in FILES.iterdir():
        shutil.copyfile(path, folder / path.name)
    if shutil.which("npm") is None:
        pytest.skip("there is no npm")
    # Without scripts: that of onnxruntime-node fetches libraries for CUDA.
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S)
    if done.returncode != 0:
        pytest.skip(f"npm cannot fetch transformers.js: {done.stderr.strip()[-200:]}")
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("export")
    to = ("transformers-js",)
    export_runtimes(export_settings(build_cache(root), root / "student", to=to))
    return root / "student"


def in_node(node: Path, folder: Path, picture: Path | str, dtype: str, texts: list[str]) -> Any:
    done = subprocess.run(
        ["node", "student.js", str(folder), str(picture), dtype, *texts],
        cwd=node,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("dtype", "limit"), [("fp32", 1e-3), ("fp16", 0.1), ("q8", 1.0)])
def test_texts_and_a_picture_of_the_models_size_are_what_pytorch_makes_of_them(
    node: Path, exported: Path, tmp_path: Path, dtype: str, limit: float
) -> None:
    checkpoint = siglip.resolve_checkpoint(str(STUDENT))
    picture = draw_image(1, (32, 32))
    picture.save(tmp_path / "picture.png")
    pixels = torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).permute(2, 0, 1)[None]
    ids = siglip.TextTokenizer(checkpoint)(TEXTS)
    with torch.no_grad():
        expected = AutoModel.from_pretrained(STUDENT).eval()(
            input_ids=torch.from_numpy(ids), pixel_values=pixels / 127.5 - 1
        )
    found = in_node(node, exported, tmp_path / "picture.png", dtype, TEXTS)
    assert found["ids"][:-1] == ids[:-1].tolist()
    assert found["ids"][-1][-1] != ids[-1, -1]  # eos, which it cuts off and the graph puts back
    np.testing.assert_allclose(found["logits"], expected.logits_per_image, atol=limit)
    np.testing.assert_allclose(found["texts"], expected.text_embeds, atol=limit / 20)
    np.testing.assert_allclose(found["images"], expected.image_embeds, atol=limit / 20)
    probabilities = torch.sigmoid(torch.tensor(found["logits"][0])).tolist()
    scores = {score["label"]: score["score"] for score in found["scores"]}
    assert [scores[text] for text in TEXTS] == pytest.approx(probabilities, rel=1e-3)


def test_a_picture_that_is_resized_as_the_card_says_is_nearly_the_same(
    node: Path, exported: Path, tmp_path: Path
) -> None:
    from transformers import AutoImageProcessor

    scene = Image.open(exported.parent / "corpus" / "images" / "000000.png").convert("RGB")
    picture = scene.resize((150, 120), Image.Resampling.BICUBIC)
    picture.save(tmp_path / "picture.png")
    processor: Any = AutoImageProcessor.from_pretrained(exported)
    with torch.no_grad():
        inputs = processor(picture, return_tensors="pt")
        pooled = AutoModel.from_pretrained(STUDENT).eval().get_image_features(**inputs)
    expected = siglip.unit_rows(pooled.pooler_output).numpy()
    found = in_node(node, exported, tmp_path / "picture.png", "fp32", TEXTS)
    assert (np.array(found["images"]) * expected).sum() > 0.98


def test_the_documented_block_runs(node: Path, exported: Path, tmp_path: Path) -> None:
    [block] = [b for b in blocks_of(read("docs/guides/deploy.md")) if b.language == "js"]
    (node / "block.js").write_text(block.text + "console.log(JSON.stringify(probabilities));\n")
    (node / "MODEL").symlink_to(exported)
    (node / "photos").mkdir()
    draw_image(3, (64, 48)).save(node / "photos" / "cat.jpg")
    done = subprocess.run(
        ["node", "block.js"], cwd=node, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout.splitlines()[-1])) == 2


@pytest.mark.skipif(not REAL_PROCESSOR.is_dir(), reason=f"no tokenizer in {REAL_PROCESSOR}")
def test_the_published_tokenizer_gives_the_ids_of_training(
    node: Path, make_checkpoint: Any, tmp_path: Path
) -> None:
    folder = make_checkpoint("tiny-patch16-64", tmp_path / "start", REAL_PROCESSOR, dtype="float32")
    checkpoint = siglip.resolve_checkpoint(str(folder))
    model = siglip.load_model(checkpoint, device="cpu", compute_dtype="float32")
    (tmp_path / "out").mkdir()
    write_settings(model.config, checkpoint, tmp_path / "out")
    texts = [
        "A Red CAT",
        "Zwei GROSSE Hündchen, Straße",
        "两只猫在沙发上",
        "İstanbul",
        "word " * 200,
    ]
    found = np.array(in_node(node, tmp_path / "out", "-", "none", texts)["ids"])
    expected = siglip.TextTokenizer(checkpoint)(texts)
    np.testing.assert_array_equal(found[:, :-1], expected[:, :-1])
    np.testing.assert_array_equal(found[:-1, -1], expected[:-1, -1])
