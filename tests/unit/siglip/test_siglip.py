"""What must be right about SigLIP 2 checkpoints: the traps of DESIGN.md section 5."""

import hashlib
import importlib
import json
import os
import shutil
import string
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from kit import processes
from kit.published import REAL_PROCESSOR, SMALL_PROCESSOR, needs_real_processor, num_tokens
from safetensors.torch import load_file, save_file

from siglip2_cache import siglip
from siglip2_cache.errors import CheckpointError, SettingError
from siglip2_cache.siglip import (
    SquashRecipe,
    TextTokenizer,
    checkpoint_identity,
    embed_image_pixels,
    embed_token_ids,
    load_model,
    logit_scale_and_bias,
    resolve_checkpoint,
)
from siglip2_cache.siglip import config as config_module
from siglip2_cache.siglip import files as files_module
from siglip2_cache.siglip import image as image_module
from siglip2_cache.siglip.text_settings import canonicalize

PAD, EOS = 0, 1
TEXTS = [
    "A Cat",
    "ΟΔΥΣΣΕΥΣ",
    "",
    "İstanbul ẞ ÄÖÜ",
    "two  spaces\tand\na line",
    "猫 😀",
    "word " * 200,
]


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may change."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def edit_json(path: Path, **changes: Any) -> None:
    """Set fields, named with dots, of a JSON file; None removes one."""
    value = json.loads(path.read_text())
    for name, change in changes.items():
        *parents, last = name.split("__")
        section = value
        for parent in parents:
            section = section[parent]
        if change is None:
            section.pop(last, None)
        else:
            section[last] = change
    path.write_text(json.dumps(value))


# Settings


def test_a_local_folder_is_resolved_from_its_own_files(folder: Path) -> None:
    checkpoint = resolve_checkpoint(str(folder))
    assert (checkpoint.folder, checkpoint.given) == (folder, str(folder))
    assert (checkpoint.name, checkpoint.revision) == ("copy", None)
    assert (checkpoint.model_type, checkpoint.embed_dim) == ("siglip", 64)
    assert checkpoint.image == SquashRecipe(size=(64, 64), resample=2)
    assert (checkpoint.max_text_tokens, checkpoint.vocab_size) == (64, 512)
    assert checkpoint.rescale_factor == 1 / 255
    assert checkpoint.image_mean == checkpoint.image_std == (0.5, 0.5, 0.5)
    assert checkpoint.stored_dtype == "float32"


def test_a_name_is_made_safe_for_a_folder(folder: Path) -> None:
    odd = folder.rename(folder.parent / "..run 7: löss")
    assert resolve_checkpoint(str(odd)).name == "run-7-l-ss"


@needs_real_processor
def test_fields_the_published_files_leave_out_are_filled(folder: Path) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copyfile(REAL_PROCESSOR / name, folder / name)
    checkpoint = resolve_checkpoint(str(folder))
    assert checkpoint.embed_dim == 768
    assert checkpoint.image == SquashRecipe(size=(224, 224), resample=2)
    assert (checkpoint.max_text_tokens, checkpoint.vocab_size) == (64, 256_000)


@pytest.mark.parametrize("model_type", ["siglip", "siglip2"])
def test_the_defaults_are_those_of_transformers(model_type: Literal["siglip", "siglip2"]) -> None:
    classes = importlib.import_module(f"transformers.models.{model_type}")
    name = model_type.capitalize()
    text = getattr(classes, f"{name}TextConfig")().to_dict()
    vision = getattr(classes, f"{name}VisionConfig")().to_dict()
    text["projection_size"] = None  # filled in by the class with hidden_size, by us too
    for theirs, ours in (
        (text, config_module.TEXT_DEFAULTS),
        (vision, config_module.VISION_DEFAULTS[model_type]),
    ):
        assert {field: theirs[field] for field in ours} == ours
    image = getattr(classes, f"{name}ImageProcessorPil")()
    for field, value in image_module.PROCESSOR_DEFAULTS[model_type].items():
        found = getattr(image, field)
        if isinstance(found, tuple):
            found = list(found)
        assert (dict(found) if field == "size" else found) == value


