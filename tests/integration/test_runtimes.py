"""A student in ONNX: what onnxruntime computes is what PyTorch computes, and what differs is refused."""

import importlib.util
import json
import shutil
import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from kit.commands import error_line
from kit.fakes import draw_image
from kit.runtimes import STUDENT, build_cache, export_settings
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime import InferenceSession
from PIL import Image
from transformers import AutoImageProcessor

from siglip2_cache import siglip
from siglip2_cache.errors import CheckpointError, ExportError, SettingError
from siglip2_cache.student.evaluation.compare import EvalConfig
from siglip2_cache.student.export.export import write_settings
from siglip2_cache.student.export.programs import PROBES
from siglip2_cache.student.runtimes import onnx_files, onnx_graphs
from siglip2_cache.student.runtimes.export import _check_supported, export_runtimes
from siglip2_cache.student.runtimes.gate import LIMITS, check_parity
from siglip2_cache.student.runtimes.held_out import HeldOut, Outputs, read_held_out, student_outputs
from siglip2_cache.student.runtimes.onnx_student import OnnxStudent

TEXTS = ["A Red circle", "ein blaues Dreieck", "two  squares", "Word " * 99, ""]
PRECISIONS = ("float32", "float16", "int8")


@dataclass(frozen=True)
class Exported:
    """An export of the demo's larger model, and what it is compared with; do not change them."""

    out: Path
    cache: Path
    found: dict[str, Any]
    lines: list[str]
    checkpoint: siglip.Checkpoint
    model: Any
    held_out: HeldOut
    student: Outputs


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def exported(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    out = tmp_path_factory.mktemp("exports") / "out"
    done = export_runtimes(export_settings(cache, out))
    checkpoint = siglip.resolve_checkpoint(str(STUDENT))
    model = siglip.load_model(checkpoint, device="cpu", compute_dtype="float32")
    rows = EvalConfig(model=str(STUDENT), cache=cache, decode_workers=0)
    held_out = read_held_out(rows, checkpoint)
    student = student_outputs(model, checkpoint, held_out)
    return Exported(out, cache, done.found, done.lines, checkpoint, model, held_out, student)


def session(exported: Exported, name: str) -> InferenceSession:
    return InferenceSession(exported.out / "onnx" / name, providers=["CPUExecutionProvider"])


def ids_of(folder: Path, texts: list[str]) -> NDArray[np.int64]:
    """The ids as a program without transformers has them."""
    from tokenizers import Tokenizer

    encoded = Tokenizer.from_file(str(folder / "tokenizer.json")).encode_batch(texts)
    return np.array([encoding.ids for encoding in encoded], np.int64)


@pytest.mark.parametrize("num_texts", [1, 5])
def test_a_text_has_the_students_embedding_in_any_batch_even_if_its_eos_was_cut_off(
    exported: Exported, num_texts: int
) -> None:
    texts = TEXTS[:num_texts]
    ids = torch.from_numpy(siglip.TextTokenizer(exported.checkpoint)(texts))
    with torch.no_grad():
        expected = exported.model.text_model(input_ids=ids).pooler_output.numpy()
    found = ids_of(exported.out, texts)
    found[:, -1] = np.where(found[:, -1] == 1, 7, found[:, -1])  # as transformers.js cuts a text
    pooled, unit = session(exported, "text_model.onnx").run(
        ["pooler_output", "text_embeds"], {"input_ids": found}
    )
    np.testing.assert_allclose(pooled, expected, atol=1e-4)
    norms = np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, expected / norms, atol=1e-5)


