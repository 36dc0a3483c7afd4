"""Exports to ONNX of one tower alone, and of students in the space of an index of the teacher."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from kit.commands import error_line
from kit.trainings import NUM_IMAGES, Made, make_cache, train_of
from onnxruntime import InferenceSession
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from transformers import AutoModel, SiglipTextModel

from siglip2_cache.errors import SettingError
from siglip2_cache.siglip import resolve_checkpoint
from siglip2_cache.store.cache import open_cache
from siglip2_cache.student.evaluation.compare import EvalConfig, open_eval_set
from siglip2_cache.student.runtimes.export import RuntimesConfig, export_runtimes
from siglip2_cache.student.runtimes.gate import Parity
from siglip2_cache.student.runtimes.held_out import read_held_out

pytestmark = pytest.mark.usefixtures("one_thread")

Command = Callable[..., tuple[int, str, str]]
ONNX = ("--to", "onnx", "--precision", "float32", "--decode-workers", 0, "--json")


@pytest.fixture(scope="module")
def made(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_cache(tmp_path_factory.mktemp("towers"), tiny_checkpoint)


@pytest.fixture(scope="module")
def both(made: Made, tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a student of width 32 with a learned map to the teacher's width, 64; do not change it."""
    run = tmp_path_factory.mktemp("both") / "run"
    train_of(made.cache, tiny_student, run, steps=8)
    return run


def settings(made: Made, model: Path, out: Path, **more: Any) -> RuntimesConfig:
    named = {"model": str(model), "out": out, "to": ("onnx",), "check": str(made.cache)}
    return RuntimesConfig(**named | {"precisions": ("float32",), "decode_workers": 0} | more)


def with_notes(run: Path, out: Path, **notes: Any) -> Path:
    """A copy of RUN/model, with other values in siglip2_cache.json."""
    shutil.copytree(run / "model", out)
    shutil.copyfile(run / "projection.safetensors", out / "projection.safetensors")
    path = out / "siglip2_cache.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | notes))
    return out


def rows_of(folder: Path, graph: str, output: str, inputs: Any) -> Any:
    session = InferenceSession(
        folder / "onnx" / f"{graph}.onnx", providers=["CPUExecutionProvider"]
    )
    [rows] = session.run([output], inputs)
    return rows


def ids_of(folder: Path, texts: list[str]) -> Any:
    encoded = Tokenizer.from_file(str(folder / "tokenizer.json")).encode_batch(texts)
    return {"input_ids": np.array([each.ids for each in encoded], np.int64)}


def test_queries_in_the_teachers_space_are_tried_in_an_index_of_its_images(
    made: Made, both: Path, tmp_path: Path, command: Command
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(both, run, ignore=shutil.ignore_patterns("model"))  # a training that goes on
    assert error_line(*command("export", "model", run, run / "onnx", *ONNX[:-1])) == (
        f"{run / 'onnx'} is in the run {run}, which its training writes; name a folder elsewhere"
    )
    status, said, err = command("export", "model", run, out, *ONNX, "--into-teacher-space")
    assert (status, err) == (0, ""), err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]
    check = json.loads(said)["check"]
    assert list(check) == ["float32"]
    found = check["float32"]
    assert found["images"] > 1
    assert found["image_cosine"] > 0.9999
    assert found == json.loads((out / "export.json").read_text())["check"]["float32"]
    # The same from the files alone: the graph's queries, the cache's index.
    config = EvalConfig(model=str(both / "model"), cache=made.cache)
    cache, rows = open_eval_set(config, resolve_checkpoint(str(both / "model")))
    captions = rows.captions()
    index, texts = (
        targets.read(wanted).astype(np.float32)
        for targets, wanted in (
            (cache.image_targets(), rows.rows_N),
            (cache.text_targets(), rows.text_rows_M[captions]),
        )
    )
    table = cache.texts().collect()
    written = dict(zip(table["text_row"], table["text"], strict=True))
    inputs = ids_of(out, [written[int(row)] for row in rows.text_rows_M[captions]])
    queries = rows_of(out, "text_model", "teacher_embeds", inputs)
    pooled = rows_of(out, "text_model", "pooler_output", inputs)
    map_ED = load_file(both / "projection.safetensors")["map_ED"]
    mapped = pooled @ map_ED.T
    mapped /= np.linalg.norm(mapped, axis=1, keepdims=True)
    np.testing.assert_allclose(queries, mapped, atol=1e-5)
    outputs = {value.name for value in onnx.load(out / "onnx" / "model.onnx").graph.output}
    assert "teacher_embeds" not in outputs  # both towers have it
    k = min(10, len(index) - 1)
    theirs, ours = (np.argsort(-(each @ index.T), axis=1)[:, :k] for each in (texts, queries))
    shares = [len({*a} & {*b}) / k for a, b in zip(theirs, ours, strict=True)]
    in_index = found["text_in_teacher_index"]
    assert in_index["neighbour_overlap"] == [pytest.approx(np.mean(shares), abs=0.02)] * 2
    units = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    assert in_index["cosine"] == pytest.approx((units * queries).sum(axis=1).mean(), abs=1e-3)
    of_images = found["image_in_teacher_index"]["neighbour_overlap"]
    after = json.loads((both / "evaluation.json").read_text())["after"]
    assert of_images[1] == pytest.approx(
        after["teacher_index"]["neighbour_overlap"]["image_to_image"], abs=0.02
    )
    card = (out / "README.md").read_text()
    assert card.count("\n## ") >= 4  # its own card, then ours
    # Nothing of what loads weights that are not in the folder.
    assert 'library_name: "transformers.js"' in card
    assert "AutoModel.from_pretrained" not in card
    assert "projection.safetensors" not in card
    assert "The output `teacher_embeds` of the towers" in card
    assert "Found in an index of the teacher's images, of what the teacher's own queries" in card
    assert f"- float32, images: {of_images[1]:.4f} of the 10 nearest (PyTorch" in card