def test_transformers_5_nests_the_image_processor_and_prefers_that(folder: Path) -> None:
    nested = json.loads((folder / "preprocessor_config.json").read_text()) | {"resample": 3}
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": nested}))
    assert resolve_checkpoint(str(folder)).image.resample == 3


def test_what_a_processor_saves_resolves_to_the_same_settings(folder: Path) -> None:
    from transformers import AutoProcessor

    before = resolve_checkpoint(str(folder))
    processor = AutoProcessor.from_pretrained(folder)
    for name in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    processor.save_pretrained(folder)
    assert resolve_checkpoint(str(folder)) == before
    TextTokenizer(before)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "config.json",
            {"model_type": "clip"},
            r"model_type 'clip'; supported are 'siglip' and",
        ),
        ("config.json", {"model_type": "siglip2"}, r"image_processor_type 'SiglipImageProcessor'"),
        ("config.json", {"vision_config__num_channels": 1}, r"num_channels 1; images are RGB"),
        ("config.json", {"text_config__projection_size": 32}, r"width 64 and .* width 32"),
        ("config.json", {"vision_config__image_size": 96}, r"64 x 64.*takes 96 x 96"),
        ("config.json", {"vision_config__image_size": [64, 64]}, r"image_size \[64, 64\]"),
        ("config.json", {"vision_config__vision_use_head": False}, r"vision_use_head false"),
        ("preprocessor_config.json", {"do_resize": False}, r"do_resize false"),
        ("preprocessor_config.json", {"do_normalize": False}, r"do_normalize false"),
        ("preprocessor_config.json", {"do_rescale": False}, r"do_rescale false"),
        ("preprocessor_config.json", {"do_center_crop": True}, r"do_center_crop true"),
        ("preprocessor_config.json", {"do_pad": True}, r"do_pad true"),
        ("preprocessor_config.json", {"resample": 9}, r"resample 9"),
        ("preprocessor_config.json", {"size": {"shortest_edge": 64}}, r"shortest_edge"),
        ("preprocessor_config.json", {"image_mean": 0.5}, r"image_mean"),
        (
            "preprocessor_config.json",
            {"image_processor_type": "Siglip2ImageProcessor"},
            r"Siglip2ImageProcessor",
        ),
    ],
)
def test_settings_we_would_not_reproduce_are_refused(
    folder: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    edit_json(folder / file, **changes)
    with pytest.raises(CheckpointError, match=message):
        resolve_checkpoint(str(folder))


def test_the_kind_of_model_is_asked_from_the_config_not_the_name(folder: Path) -> None:
    named_naflex = folder.rename(folder.parent / "siglip2-base-patch16-naflex")
    assert resolve_checkpoint(str(named_naflex)).model_type == "siglip"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, r"has no config\.json.*not a complete"),
        ("config.json", b"{", r"cannot be read as JSON"),
        ("config.json", b"[]", r"contains no JSON object"),
        ("config.json", b"\xff", r"cannot be read as JSON"),
        ("preprocessor_config.json", None, r"has no preprocessor_config\.json"),
        ("model.safetensors", None, r"has no model\.safetensors; save the weights"),
        ("model.safetensors", b"version https://git-lfs", r"is not a safetensors file"),
        ("model.safetensors", b"", r"is not a safetensors file"),
    ],
)
def test_missing_and_damaged_files_are_named(
    folder: Path, file: str, content: bytes | None, message: str
) -> None:
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        resolve_checkpoint(str(folder))


def test_a_truncated_download_is_seen_before_the_model_is_loaded(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"has \d+ bytes, its header says \d+; download it"):
        resolve_checkpoint(str(folder))