def test_the_graph_of_both_towers_has_the_logits_of_transformers_for_any_two_batches(
    exported: Exported,
) -> None:
    from transformers import AutoImageProcessor, AutoModel

    pictures = [draw_image(seed, (40, 24)) for seed in range(3)]
    processor: Any = AutoImageProcessor.from_pretrained(exported.out)
    pixels = processor(pictures, return_tensors="np")["pixel_values"]
    ids = ids_of(exported.out, TEXTS)
    with torch.no_grad():
        expected = AutoModel.from_pretrained(STUDENT).eval()(
            input_ids=torch.from_numpy(ids), pixel_values=torch.from_numpy(pixels)
        )
    names = ["logits_per_image", "logits_per_text"]
    inputs = {"pixel_values": pixels, "input_ids": ids}
    per_image, per_text = session(exported, "model.onnx").run(names, inputs)
    assert per_image.shape == (3, len(TEXTS))
    np.testing.assert_allclose(per_image, expected.logits_per_image.numpy(), atol=1e-3)
    np.testing.assert_array_equal(per_text, per_image.T)


def test_the_export_says_what_it_wrote_and_how_exact_it_is(exported: Exported) -> None:
    facts = json.loads((exported.out / "export.json").read_text("utf-8"))
    assert facts == json.loads(json.dumps(exported.found))
    assert list(facts["check"]) == list(PRECISIONS)
    assert facts["left_out"] == {}
    assert len(facts["files"]) == 9
    sizes = {name: file["bytes"] for name, file in facts["files"].items()}
    for graph in ("model", "text_model", "vision_model"):
        whole, half, quarter = (
            sizes[f"onnx/{graph}{end}.onnx"] for end in ("", "_fp16", "_quantized")
        )
        assert quarter < half < 0.6 * whole
    [opset] = onnx.load(exported.out / "onnx" / "model.onnx").opset_import
    assert opset.version == facts["opset"]
    card = (exported.out / "README.md").read_text("utf-8")
    assert f"{facts['check']['int8']['logit_error']:.4f}" in card
    assert any("held-out images" in line for line in exported.lines)
    assert str(exported.cache) not in card + json.dumps(facts)


def broken(exported: Exported, tmp_path: Path, change: Callable[[Path], None]) -> Exported:
    out = shutil.copytree(exported.out, tmp_path / "broken")
    change(out)
    return Exported(**{**vars(exported), "out": out})


def change_json(name: str, change: Callable[[Any], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        value = json.loads((folder / name).read_text("utf-8"))
        change(value)
        (folder / name).write_text(json.dumps(value), encoding="utf-8")

    return apply


def change_weights(
    graph: str, name: str, change: Callable[[NDArray[Any]], Any]
) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        model = onnx.load(folder / "onnx" / graph)
        [tensor] = [t for t in model.graph.initializer if t.name == name]
        found = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(found), found.dtype), name))
        onnx.save(model, folder / "onnx" / graph)

    return apply


def keep_capitals(tokenizer: Any) -> None:
    steps = tokenizer["normalizer"]["normalizers"]
    assert steps.pop(0) == {"type": "Lowercase"}