def test_where_nothing_is_held_out_files_are_compared_on_all_images(
    made: Made, both: Path, tmp_path: Path
) -> None:
    model = with_notes(both, tmp_path / "model", split={"val_share": 0.0})
    config = EvalConfig(model=str(model), cache=made.cache, decode_workers=0)
    found = read_held_out(config, resolve_checkpoint(str(model)))
    assert (len(found.pixels_N), found.is_held_out) == (NUM_IMAGES, False)
    assert (
        Parity(images=2, texts=3, is_held_out=False).compared
        == "2 images (none is held out) and 3 captions"
    )
    assert Parity(images=0, texts=3).compared == "3 captions"


def test_the_index_of_another_teacher_is_refused(made: Made, both: Path, tmp_path: Path) -> None:
    model = with_notes(both, tmp_path / "model", teacher_identity="0" * 64)
    with pytest.raises(SettingError) as error:
        export_runtimes(settings(made, model, tmp_path / "out", into_teacher_space=True))
    name = open_cache(made.cache).teacher(None).name
    assert str(error.value) == (
        f"{made.cache} has embeddings of {name}, which is not the teacher of {model}; name the cache of the "
        "training with --check, or leave out --into-teacher-space"
    )


def test_a_text_tower_alone_needs_no_image_and_answers_from_the_teachers_index(
    made: Made, tiny_student: Path, tmp_path: Path, command: Command
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    train_of(made.cache, tiny_student, run, towers="text")
    moved = made.corpus.rename(made.corpus.with_name("elsewhere"))
    try:
        status, said, err = command("export", "model", run, out, *ONNX, "--precision", "int8")
    finally:
        moved.rename(made.corpus)
    assert (status, err) == (0, ""), err
    found = json.loads(said)
    assert sorted(found["files"]) == ["onnx/text_model.onnx", "onnx/text_model_quantized.onnx"]
    assert {"logit_scale", "logit_bias"} < found.keys()
    for check in found["check"].values():
        assert check.keys() == {
            "images", "texts", "text_cosine", "mean_text_cosine", "text_in_teacher_index",
        }  # fmt: skip
        assert check["text_cosine"] > 0.98
    inputs = ids_of(out, ["A Red circle", "two  squares"])
    with torch.no_grad():
        expected = SiglipTextModel.from_pretrained(run / "model").eval()(
            torch.from_numpy(inputs["input_ids"])
        )
    pooled = rows_of(out, "text_model", "pooler_output", inputs)
    np.testing.assert_allclose(pooled, expected.pooler_output.numpy(), atol=1e-4)
    card = (out / "README.md").read_text()
    assert 'InferenceSession(f"{folder}/onnx/text_model.onnx")' in card
    assert "transformers.js\n\n" not in card
    said = error_line(*command("export", "model", run, out, "--to", "transformers-js"))
    assert "is a text tower alone, which transformers-js does not load; use --to onnx" in said


def test_an_image_tower_alone_needs_no_caption(
    made: Made, tiny_student: Path, tmp_path: Path, command: Command
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    train_of(made.cache, tiny_student, run, towers="image")
    status, said, err = command("export", "model", run, out, *ONNX, "--into-teacher-space")
    assert (status, err) == (0, ""), err
    found = json.loads(said)
    assert list(found["files"]) == ["onnx/vision_model.onnx"]
    check = found["check"]["float32"]
    assert (check["texts"], check["images"] > 1, check["image_cosine"] > 0.9999) == (0, True, True)
    assert 0 <= check["image_in_teacher_index"]["neighbour_overlap"][1] <= 1
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = AutoModel.from_pretrained(run / "model").eval()(pixel_values=pixels)
    pooled = rows_of(out, "vision_model", "pooler_output", {"pixel_values": pixels.numpy()})
    np.testing.assert_allclose(pooled, expected.pooler_output.numpy(), atol=1e-4)
    assert not (out / "tokenizer.json").exists()
    assert "onnx/vision_model.onnx" in (out / "README.md").read_text()