@pytest.mark.parametrize("given", ["/no/such/folder", "nothing-here", "./a/b", "~/a/b"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(given: str) -> None:
    with pytest.raises(CheckpointError, match=r"neither a folder nor a hub id"):
        resolve_checkpoint(given)


def test_a_local_folder_has_no_revision(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="has no revision 'main'"):
        resolve_checkpoint(str(folder), revision="main")


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


def test_a_hub_id_is_found_in_the_offline_cache_and_needs_no_torch(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    commit = "a" * 40
    repository = tmp_path / "hub" / "models--someone--siglip2-tiny"
    shutil.copytree(tiny_checkpoint, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    code = (
        "import json, sys\n"
        "from siglip2_cache.siglip import *\n"
        "from siglip2_cache.errors import CheckpointError\n"
        "c = resolve_checkpoint('someone/siglip2-tiny')\n"
        "identity = checkpoint_identity(c, compute_dtype=resolve_compute_dtype(c, 'cpu'))\n"
        "logit_scale_and_bias(c)\n"
        f"assert resolve_checkpoint('someone/siglip2-tiny', revision={commit!r}) == c\n"
        "try: resolve_checkpoint('someone/else')\n"
        "except CheckpointError as error: message = str(error)\n"
        "heavy = [name for name in ('torch', 'transformers') if name in sys.modules]\n"
        "print(json.dumps([c.name, c.given, c.revision, str(c.folder), identity, message, heavy]))"
    )
    out = run_python(code, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    name, given, revision, folder, identity, message, heavy = json.loads(out)
    assert (name, given, revision) == ("siglip2-tiny", "someone/siglip2-tiny", commit)
    assert folder == str(repository / "snapshots" / commit)
    local = resolve_checkpoint(str(tiny_checkpoint))
    assert identity == checkpoint_identity(local, compute_dtype="float32")
    assert "someone/else is not a local folder" in message
    assert "local hub cache" in message
    assert "\n" not in message
    assert heavy == []


# Stored parameters


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_scale_and_bias_are_the_stored_parameters(
    make_checkpoint: Callable[..., Path], tmp_path: Path, dtype: str
) -> None:
    folder = make_checkpoint("tiny-patch16-64", tmp_path, dtype=dtype)
    checkpoint = resolve_checkpoint(str(folder))
    assert checkpoint.stored_dtype == dtype
    assert logit_scale_and_bias(checkpoint) == pytest.approx((4.75, -16.8), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scale_and_bias_in_half_precision_are_decoded(folder: Path, dtype: torch.dtype) -> None:
    halves = {name: tensor.to(dtype) for name, tensor in weights_of(folder).items()}
    save_file(halves, folder / "model.safetensors")
    expected = tuple(halves[name].item() for name in ("logit_scale", "logit_bias"))
    assert logit_scale_and_bias(resolve_checkpoint(str(folder))) == expected


def test_scale_and_bias_of_another_dtype_than_the_weights_are_decoded_or_refused(
    folder: Path,
) -> None:
    weights = weights_of(folder)
    for name in ("logit_scale", "logit_bias"):
        weights[name] = weights[name].double()
    save_file(weights, folder / "model.safetensors")
    checkpoint = resolve_checkpoint(str(folder))
    assert logit_scale_and_bias(checkpoint) == pytest.approx((4.75, -16.8))
    weights["logit_bias"] = weights["logit_bias"].long()
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(
        CheckpointError,
        match=r"model\.safetensors stores logit_bias as I64, expected one of F64, F32, F16, BF16; "
        r"convert it to float32, and save the weights again$",
    ):
        logit_scale_and_bias(checkpoint)


def test_sharded_weights_are_read_whole(folder: Path) -> None:
    weights = weights_of(folder)
    identity = checkpoint_identity(resolve_checkpoint(str(folder)), compute_dtype="float32")
    is_text = {name: name.startswith("text") for name in weights}
    for number, flag in enumerate((True, False)):
        part = {name: weights[name] for name in weights if is_text[name] is flag}
        save_file(part, folder / f"model-{number}.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    index = {
        "metadata": {},
        "weight_map": {name: f"model-{int(not is_text[name])}.safetensors" for name in weights},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    checkpoint = resolve_checkpoint(str(folder))
    assert logit_scale_and_bias(checkpoint) == pytest.approx((4.75, -16.8))
    other = checkpoint_identity(checkpoint, compute_dtype="float32")
    assert {name for name in identity if identity[name] != other[name]} == {"weights_sha256"}
    load_model(checkpoint, device="cpu", compute_dtype="float32")
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"names model-1\.safetensors, which is missing"):
        resolve_checkpoint(str(folder))


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": None}])
def test_an_index_that_names_no_file_is_refused(folder: Path, index: dict[str, Any]) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        CheckpointError,
        match=r"index\.json has no weight_map, or an empty one; download it again$",
    ):
        resolve_checkpoint(str(folder))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in load_file(folder / "model.safetensors").items()}


# Loading


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("text_model.head.bias"), r"1 missing.*text_model\.head\.bias"),
        (lambda weights: weights.update(extra=torch.zeros(2)), r"1 unexpected weights: extra"),
        (
            lambda weights: weights.update({"text_model.head.bias": torch.zeros(3)}),
            r"1 mismatched weights: text_model\.head\.bias",
        ),
    ],
    ids=["missing", "unexpected", "of another shape"],
)
def test_weights_that_do_not_fit_are_named_not_drawn_at_random(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], Any], message: str
) -> None:
    weights = weights_of(folder)
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    checkpoint = resolve_checkpoint(str(folder))
    with pytest.raises(CheckpointError, match=message):
        load_model(checkpoint, device="cpu", compute_dtype="float32")