FAULTS = {
    "padded to the longest text": (
        change_json("tokenizer.json", lambda t: t.update(padding=None)),
        r"its tokenizer gives \d+ ids for 'A Red CAT', the student's 16",
    ),
    "padded on the left": (
        change_json("tokenizer.json", lambda t: t["padding"].update(direction="Left")),
        "its tokenizer gives 16 ids for 'A Red CAT', the student's 16, and they differ from id 0",
    ),
    "capitals kept": (
        change_json("tokenizer.json", keep_capitals),
        "and they differ from id 0 on",
    ),
    "other means of the pixels": (
        change_json("preprocessor_config.json", lambda p: p.update(image_mean=[0.2, 0.5, 0.8])),
        r"cosine of an image to the student's is 0\.\d+, the limit 0.9999",
    ),
    "a dropped bias": (
        change_weights("model.onnx", "logit_bias", np.zeros_like),
        r"error of a logit is \d+",
    ),
    "a bad scale": (
        change_weights("model.onnx", "logit_scale", lambda scale: 1.01 * scale),
        r"error of a logit is 0\.\d+, the limit 0.02",
    ),
    "a bad scale beside the towers": (
        change_json("export.json", lambda facts: facts.update(logit_scale=2.0)),
        "KL divergence as a share of the entropy is",
    ),
    "other weights": (
        change_weights("text_model.onnx", "tower.head.bias", lambda bias: bias + 0.05),
        r"cosine of a text to the student's is 0\.\d+",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_export_is_refused_with_the_number_that_is_wrong(
    exported: Exported, tmp_path: Path, fault: str
) -> None:
    change, message = FAULTS[fault]
    found = broken(exported, tmp_path, change)
    with pytest.raises(ExportError, match=f"^a file is not kept: .*{message}"):
        check_parity(
            OnnxStudent(found.out, "float32"),
            found.student,
            found.checkpoint,
            found.held_out,
            limits=LIMITS["float32"],
            what="a file",
        )


def test_a_refused_export_leaves_the_earlier_one_and_nothing_else(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copied(model: Any, checkpoint: Any, folder: Path, precision: str, **_: Any) -> None:
        shutil.copytree(exported.out / "onnx", folder / "onnx")
        change_weights("model.onnx", "logit_bias", np.zeros_like)(folder)

    monkeypatch.setattr(onnx_files, "write_graphs", copied)
    out = tmp_path / "out"
    with pytest.raises(ExportError, match=r"^ONNX in float32 is not kept: error of a logit"):
        export_runtimes(export_settings(exported.cache, out))
    assert list(tmp_path.iterdir()) == []
    out.mkdir()
    (out / "siglip2_cache.json").write_text("{}")
    with pytest.raises(ExportError):
        export_runtimes(export_settings(exported.cache, out))
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "siglip2_cache.json"]


def test_a_precision_that_misses_is_left_out_with_its_reason_unless_it_was_asked_for(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copied(model: Any, checkpoint: Any, folder: Path, precision: str, **_: Any) -> None:
        shutil.copytree(exported.out / "onnx", folder / "onnx", dirs_exist_ok=True)
        change_weights("model_fp16.onnx", "logit_bias", np.zeros_like)(folder)

    monkeypatch.setattr(onnx_files, "write_graphs", copied)
    done = export_runtimes(export_settings(exported.cache, tmp_path / "out"))
    assert list(done.found["check"]) == ["float32", "int8"]
    [(name, reason)] = done.found["left_out"].items()
    assert name == "float16"
    assert reason.startswith("ONNX in float16 is not kept: error of a logit is")
    assert f"left out float16: {reason}" in done.lines
    with pytest.raises(ExportError, match="ONNX in float16 is not kept"):
        export_runtimes(
            export_settings(exported.cache, tmp_path / "other", precisions=("float16",))
        )


def test_a_model_is_not_exported_onto_itself(exported: Exported, tmp_path: Path) -> None:
    model = shutil.copytree(STUDENT, tmp_path / "run" / "model")
    (model / "siglip2_cache.json").write_text("{}")
    for out in (model, tmp_path / "run"):
        with pytest.raises(SettingError) as refused:
            export_runtimes(export_settings(exported.cache, out, model=str(model)))
        assert str(refused.value) == (
            f"{out} holds the model itself, whose weights an export would replace; name another folder"
        )
    assert (model / "model.safetensors").exists()


def test_a_split_without_images_is_replaced_by_all_of_them(
    exported: Exported, tmp_path: Path
) -> None:
    """As of a training by --val-keys, on another cache: for the check, and for int8's other pictures."""
    model = shutil.copytree(STUDENT, tmp_path / "model")
    for pattern in ("validation/*", "*"):
        notes = {"split": {"val_share": 0.5, "val_keys": pattern}}
        (model / "siglip2_cache.json").write_text(json.dumps(notes))
        checkpoint = siglip.resolve_checkpoint(str(model))
        for split in ("val", "train"):
            rows = EvalConfig(model=str(model), cache=exported.cache, split=split, decode_workers=0)
            assert len(read_held_out(rows, checkpoint).pixels_N)


def test_position_embeddings_of_any_grid_are_those_of_transformers() -> None:
    from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings

    stored = torch.randn(16, 16, 5, generator=torch.Generator().manual_seed(0))
    grids = torch.tensor([(1, 1), (16, 16), (7, 31), (40, 3), (2, 100), (13, 19)])
    N = int(grids.prod(dim=1).max())
    found = onnx_graphs.resized_positions(stored, grids, N)
    expected = Siglip2VisionEmbeddings.resize_positional_embeddings(stored, grids, N)
    for one, other, (rows, columns) in zip(found, expected, grids.tolist(), strict=True):
        torch.testing.assert_close(one[: rows * columns], other[: rows * columns])
    assert found.isfinite().all()


def test_a_naflex_tower_takes_any_number_of_patches(naflex_student: Path, tmp_path: Path) -> None:
    checkpoint = siglip.resolve_checkpoint(str(naflex_student))
    model = siglip.load_model(checkpoint, device="cpu", compute_dtype="float32")
    draw = np.random.default_rng(0)
    patches = draw.integers(0, 256, (3, 40, 768), np.uint8)
    grids = [(5, 8), (3, 9), (1, 1)]
    with torch.no_grad():
        pooled = siglip.pool_images(
            model.vision_model, checkpoint, torch.from_numpy(patches), grids
        )
        expected = siglip.unit_rows(pooled).numpy()
    graph = onnx_graphs.image_graph(model, checkpoint, "float32")
    onnx_graphs.save_graph(graph, tmp_path / "image.onnx")
    run = InferenceSession(tmp_path / "image.onnx", providers=["CPUExecutionProvider"]).run
    inputs = onnx_files.image_inputs(checkpoint, patches, np.array(grids))
    [found] = run(["image_embeds"], inputs)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # The inputs as the processor of transformers gives them, of whatever integer type.
    processor = AutoImageProcessor.from_pretrained(naflex_student, backend="pil")
    of_processor = processor(Image.new("RGB", (40, 24)), return_tensors="np")
    assert {name: np.asarray(value).dtype for name, value in of_processor.items()} == {
        name: value.dtype for name, value in inputs.items()
    }
    [one] = run(["image_embeds"], {name: np.asarray(value) for name, value in of_processor.items()})
    assert one.shape == (1, expected.shape[1])
    [alone] = run(["image_embeds"], {name: value[1:2] for name, value in inputs.items()})
    np.testing.assert_allclose(alone, expected[1:2], atol=1e-5)


def test_tokens_of_siglip_1_are_those_of_its_python_code(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graphs are those of the other test: only its texts are cleaned otherwise."""

    def copied(load: Any, checkpoint: Any, folder: Path, precision: str, **_: Any) -> None:
        shutil.copytree(exported.out / "onnx", folder / "onnx")

    monkeypatch.setattr(onnx_files, "write_graphs", copied)
    model = shutil.copytree(STUDENT, tmp_path / "model")
    settings = json.loads((model / "tokenizer_config.json").read_text("utf-8"))
    changed = settings | {"tokenizer_class": "SiglipTokenizer", "do_lower_case": True}
    (model / "tokenizer_config.json").write_text(json.dumps(changed))
    more = {"model": str(model), "precisions": ("float32",)}
    export_runtimes(export_settings(exported.cache, tmp_path / "out", **more))
    texts = [
        *TEXTS,
        *PROBES,
        string.printable,
        "it's  -- (red)?! \x1c\x85\u2003x",
        "ΟΔΟΣ, ΣΑΣ! ΑΣ'Α Σ",  # noqa: RUF001
        "İI ẞ ﬁ",
    ]
    expected = siglip.TextTokenizer(siglip.resolve_checkpoint(str(model)))(texts)
    np.testing.assert_array_equal(ids_of(tmp_path / "out", texts), expected)
    assert not np.array_equal(siglip.TextTokenizer(exported.checkpoint)(texts), expected)
    with pytest.raises(SettingError, match="a SigLIP 1 checkpoint, which is not written for open"):
        _check_supported(siglip.resolve_checkpoint(str(model)), ("open-clip",))
    (model / "tokenizer.json").rename(model / "spiece.model")
    with pytest.raises(CheckpointError, match=r"has no tokenizer.json, which other runtimes need"):
        write_settings(exported.model.config, siglip.resolve_checkpoint(str(model)), tmp_path)


def test_weights_too_large_for_one_file_lie_in_a_second_one(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_graphs, "_LARGEST_FILE", 1000)
    graph = onnx.load(exported.out / "onnx" / "text_model.onnx")
    assert onnx_graphs.save_graph(graph, tmp_path / "text_model.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "text_model.onnx",
        "text_model.onnx_data",
    ]
    inputs = {"input_ids": ids_of(exported.out, TEXTS)}
    whole = session(exported, "text_model.onnx").run(None, inputs)
    split = InferenceSession(tmp_path / "text_model.onnx", providers=["CPUExecutionProvider"])
    for one, other in zip(whole, split.run(None, inputs), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"to": ("tflite",)}, "to must be one of onnx, transformers-js, open-clip, got 'tflite'"),
        (
            {"to": ("onnx", "coreml")},
            "to coreml is not there: Core ML runs on macOS only, where its files could not be checked; use "
            "--to onnx, or convert a tower of the model with coremltools",
        ),
        ({"to": ()}, "to must name a runtime: onnx, transformers-js, open-clip"),
        (
            {"precisions": ("int4",)},
            "precision must be one of float32, float16, int8, got 'int4'",
        ),
        ({"samples": 0}, "samples must be at least 1, got 0"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, wrong: Any, message: str) -> None:
    with pytest.raises(SettingError) as error:
        export_settings(tmp_path, tmp_path / "out", **wrong)
    assert str(error.value) == message


def test_naflex_is_refused_for_transformers_js(naflex_checkpoint: Path, tmp_path: Path) -> None:
    wanted = export_settings(
        tmp_path, tmp_path / "out", model=str(naflex_checkpoint), to=("transformers-js",)
    )
    with pytest.raises(SettingError, match=r"transformers.js 4.3 does not load; use --to onnx"):
        export_runtimes(wanted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(
            (
                arguments,
                "--precision, --check, --teacher, --samples and --decode-workers go with --to; name a "
                "runtime",
            )
            for arguments in (
                ["--check", "C"],
                ["--samples", "9"],
                ["--decode-workers", "0"],
            )
        ),
        (
            ["--corpus-root", "a=b"],
            "--corpus-root is for the check of --to and --push; leave it out, or add one",
        ),
        (
            ["--to", "onnx"],
            "name a cache with --check, on whose held-out images and captions the files are checked",
        ),
        (
            ["--to", "onnx", "--check", "C", "--step", "3"],
            f"{STUDENT} is a model and no run: leave out --step, --best, --ema, --cache, --student, ",
        ),
        (
            ["--to", "onnx", "--check", "C", "--cache", "C"],
            f"{STUDENT} is a model and no run: leave out --step, --best, --ema, --cache, --student, ",
        ),
        (
            ["--to", "onnx", "--dtype", "bfloat16"],
            "--dtype is of plain transformers; with --to give --precision",
        ),
        (["--dtype", "float16"], "dtype must be one of float32, bfloat16, got 'float16'"),
        (["--to", "onnx", "--check", "nowhere"], "no cache at "),
        (["--to", "onnx", "--check", "C", "--precision", "int4"], "precision must be one of"),
    ],
)
def test_a_wrong_command_is_one_line_and_writes_nothing(
    command: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    said = error_line(*command("export", "model", STUDENT, "out", *arguments))
    assert said.startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    with pytest.raises(SettingError) as error:
        export_runtimes(export_settings(tmp_path, tmp_path / "out"))
    assert str(error.value) == (
        "an export to ONNX needs the package onnxscript, which is not installed: pip install "
        "'siglip2-cache[onnx]'"
    )
