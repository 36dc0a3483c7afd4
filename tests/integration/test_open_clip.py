"""A student in open_clip: the names of its weights, and, where open_clip is installed, what it computes."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.commands import error_line
from kit.fakes import FakeFactory, SilentProgress, config_of, draw_image, write_folder_corpus

from siglip2_cache import siglip
from siglip2_cache.errors import ExportError, SettingError
from siglip2_cache.precompute.build import build
from siglip2_cache.student.runtimes import open_clip_files
from siglip2_cache.student.runtimes.export import RuntimesConfig, export_runtimes
from siglip2_cache.student.runtimes.open_clip_files import open_clip_weights


def reason_without_open_clip() -> str | None:
    try:
        importlib.import_module("open_clip")
    except Exception as error:
        return f"open_clip cannot be imported: {error}"
    return None


REASON = reason_without_open_clip()
needs_open_clip = pytest.mark.skipif(REASON is not None, reason=str(REASON))


def test_every_weight_gets_a_place_and_projections_are_joined_in_order(
    tiny_checkpoint: Path,
) -> None:
    checkpoint = siglip.resolve_checkpoint(str(tiny_checkpoint))
    model = siglip.load_model(checkpoint, device="cpu", compute_dtype="float32")
    state, found = model.state_dict(), open_clip_weights(model)
    count = sum(tensor.numel() for tensor in state.values())
    assert sum(tensor.numel() for tensor in found.values()) == count
    layer, block = "text_model.encoder.layers.1.self_attn", "text.transformer.resblocks.1.attn"
    expected = torch.cat([state[f"{layer}.{part}_proj.weight"] for part in "qkv"])
    assert torch.equal(found[f"{block}.in_proj_weight"], expected)
    pooling = state["vision_model.head.attention.in_proj_bias"]
    parts = [found[f"visual.trunk.attn_pool.{part}.bias"] for part in ("q", "kv")]
    assert torch.equal(torch.cat(parts), pooling)
    assert parts[0].numel() * 3 == pooling.numel()
    assert found["logit_scale"].shape == ()


def test_an_option_that_open_clip_has_no_place_for_is_refused(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"model": "any", "out": tmp_path / "out", "to": ("open-clip",)}
    with pytest.raises(SettingError, match="precision is of ONNX graphs; add --to onnx"):
        RuntimesConfig(**settings, precisions=("int8",))
    with pytest.raises(SettingError, match="into_teacher_space is not there for open_clip"):
        RuntimesConfig(**settings, into_teacher_space=True)


@pytest.mark.skipif(REASON is None, reason="open_clip is installed")
def test_without_open_clip_the_extra_is_named(
    command: Callable[..., tuple[int, str, str]], tiny_student: Path, tmp_path: Path
) -> None:
    arguments = [tiny_student, tmp_path / "out", "--to", "open-clip", "--check", tmp_path]
    line = error_line(*command("export", "model", *arguments))
    assert "pip install 'siglip2-cache[open-clip]'" in line
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def cache(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cache")
    for path in write_folder_corpus(root / "corpus", 200).glob("*.txt"):
        path.write_text(f"Two  spaces &amp; the name {path.stem}")
    config = config_of(root / "corpus", root / "cache", tiny_checkpoint)
    build(config, progress=SilentProgress(), make_teacher=FakeFactory())
    return root / "cache"


@pytest.fixture(scope="module")
def base(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("students") / "base"
    return make_checkpoint("base-patch16-224", out, dtype="float32", vocab_size=512)


def settings(model: Path, cache: Path, out: Path) -> RuntimesConfig:
    return RuntimesConfig(
        model=str(model), out=out, to=("open-clip",), check=cache, samples=20, decode_workers=0
    )


@needs_open_clip
@pytest.mark.slow
def test_open_clip_computes_what_transformers_does(base: Path, cache: Path, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    open_clip: Any = importlib.import_module("open_clip")
    out = tmp_path / "out"
    done = export_runtimes(settings(base, cache, out))
    parity = done.found["check"]["open-clip"]
    assert min(parity["image_cosine"], parity["text_cosine"]) > 0.9999
    assert done.found["captions_changed_by_open_clip"] == parity["texts"] > 3
    assert any("open_clip changes" in line for line in done.lines)
    assert set(done.found["files"]) == {"open_clip_model.safetensors"}
    model, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{out}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{out}")
    picture, texts = draw_image(3, (400, 240)), ["A RED cat", "ein Über-Dreieck", "word " * 99]
    processor: Any = AutoImageProcessor.from_pretrained(out)
    ids: Any = AutoTokenizer.from_pretrained(out)(
        texts, padding="max_length", truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        expected = AutoModel.from_pretrained(base).eval()(
            input_ids=ids["input_ids"], **processor(picture, return_tensors="pt")
        )
        logits, _ = model.eval().get_logits(prepare(picture)[None], tokenizer(texts))
    np.testing.assert_allclose(logits, expected.logits_per_image, atol=0.05)
    assert "open_clip.create_model_and_transforms" in (out / "README.md").read_text()


@needs_open_clip
@pytest.mark.slow
def test_files_that_open_clip_computes_otherwise_from_are_refused(
    base: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = open_clip_files.open_clip_config

    def wrong(checkpoint: siglip.Checkpoint, config: Any) -> dict[str, Any]:
        found = right(checkpoint, config)
        found["preprocess_cfg"]["mean"] = [0.4, 0.4, 0.4]
        return found

    monkeypatch.setattr(open_clip_files, "open_clip_config", wrong)
    with pytest.raises(ExportError, match="open_clip is not kept: cosine of an image"):
        export_runtimes(settings(base, cache, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@needs_open_clip
def test_a_tower_that_open_clip_cannot_build_is_refused(
    tiny_student: Path, cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match="has an image tower that open_clip cannot build"):
        export_runtimes(settings(tiny_student, cache, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