@pytest.mark.parametrize(
    ("stored", "compute", "held"),
    [
        ("bfloat16", "bfloat16", {torch.bfloat16}),
        ("float32", "bfloat16", {torch.float32, torch.bfloat16}),  # matrices are rounded
        ("bfloat16", "float32", {torch.float32}),
        ("float16", "bfloat16", {torch.bfloat16}),
    ],
)
def test_parameters_stay_as_stored_where_they_can(
    make_checkpoint: Callable[..., Path],
    tmp_path: Path,
    stored: str,
    compute: str,
    held: set[torch.dtype],
) -> None:
    checkpoint = resolve_checkpoint(str(make_checkpoint("tiny-patch16-64", tmp_path, dtype=stored)))
    model = load_model(checkpoint, device="cpu", compute_dtype=compute)
    assert {parameter.dtype for parameter in model.parameters()} == held
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.config._attn_implementation == "sdpa"


def test_loading_prints_nothing(folder: Path) -> None:
    # in a process of its own: transformers' log handler keeps the stderr it was imported with
    edit_json(folder / "config.json", text_config__bos_token_id=49406)  # as published, and unused
    code = (
        "from siglip2_cache.siglip import *\n"
        f"checkpoint = resolve_checkpoint({str(folder)!r})\n"
        "TextTokenizer(checkpoint)\n"
        "load_model(checkpoint, device='cpu', compute_dtype='float32')"
    )
    assert run_python(code) == ""


def test_pixels_and_ids_of_a_wrong_shape_are_refused(tiny_checkpoint: Path) -> None:
    checkpoint = resolve_checkpoint(str(tiny_checkpoint))
    model = load_model(checkpoint, device="cpu", compute_dtype="float32")
    for pixels in (torch.zeros(2, 3, 64, 64, dtype=torch.uint8), torch.zeros(2, 64, 64, 3)):
        with pytest.raises(ValueError, match=r"uint8 of shape \(B, 64, 64, 3\)"):
            embed_image_pixels(model, checkpoint, pixels, compute_dtype="float32")
    with pytest.raises(ValueError, match=r"must be of shape \(B, 64\), got \(2, 10\)"):
        embed_token_ids(model, torch.zeros(2, 10, dtype=torch.int64), compute_dtype="float32")


# Texts


WHOLE = pytest.param(REAL_PROCESSOR, id="published", marks=needs_real_processor)
SMALL = pytest.param(SMALL_PROCESSOR, id="small published")


@pytest.fixture(params=[pytest.param(None, id="tiny"), SMALL])
def tokenizer_folder(request: pytest.FixtureRequest, tiny_checkpoint: Path, folder: Path) -> Path:
    """A checkpoint with the tests' own tokenizer, or with the tokenizer files of a processor."""
    if request.param is not None:
        for path in request.param.glob("*token*"):
            (folder / path.name).unlink(missing_ok=True)
            (folder / path.name).symlink_to(path)
        edit_json(folder / "config.json", text_config__vocab_size=num_tokens(request.param))
    return folder


def test_texts_become_what_the_text_tower_was_trained_on(tokenizer_folder: Path) -> None:
    tokenize = TextTokenizer(resolve_checkpoint(str(tokenizer_folder)))
    ids_BL = tokenize(TEXTS)
    assert ids_BL.shape == (len(TEXTS), 64)
    assert ids_BL.dtype == np.int64
    np.testing.assert_array_equal(tokenize(["a cat"])[0], ids_BL[0])  # lowercased
    for ids_L in ids_BL:
        num_ids = int(np.flatnonzero(ids_L == EOS)[0]) + 1
        assert (ids_L[:num_ids] != PAD).all()
        assert (ids_L[num_ids:] == PAD).all()  # padded on the right, after eos
    assert ids_BL[TEXTS.index("")].tolist() == [EOS] + [PAD] * 63
    assert ids_BL[TEXTS.index("word " * 200), -1] == EOS  # 200 words: cut, eos kept
    assert tokenize([]).shape == (0, 64)


def test_lowercasing_is_that_of_the_tokenizers_library(tokenizer_folder: Path) -> None:
    # str.lower() makes of a capital sigma at the end of a word the final form of the letter
    tokenize = TextTokenizer(resolve_checkpoint(str(tokenizer_folder)))
    assert "ΟΔΥΣΣΕΥΣ".lower() == "οδυσσευς"
    np.testing.assert_array_equal(tokenize(["ΟΔΥΣΣΕΥΣ"]), tokenize(["οδυσσευσ"]))
    assert (tokenize(["ΟΔΥΣΣΕΥΣ"]) != tokenize(["οδυσσευς"])).any()


@pytest.mark.parametrize("tokenizer_folder", [SMALL], indirect=True)
def test_the_ids_are_those_of_transformers_own_siglip2_tokenizer(tokenizer_folder: Path) -> None:
    from transformers import Siglip2Tokenizer

    texts = [*TEXTS, *string.printable, "<eos> in a caption <bos>"]
    expected = Siglip2Tokenizer.from_pretrained(SMALL_PROCESSOR)(
        texts, padding="max_length", max_length=64, truncation=True, padding_side="right"
    )["input_ids"]
    tokenize = TextTokenizer(resolve_checkpoint(str(tokenizer_folder)))
    np.testing.assert_array_equal(tokenize(texts), expected)


@pytest.mark.parametrize("tokenizer_folder", [WHOLE], indirect=True)
def test_the_ids_are_those_that_were_published(tokenizer_folder: Path) -> None:
    golden = json.loads((REAL_PROCESSOR / "golden_ids.json").read_text())
    tokenize = TextTokenizer(resolve_checkpoint(str(tokenizer_folder)))
    for text, ids in golden:  # of lower-case texts, without eos
        if text == text.lower():
            assert tokenize([text])[0, : len(ids) + 1].tolist()[:63] == [*ids, EOS][:63]


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("tokenizer_config.json", {"pad_token": None}, r"has no pad_token"),
        ("tokenizer_config.json", {"pad_token": "<hole>"}, r"has no token '<hole>'"),
        ("config.json", {"text_config__vocab_size": 500}, r"ids up to 511.*has 500 token"),
        ("tokenizer.json", {"post_processor": None}, r"does not append one eos to a text"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(
    folder: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    edit_json(folder / file, **changes)
    with pytest.raises(CheckpointError, match=message):
        TextTokenizer(resolve_checkpoint(str(folder)))


def test_a_pad_token_is_also_found_where_older_checkpoints_keep_it(folder: Path) -> None:
    expected = TextTokenizer(resolve_checkpoint(str(folder)))(TEXTS)
    edit_json(folder / "tokenizer_config.json", pad_token=None)
    pad = {"pad_token": {"content": "<pad>", "special": True}}
    (folder / "special_tokens_map.json").write_text(json.dumps(pad))
    np.testing.assert_array_equal(TextTokenizer(resolve_checkpoint(str(folder)))(TEXTS), expected)


def test_siglip_1_texts_lose_their_punctuation(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", tokenizer_class="SiglipTokenizer")
    checkpoint = resolve_checkpoint(str(folder))
    tokenize = TextTokenizer(checkpoint)
    np.testing.assert_array_equal(
        tokenize(["  A 'Cat',\n on a mat! "]), tokenize(["a cat on a mat"])
    )
    cleaning = checkpoint_identity(checkpoint, compute_dtype="float32")["text_cleaning"]
    assert cleaning == "str.lower, punctuation removed, whitespace collapsed"


def test_siglip_1_cleaning_is_that_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    if "sentencepiece" not in sys.modules:  # its module only has to import
        monkeypatch.setitem(sys.modules, "sentencepiece", types.ModuleType("sentencepiece"))
    from transformers.models.siglip.tokenization_siglip import SiglipTokenizer

    theirs = types.SimpleNamespace(do_lower_case=True)
    theirs.remove_punctuation = lambda text: SiglipTokenizer.remove_punctuation(theirs, text)
    for text in [*TEXTS, string.printable, "don't -- 'stop'"]:
        expected = SiglipTokenizer.canonicalize_text(theirs, text)
        assert canonicalize(text, lower=True) == expected


def test_a_siglip_1_checkpoint_without_tokenizer_json_asks_for_sentencepiece(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (folder / "tokenizer.json").rename(folder / "spiece.model")
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        TextTokenizer(resolve_checkpoint(str(folder)))
    edit_json(folder / "tokenizer_config.json", tokenizer_class="SiglipTokenizer")
    with pytest.raises(CheckpointError, match=r"pip install sentencepiece"):
        TextTokenizer(resolve_checkpoint(str(folder)))


# Identity


def changed_fields(folder: Path, change: Callable[[], object]) -> set[str]:
    before = checkpoint_identity(resolve_checkpoint(str(folder)), compute_dtype="float32")
    change()
    after = checkpoint_identity(resolve_checkpoint(str(folder)), compute_dtype="float32")
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def test_the_identity_names_what_changed(folder: Path) -> None:
    def change_a_weight() -> None:
        weights = weights_of(folder)
        weights["text_model.head.bias"] += 1
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    def edit(file: str, **changes: Any) -> Callable[[], None]:
        return lambda: edit_json(folder / file, **changes)

    assert changed_fields(folder, lambda: None) == set()
    assert changed_fields(folder, change_a_weight) == {"weights_sha256"}
    truncation = edit("tokenizer.json", truncation={"max_length": 5})
    assert changed_fields(folder, truncation) == {"tokenizer_sha256"}
    padding = edit("tokenizer_config.json", pad_token="<unk>")
    assert changed_fields(folder, padding) == {"text_padding"}
    assert changed_fields(folder, edit("preprocessor_config.json", resample=3)) == {
        "image_resample"
    }
    mean = edit("preprocessor_config.json", image_mean=[0.4, 0.5, 0.5])
    assert changed_fields(folder, mean) == {"image_mean"}
    heads = edit("config.json", vision_config__num_attention_heads=2)
    assert changed_fields(folder, heads) == {"vision_config.num_attention_heads"}
    assert changed_fields(folder, edit("config.json", transformers_version="9")) == set()


def test_the_identity_is_plain_json_and_holds_the_dtype(tiny_checkpoint: Path) -> None:
    checkpoint = resolve_checkpoint(str(tiny_checkpoint))
    identity = checkpoint_identity(checkpoint, compute_dtype="float32")
    assert json.loads(json.dumps(identity)) == identity
    weights = (tiny_checkpoint / "model.safetensors").read_bytes()
    assert identity["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    other = checkpoint_identity(checkpoint, compute_dtype="bfloat16")
    assert {name for name in identity if identity[name] != other[name]} == {"compute_dtype"}
    with pytest.raises(SettingError, match="dtype 'int8' is not one of float32"):
        checkpoint_identity(checkpoint, compute_dtype="int8")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of the files that were really read to be hashed; the memory starts empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))
    names: list[str] = []
    really = files_module._hash_bytes

    def hash_bytes(path: Path) -> str:
        names.append(path.name)
        return really(path)

    monkeypatch.setattr(files_module, "_hash_bytes", hash_bytes)
    return names


def test_a_file_is_hashed_once_until_its_size_or_mtime_changes(
    tmp_path: Path, hashed: list[str]
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    first = siglip.file_sha256(path)
    assert siglip.file_sha256(path) == first == hashlib.sha256(b"one").hexdigest()
    (tmp_path / "link").symlink_to(path)
    assert siglip.file_sha256(tmp_path / "link") == first  # a hub snapshot is made of links
    assert len(hashed) == 1
    stamp = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    assert siglip.file_sha256(path) == hashlib.sha256(b"two").hexdigest()
    path.write_bytes(b"three")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    assert siglip.file_sha256(path) == hashlib.sha256(b"three").hexdigest()
    assert len(hashed) == 3


@pytest.mark.parametrize("damage", [b"", b"[1]", b"\xff{", b'{"PATH": 7}', b'{"PATH": [3, "x"]}'])
def test_a_damaged_memory_costs_only_time(tmp_path: Path, hashed: list[str], damage: bytes) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    memory = tmp_path / "cache-home" / "siglip2-cache" / "sha256.json"
    memory.parent.mkdir(parents=True)
    memory.write_bytes(damage.replace(b"PATH", str(path).encode()))
    for _ in range(2):
        assert siglip.file_sha256(path) == hashlib.sha256(b"one").hexdigest()
    assert len(hashed) == 1
    assert [entry.name for entry in memory.parent.iterdir()] == ["sha256.json"]


def test_a_home_that_cannot_be_written_costs_only_time(
    tmp_path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))  # a file where a folder should be
    assert siglip.file_sha256(path) == siglip.file_sha256(path)
    assert len(hashed) == 2


@pytest.mark.parametrize("prefix", ["model.", "module.", "module.model.", "_orig_mod."])
@pytest.mark.parametrize("is_scalar", [False, True])
def test_weights_of_a_wrapped_model_are_refused_with_the_command_that_mends_them(
    tiny_checkpoint: Path, tmp_path: Path, prefix: str, is_scalar: bool
) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "wrapped")
    file = folder / "model.safetensors"
    whole = load_file(file)
    scalars = {name: whole[name][0].clone() for name in ("logit_scale", "logit_bias")}
    state = {**whole, **scalars} if is_scalar else whole
    save_file({prefix + name: tensor for name, tensor in state.items()}, file)
    with pytest.raises(CheckpointError, match=rf"names its weights {prefix}\*; run there: ") as e:
        resolve_checkpoint(str(folder))
    code = str(e.value).partition('python -c "')[2].removesuffix('"')
    mended = processes.run([sys.executable, "-c", code], cwd=folder)
    assert mended.returncode == 0, mended.stderr
    assert load_file(file).keys() == whole.keys()
    assert logit_scale_and_bias(resolve_checkpoint(str(folder))) == pytest.approx((4.75, -16.8))


def test_logits_that_are_numbers_alone_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "scalar")
    file = folder / "model.safetensors"
    whole = load_file(file)
    save_file({**whole, "logit_scale": whole["logit_scale"][0].clone()}, file)
    with pytest.raises(
        CheckpointError, match=r"logit_scale or logit_bias of shape \[\]; run there"
    ):
        resolve_checkpoint(str(folder))


def test_an_image_tower_alone_is_named_as_one(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "tower")
    (folder / "config.json").write_text('{"model_type": "siglip_vision_model"}')
    with pytest.raises(CheckpointError, match=r"is an image tower alone .* name the whole"):
        resolve_checkpoint(str(folder))


def test_weights_may_be_read_by_whom_any_new_file_may_be_read_by(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    files_module.save_weights(tmp_path / "weights.safetensors", {"a": torch.ones(2)})
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1
    assert load_file(tmp_path / "weights.safetensors")["a"].tolist() == [1, 1]
