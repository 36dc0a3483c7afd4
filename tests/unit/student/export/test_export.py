"""An exported student is right for whoever has plain transformers and nothing of ours."""

import json
import logging
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.published import REAL_PROCESSOR, SMALL_PROCESSOR, needs_real_processor, num_tokens
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from siglip2_cache import siglip
from siglip2_cache.errors import CheckpointError, DiskFullError, SettingError
from siglip2_cache.images.naflex import render_patches
from siglip2_cache.images.pixels import resize
from siglip2_cache.siglip.text_settings import TextSettings
from siglip2_cache.store.format.views import WHOLE_IMAGE
from siglip2_cache.student.export import export
from siglip2_cache.student.export import tokenizer as export_tokenizer
from siglip2_cache.student.export.export import export_model, export_tower
from siglip2_cache.student.export.model_card import CacheSummary, ModelCard

LABELS = ["A Red CAT", "two dogs", "İSTANBUL", "ΟΔΥΣΣΕΥΣ", "a Word " * 60]
TEMPLATE = "This is a photo of {}."  # the pipeline's own
TEXTS = [
    *LABELS,
    "",
    "two  spaces\tand\na line\n\n\nX",
    "猫 😀",
    "<EOS> <eos> <bos> <start_of_turn> [@BOS@] <unused3> <pad> end",
    "   before, after   ",
]
CARD = ModelCard(
    name="student",
    student="student",
    teachers=["teacher"],
    cache=CacheSummary(samples=3, captions=4, texts=4, views=1, corpora=["folder"]),
    objectives={"soft": 1.0},
    steps=2,
    global_batch_size=3,
    towers="both",
)


@dataclass(frozen=True)
class Exported:
    """A student and the folder it was exported to; read them, do not change them."""

    start: siglip.Checkpoint
    model: Any
    out: Path


@pytest.fixture(scope="module")
def checkpoints(
    make_checkpoint: Callable[..., Path],
    tiny_checkpoint: Path,
    naflex_checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], siglip.Checkpoint]:
    """What a student starts from, by name; made once."""
    folders = {"fixed": tiny_checkpoint, "naflex": naflex_checkpoint}
    archs = {"fixed": "tiny-patch16-64", "naflex": "tiny-patch16-naflex"}
    processors = {"published": REAL_PROCESSOR, "small": SMALL_PROCESSOR}

    def get(name: str) -> siglip.Checkpoint:
        if name not in folders:
            folder = tmp_path_factory.mktemp("published") / "start"
            kind, source = name.split()
            folders[name] = make_checkpoint(
                archs[kind],
                folder,
                processors[source],
                dtype="float32",
                vocab_size=num_tokens(processors[source]),
            )
        return siglip.resolve_checkpoint(str(folders[name]))

    return get


@pytest.fixture
def start(
    request: pytest.FixtureRequest, checkpoints: Callable[[str], siglip.Checkpoint]
) -> siglip.Checkpoint:
    return checkpoints(request.param)


@pytest.fixture(scope="module")
def exports(
    checkpoints: Callable[[str], siglip.Checkpoint], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Exported]:
    """Exports by the name of what they started from; made once."""
    made: dict[str, Exported] = {}

    def get(name: str) -> Exported:
        if name not in made:
            start, out = checkpoints(name), tmp_path_factory.mktemp("exports") / "out"
            made[name] = Exported(start, trained(start), out)
            export_model(made[name].model, start, out, card=CARD)
        return made[name]

    return get


@pytest.fixture
def exported(request: pytest.FixtureRequest, exports: Callable[[str], Exported]) -> Exported:
    return exports(request.param)


FIXED = pytest.param("fixed", id="fixed")
NAFLEX = pytest.param("naflex", id="naflex")
FIXED_SMALL, NAFLEX_SMALL = (
    pytest.param(f"{kind} small", id=f"{kind}, small published tokenizer")
    for kind in ("fixed", "naflex")
)
FIXED_PUBLISHED, NAFLEX_PUBLISHED = (
    pytest.param(
        f"{kind} published",
        id=f"{kind}, published tokenizer",
        marks=[needs_real_processor, pytest.mark.slow],  # it is read in seconds
    )
    for kind in ("fixed", "naflex")
)
PUBLISHED = [FIXED_SMALL, NAFLEX_SMALL, FIXED_PUBLISHED, NAFLEX_PUBLISHED]
EVERY = [FIXED, NAFLEX, *PUBLISHED]


def trained(checkpoint: siglip.Checkpoint) -> Any:
    """The student after a while: other weights, scores that are neither 0 nor 1, and in its config
    the special ids that a published config.json, which leaves them out, comes to."""
    model: Any = siglip.load_model(checkpoint, device="cpu", compute_dtype="float32")
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor += 0.01 * torch.randn(tensor.shape, generator=draw)
        model.logit_scale.fill_(2.3)
        model.logit_bias.fill_(-1.0)
    for name, wrong in (("pad_token_id", 1), ("eos_token_id", 49407), ("bos_token_id", 49406)):
        setattr(model.config.text_config, name, wrong)
    return model


@pytest.fixture
def picture() -> Image.Image:
    draw = np.random.default_rng(0)
    blocks = draw.integers(0, 256, (12, 9, 3), np.uint8)
    return Image.fromarray(blocks).resize((90, 120), Image.Resampling.NEAREST)


def image_row(model: Any, checkpoint: siglip.Checkpoint, picture: Image.Image) -> torch.Tensor:
    """Our own embedding of a picture, (1, D)."""
    recipe = checkpoint.image
    if isinstance(recipe, siglip.SquashRecipe):
        pixels = torch.from_numpy(np.array(resize(picture, recipe.size, recipe.resample)))[None]
        return siglip.embed_image_pixels(model, checkpoint, pixels, compute_dtype="float32")
    patches, [(rows, columns)] = render_patches(
        picture,
        [WHOLE_IMAGE],
        patch_size=recipe.patch_size,
        max_num_patches=recipe.max_num_patches,
        resample=recipe.resample,
    )
    mask = torch.arange(recipe.max_num_patches)[None] < rows * columns
    patches = torch.from_numpy(patches)
    return siglip.embed_image_patches(
        model, checkpoint, patches, [(rows, columns)], mask, compute_dtype="float32"
    )


def text_rows(model: Any, checkpoint: siglip.Checkpoint, texts: list[str]) -> torch.Tensor:
    """Our own embeddings of texts, (B, D)."""
    ids = torch.from_numpy(siglip.TextTokenizer(checkpoint)(texts))
    return siglip.embed_token_ids(model, ids, compute_dtype="float32")


def own_scores(model: Any, checkpoint: siglip.Checkpoint, picture: Image.Image) -> dict[str, float]:
    """Our own score of each label."""
    texts = text_rows(model, checkpoint, [TEMPLATE.format(label) for label in LABELS])
    cosines = texts @ image_row(model, checkpoint, picture)[0]
    scores = torch.sigmoid(model.logit_scale.exp() * cosines + model.logit_bias)
    return dict(zip(LABELS, scores.tolist(), strict=True))


def pipeline_scores(folder: Path, picture: Image.Image, **settings: Any) -> dict[str, float]:
    """What plain transformers says, best first."""
    from transformers import pipeline

    classify = pipeline("zero-shot-image-classification", model=str(folder), **settings)
    found = classify(picture, candidate_labels=LABELS)
    return {each["label"]: each["score"] for each in found}


def run_usage(
    folder: Path, picture: Image.Image, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Run the Python of a folder's README.md there, and return what it made."""
    place = shutil.copytree(folder, workplace / "downloaded")
    picture.save(place / "picture.jpg", quality=100)
    picture.paste(Image.open(place / "picture.jpg"))  # what JPEG made of it
    monkeypatch.chdir(place)
    code, *_ = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    found: dict[str, Any] = {}
    exec(code, found)
    return found


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def said() -> Iterator[list[str]]:
    """Everything that transformers warns of."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


# What plain transformers makes of it


@pytest.mark.parametrize("exported", [FIXED, *PUBLISHED], indirect=True)
def test_the_pipeline_gives_our_own_scores(exported: Exported, picture: Image.Image) -> None:
    expected = own_scores(exported.model, exported.start, picture)
    assert 0.02 < min(expected.values()) < max(expected.values()) < 0.98
    assert len({round(score, 4) for score in expected.values()}) == len(LABELS)
    assert pipeline_scores(exported.out, picture) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("start", [FIXED, FIXED_SMALL, FIXED_PUBLISHED], indirect=True)
def test_the_files_as_shipped_give_others_in_another_order(
    start: siglip.Checkpoint, picture: Image.Image, tmp_path: Path
) -> None:
    model = trained(start)
    model.save_pretrained(tmp_path)
    for path in start.folder.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            shutil.copyfile(path, tmp_path / path.name)
    expected = own_scores(model, start, picture)
    found = pipeline_scores(tmp_path, picture)
    assert max(abs(found[label] - expected[label]) for label in LABELS) > 0.01
    assert list(found) != sorted(expected, key=expected.__getitem__, reverse=True)


@pytest.mark.parametrize("exported", [NAFLEX], indirect=True)
def test_naflex_with_another_tokenizer_needs_its_class_named(
    exported: Exported, picture: Image.Image
) -> None:
    from transformers import PreTrainedTokenizerFast

    expected = own_scores(exported.model, exported.start, picture)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(exported.out)
    found = pipeline_scores(exported.out, picture, tokenizer=tokenizer)
    assert found == pytest.approx(expected, abs=1e-5)
    assert pipeline_scores(exported.out, picture) != pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("exported", "tokenizer_class"),
    [
        pytest.param("fixed", "AutoTokenizer", id="fixed"),
        pytest.param("naflex", "PreTrainedTokenizerFast", id="naflex"),
    ],
    indirect=["exported"],
)
def test_the_usage_of_the_card_runs_as_it_stands_and_gives_our_scores(
    exported: Exported,
    tokenizer_class: str,
    picture: Image.Image,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = run_usage(exported.out, picture, tmp_path, monkeypatch)
    model, start = exported.model, exported.start
    texts = ["This is a photo of a red cat.", "This is a photo of two dogs."]
    cosines = text_rows(model, start, texts) @ image_row(model, start, picture)[0]
    expected = torch.sigmoid(model.logit_scale.exp() * cosines + model.logit_bias).tolist()
    assert found["scores"].tolist() == pytest.approx(expected, abs=1e-5)
    by_label = {each["label"]: each["score"] for each in found["results"]}
    assert [by_label["a red cat"], by_label["two dogs"]] == pytest.approx(expected, abs=1e-5)
    assert abs(expected[0] - expected[1]) > 1e-3
    card = (exported.out / "README.md").read_text()
    assert f"{tokenizer_class}.from_pretrained(folder)" in card
    assert 'padding="max_length", truncation=True, max_length=64' in card


@pytest.mark.parametrize("exported", EVERY, indirect=True)
def test_every_way_to_the_tokenizer_gives_our_ids(exported: Exported, said: list[str]) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerFast

    out, start = exported.out, exported.start
    expected = siglip.TextTokenizer(start)(TEXTS)
    ways: dict[str, Any] = {}
    if start.vocab_size < 256_000:  # the published one is read by the same code, in seconds
        ways["the class"] = PreTrainedTokenizerFast.from_pretrained(out)
    if start.model_type == "siglip" or start.vocab_size > 512:
        ways["auto"] = AutoTokenizer.from_pretrained(out)
    if len(ways) == 2:
        ways["processor"] = AutoProcessor.from_pretrained(out).tokenizer
    for way, tokenizer in ways.items():
        found = tokenizer(TEXTS, padding="max_length", truncation=True)
        assert list(found) == ["input_ids"], way  # an attention mask would change the embedding
        np.testing.assert_array_equal(found["input_ids"], expected, err_msg=way)
        assert (tokenizer.model_max_length, tokenizer.padding_side) == (64, "right")
        assert tokenizer.truncation_side == "right"
    plain = Tokenizer.from_file(str(out / "tokenizer.json"))
    np.testing.assert_array_equal([each.ids for each in plain.encode_batch(TEXTS)], expected)
    again = siglip.TextTokenizer(siglip.resolve_checkpoint(str(out)))
    np.testing.assert_array_equal(again(TEXTS), expected)
    assert said == []


@pytest.mark.parametrize("exported", [FIXED, NAFLEX], indirect=True)
def test_the_folder_loads_without_a_warning(exported: Exported, said: list[str]) -> None:
    from transformers import AutoImageProcessor, AutoModel, AutoProcessor

    _, info = AutoModel.from_pretrained(exported.out, output_loading_info=True)
    assert not any(info.values())
    AutoImageProcessor.from_pretrained(exported.out)
    AutoProcessor.from_pretrained(exported.out)
    assert said == []


@pytest.mark.parametrize("exported", [FIXED, NAFLEX], indirect=True)
def test_the_image_processor_is_the_students_own(exported: Exported, picture: Image.Image) -> None:
    from transformers import AutoImageProcessor

    theirs, ours = (
        AutoImageProcessor.from_pretrained(folder)(picture, return_tensors="np")
        for folder in (exported.start.folder, exported.out)
    )
    assert theirs.keys() == ours.keys()
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.parametrize("start", [FIXED, NAFLEX], indirect=True)
@pytest.mark.parametrize("on_white", [True, False])
def test_the_exported_processor_treats_a_transparent_colour_as_training_did(
    start: siglip.Checkpoint, on_white: bool, tmp_path: Path
) -> None:
    from transformers import AutoImageProcessor

    trained_on = replace(start, image_recipe=replace(start.image, on_white=on_white))
    export_model(trained(start), trained_on, tmp_path / "out", card=CARD)
    clear = Image.new("RGB", (64, 64), (0, 0, 255))
    clear.info["transparency"] = (0, 0, 255)
    values = AutoImageProcessor.from_pretrained(tmp_path / "out")(clear)["pixel_values"]
    assert np.asarray(values).min() == (1.0 if on_white else -1.0)
    assert siglip.resolve_checkpoint(str(tmp_path / "out")).image == trained_on.image


@pytest.mark.parametrize("start", [NAFLEX], indirect=True)
def test_another_limit_of_patches_goes_with_the_student_and_the_usage_keeps_it(
    start: siglip.Checkpoint,
    picture: Image.Image,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers import AutoProcessor

    limited, model = siglip.with_max_num_patches(start, 100), trained(start)
    export_model(model, limited, tmp_path / "out", card=CARD)
    assert siglip.resolve_checkpoint(str(tmp_path / "out")).image == limited.image
    found = run_usage(tmp_path / "out", picture, tmp_path, monkeypatch)
    row = found["output"].image_embeds[0]
    torch.testing.assert_close(row, image_row(model, limited, picture)[0], atol=1e-6, rtol=0)
    assert (row - image_row(model, start, picture)[0]).abs().max() > 1e-3
    by_label = {each["label"]: each["score"] for each in found["results"]}
    assert by_label["a red cat"] == pytest.approx(found["scores"][0].item(), abs=1e-5)
    inputs = AutoProcessor.from_pretrained(tmp_path / "out")(images=[picture], return_tensors="pt")
    assert inputs["pixel_values"].shape[1] == 100


def test_the_card_of_a_model_of_shorter_texts_leaves_the_pipeline_out(
    picture: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from siglip2_cache import demo

    start = siglip.resolve_checkpoint(str(Path(demo.__file__).parent / "checkpoints" / "student"))
    assert start.max_text_tokens == 16
    model: Any = siglip.load_model(start, device="cpu", compute_dtype="float32")
    export_model(model, start, tmp_path / "out", card=CARD)
    with pytest.raises(ValueError, match="Sequence length must be less than max_position"):
        pipeline_scores(tmp_path / "out", picture)
    found = run_usage(tmp_path / "out", picture, tmp_path, monkeypatch)
    assert "results" not in found
    texts = ["This is a photo of a red cat.", "This is a photo of two dogs."]
    cosines = text_rows(model, start, texts) @ image_row(model, start, picture)[0]
    expected = torch.sigmoid(model.logit_scale.exp() * cosines + model.logit_bias).tolist()
    assert found["scores"].tolist() == pytest.approx(expected, abs=1e-5)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "The zero-shot pipeline of transformers pads texts differently and gives wrong" in card


# What our own code makes of it


@pytest.mark.parametrize("exported", [FIXED, NAFLEX], indirect=True)
def test_the_folder_is_a_checkpoint_of_equal_embeddings(
    exported: Exported, picture: Image.Image
) -> None:
    model, start = exported.model, exported.start
    found = siglip.resolve_checkpoint(str(exported.out))
    assert (found.image, found.embed_dim, found.stored_dtype) == (start.image, 64, "float32")
    loaded = siglip.load_model(found, device="cpu", compute_dtype="float32")
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    # Some processors sum in another order where weights are aligned otherwise in memory.
    for found_rows, expected in (
        (text_rows(loaded, found, TEXTS), text_rows(model, start, TEXTS)),
        (image_row(loaded, found, picture), image_row(model, start, picture)),
    ):
        torch.testing.assert_close(found_rows, expected, rtol=0, atol=1e-6)
    assert siglip.logit_scale_and_bias(found) == pytest.approx((2.3, -1.0))


@pytest.mark.parametrize("exported", EVERY, indirect=True)
def test_the_config_holds_the_tokenizers_own_ids_whatever_the_student_said(
    exported: Exported,
) -> None:
    config = json.loads((exported.out / "config.json").read_text())
    text, before = config["text_config"], exported.model.config.text_config
    assert (text["pad_token_id"], text["eos_token_id"], text["bos_token_id"]) == (0, 1, 2)
    assert config["architectures"] == [type(exported.model).__name__]
    assert config["dtype"] == "float32"
    assert before.pad_token_id == 1  # the student stays as it was


@pytest.mark.parametrize("start", [FIXED], indirect=True)
def test_half_precision_weights_are_stored_as_float32(
    start: siglip.Checkpoint, tmp_path: Path
) -> None:
    export_model(trained(start).to(torch.bfloat16), start, tmp_path / "out", card=CARD)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


@pytest.mark.parametrize("start", [FIXED], indirect=True)
def test_bfloat16_weights_are_half_the_size_and_load_as_such(
    start: siglip.Checkpoint, tmp_path: Path
) -> None:
    from transformers import AutoModel

    model: Any = trained(start)
    export_model(model, start, tmp_path / "whole", card=CARD)
    export_model(model, start, tmp_path / "out", card=CARD, dtype="bfloat16")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    for name, tensor in whole.items():
        is_logit = name.startswith("logit_")  # rounded, the scale would be wrong by up to 0.8 %
        assert torch.equal(stored[name], tensor if is_logit else tensor.bfloat16()), name
    loaded = AutoModel.from_pretrained(tmp_path / "out")
    assert loaded.dtype == loaded.text_model.dtype == torch.bfloat16
    again = siglip.resolve_checkpoint(str(tmp_path / "out"))
    assert again.stored_dtype == "bfloat16"
    assert siglip.logit_scale_and_bias(again) == siglip.logit_scale_and_bias(
        siglip.resolve_checkpoint(str(tmp_path / "whole"))
    )


@pytest.mark.parametrize("start", [FIXED], indirect=True)
def test_what_else_is_to_be_kept_is_kept(start: siglip.Checkpoint, tmp_path: Path) -> None:
    extra = {"split": {"val": 0.1, "seed": 3}}
    export_model(trained(start), start, tmp_path / "out", card=CARD, extra=extra)
    found = json.loads((tmp_path / "out" / "siglip2_cache.json").read_text())
    assert found.pop("written_by").startswith("siglip2-cache ")
    assert found == extra
    assert files_of(tmp_path / "out") == {
        "README.md",
        "config.json",
        "config_sentence_transformers.json",
        "model.safetensors",
        "modules.json",
        "preprocessor_config.json",
        "sentence_bert_config.json",
        "siglip2_cache.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


@pytest.fixture
def siglip1(tiny_checkpoint: Path, tmp_path: Path) -> siglip.Checkpoint:
    """A checkpoint with a tokenizer of SigLIP 1, which cannot be loaded without sentencepiece."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "siglip1"))
    config = {"tokenizer_class": "SiglipTokenizer", "pad_token": "</s>", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "spiece.model").write_bytes(b"pieces")
    (folder / "tokenizer.json").unlink()
    return siglip.resolve_checkpoint(str(folder))


def test_the_files_of_a_siglip_1_tokenizer_are_copied_and_mask_no_padding(
    siglip1: siglip.Checkpoint, tmp_path: Path
) -> None:
    export_model(trained(siglip1), siglip1, tmp_path / "out", card=CARD)
    pieces = (tmp_path / "out" / "spiece.model", siglip1.folder / "spiece.model")
    assert pieces[0].read_bytes() == pieces[1].read_bytes()
    settings, were = (
        json.loads((folder / "tokenizer_config.json").read_text())
        for folder in (tmp_path / "out", siglip1.folder)
    )
    assert settings == were | {"model_input_names": ["input_ids"]}
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    text = json.loads((tmp_path / "out" / "config.json").read_text())["text_config"]
    assert text["eos_token_id"] == 49407  # as the student had it
    assert "AutoTokenizer.from_pretrained" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("start", [NAFLEX], indirect=True)
def test_beside_a_naflex_tower_a_siglip_1_tokenizer_is_named(
    start: siglip.Checkpoint, siglip1: siglip.Checkpoint, tmp_path: Path
) -> None:
    tower = trained(start).vision_model
    export_tower(tower, 1.0, 0.0, start, tmp_path / "out", other=siglip1, text_map=None, card=CARD)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "SiglipTokenizer.from_pretrained" in card
    assert "model=folder, tokenizer=tokenizer)" in card


# An image tower beside the teacher's texts


@pytest.fixture(scope="module")
def wide_teacher(
    make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> siglip.Checkpoint:
    """A bfloat16 teacher whose embeddings are of width 96, the student's are of 64."""
    from transformers import SiglipConfig, SiglipModel

    folder = make_checkpoint("tiny-patch16-64", tmp_path_factory.mktemp("wide") / "teacher")
    config = SiglipConfig.from_pretrained(folder)
    config.vision_config.hidden_size = config.text_config.projection_size = 96
    config.text_config.num_hidden_layers = 3
    config.text_config.layer_norm_eps = 1e-5
    torch.manual_seed(4)
    model: Any = SiglipModel(config)
    with torch.no_grad():  # else its texts are all alike
        for name, tensor in model.text_model.named_parameters():
            if "norm" not in name:
                tensor.normal_(std=0.2)
    model.to(torch.bfloat16).save_pretrained(folder)
    return siglip.resolve_checkpoint(str(folder))


@pytest.mark.parametrize("start", [FIXED, NAFLEX], indirect=True)
def test_texts_are_the_teachers_through_the_map(
    start: siglip.Checkpoint, wide_teacher: siglip.Checkpoint, picture: Image.Image, tmp_path: Path
) -> None:
    student = trained(start)
    map_ED = np.linalg.qr(np.random.default_rng(2).normal(size=(96, 64)))[0].astype(np.float32)
    export_tower(
        student.vision_model,
        1.5,
        -0.5,
        start,
        tmp_path / "out",
        other=wide_teacher,
        text_map=map_ED,
        card=CARD,
    )
    found = siglip.resolve_checkpoint(str(tmp_path / "out"))
    assert (found.model_type, found.image, found.embed_dim) == (start.model_type, start.image, 64)
    assert siglip.logit_scale_and_bias(found) == pytest.approx((1.5, -0.5))
    model = siglip.load_model(found, device="cpu", compute_dtype="float32")
    teacher = siglip.load_model(wide_teacher, device="cpu", compute_dtype="float32")
    mapped = text_rows(teacher, wide_teacher, TEXTS) @ torch.from_numpy(map_ED)
    expected = torch.nn.functional.normalize(mapped, dim=-1)
    torch.testing.assert_close(text_rows(model, found, TEXTS), expected, atol=2e-6, rtol=0)
    assert (1 - expected @ expected.T).max() > 0.01  # these texts are told apart
    ours, theirs = image_row(model, found, picture), image_row(student, start, picture)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("start", [FIXED, NAFLEX], indirect=True)
def test_an_image_tower_beside_the_teachers_texts_is_right_in_the_pipeline(
    start: siglip.Checkpoint,
    checkpoints: Callable[[str], siglip.Checkpoint],
    picture: Image.Image,
    tmp_path: Path,
) -> None:
    from transformers import PreTrainedTokenizerFast

    teacher = checkpoints("fixed")
    tower = trained(start).vision_model
    export_tower(tower, 2.3, -1.0, start, tmp_path / "out", other=teacher, text_map=None, card=CARD)
    found = siglip.resolve_checkpoint(str(tmp_path / "out"))
    model = siglip.load_model(found, device="cpu", compute_dtype="float32")
    teachers = siglip.load_model(teacher, device="cpu", compute_dtype="float32")
    assert torch.equal(text_rows(model, found, TEXTS), text_rows(teachers, teacher, TEXTS))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")
    scores = pipeline_scores(tmp_path / "out", picture, tokenizer=tokenizer)
    assert scores == pytest.approx(own_scores(model, found, picture), abs=1e-5)


@pytest.mark.parametrize("start", [FIXED, NAFLEX], indirect=True)
def test_without_texts_the_folder_is_an_image_tower(
    start: siglip.Checkpoint,
    picture: Image.Image,
    tmp_path: Path,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers import AutoImageProcessor, AutoModel, AutoProcessor

    student = trained(start)
    export_tower(
        student.vision_model,
        1.5,
        -0.5,
        start,
        tmp_path / "out",
        other=None,
        text_map=None,
        card=CARD,
        extra={"split": 1},
    )
    said.clear()
    model, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(model) is type(student.vision_model)
    assert not any(info.values())
    assert said == []
    inputs = AutoImageProcessor.from_pretrained(tmp_path / "out")(picture, return_tensors="pt")
    processor: Any = AutoProcessor.from_pretrained(tmp_path / "out")
    assert torch.equal(
        processor(picture, return_tensors="pt")["pixel_values"], inputs["pixel_values"]
    )
    with torch.no_grad():
        row = torch.nn.functional.normalize(model.eval()(**inputs).pooler_output, dim=-1)
    torch.testing.assert_close(row, image_row(student, start, picture), atol=1e-5, rtol=0)
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        assert all(name.startswith("vision_model.") for name in file.keys())  # noqa: SIM118
    extra = json.loads((tmp_path / "out" / "siglip2_cache.json").read_text())
    assert (extra["logit_scale"], extra["logit_bias"], extra["split"]) == (1.5, -0.5, 1)
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    used = run_usage(tmp_path / "out", picture, tmp_path, monkeypatch)["embedding"]
    torch.testing.assert_close(used, image_row(student, start, picture)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("start", [FIXED], indirect=True)
def test_of_the_teacher_only_the_text_tower_is_read(
    start: siglip.Checkpoint,
    wide_teacher: siglip.Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import safetensors

    read: list[str] = []

    class Watched:
        def __init__(self, *args: Any, **settings: Any) -> None:
            self._opened = safe_open(*args, **settings)

        def __enter__(self) -> Any:
            self._file = self._opened.__enter__()
            return self

        def __exit__(self, *error: Any) -> None:
            self._opened.__exit__(*error)

        def keys(self) -> Any:
            return self._file.keys()

        def get_tensor(self, name: str) -> Any:
            read.append(name)
            return self._file.get_tensor(name)

    monkeypatch.setattr(safetensors, "safe_open", Watched)
    monkeypatch.setattr(export, "try_programs", lambda *_, **__: None)
    map_ED = np.eye(96, 64)
    tower = trained(start).vision_model
    read.clear()
    export_tower(
        tower,
        1.0,
        0.0,
        start,
        tmp_path / "out",
        other=wide_teacher,
        text_map=map_ED,
        card=CARD,
    )
    assert len(read) > 30
    assert all(name.startswith("text_model.") for name in read)


@pytest.mark.parametrize("start", [FIXED], indirect=True)
@pytest.mark.parametrize(
    ("map_ED", "message"),
    [
        (None, r"texts of width 96 and images of width 64: a map is needed"),
        (np.eye(64, 96), r"the map must be of shape \(96, 64\), got \(64, 96\)"),
    ],
    ids=["none", "turned"],
)
def test_a_map_that_does_not_fit_is_refused_and_nothing_is_written(
    start: siglip.Checkpoint,
    wide_teacher: siglip.Checkpoint,
    tmp_path: Path,
    map_ED: Any,
    message: str,
) -> None:
    tower = trained(start).vision_model
    with pytest.raises(ValueError, match=message):
        export_tower(
            tower, 1, 0, start, tmp_path / "o", other=wide_teacher, text_map=map_ED, card=CARD
        )
    assert files_of(tmp_path) == set()


# What cannot be exported


@pytest.mark.parametrize("start", [FIXED], indirect=True)
def test_an_earlier_export_is_replaced_and_nothing_else_is(
    start: siglip.Checkpoint, tmp_path: Path
) -> None:
    model = trained(start)
    for run in (1, 2):
        export_model(model, start, tmp_path / "out", card=CARD, extra={"run": run})
    assert json.loads((tmp_path / "out" / "siglip2_cache.json").read_text())["run"] == 2
    (tmp_path / "out" / "siglip2_cache.json").unlink()
    with pytest.raises(SettingError, match=r"out exists without siglip2_cache\.json"):
        export_model(model, start, tmp_path / "out", card=CARD)


@pytest.mark.parametrize("start", [FIXED], indirect=True)
@pytest.mark.parametrize("room", [1_000, 300_000], ids=["for no tokenizer", "for no weights"])
def test_a_full_disk_is_said_and_nothing_half_is_left(
    start: siglip.Checkpoint, tmp_path: Path, room: int
) -> None:
    model = trained(start)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))  # EFBIG, which Python is told of
    try:
        with pytest.raises(DiskFullError, match=r"no space left on the disk of .* writing out;"):
            export_model(model, start, tmp_path / "out", card=CARD)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files_of(tmp_path) == set()


@pytest.mark.parametrize("start", [FIXED], indirect=True)
def test_weights_that_are_not_those_of_the_config_are_refused(
    start: siglip.Checkpoint, tmp_path: Path
) -> None:
    model = trained(start)
    model.text_model.head = torch.nn.Linear(64, 32)
    with pytest.raises(
        CheckpointError, match=r"2 weights do not fit .* text_model\.head\.bias has sh"
    ):
        export_model(model, start, tmp_path / "out", card=CARD)


def test_a_normalizer_is_lowercased_before_and_only_once() -> None:
    lower, strip = {"type": "Lowercase"}, {"type": "Strip"}
    settings = TextSettings("tokenizer.json", is_siglip1=False, lower=True, pad_token="<pad>")
    for given, rest in (
        (None, []),
        (strip, [strip]),
        (lower, []),
        ({"type": "Sequence", "normalizers": [strip, lower]}, [strip, lower]),
        ({"type": "Sequence", "normalizers": [lower, strip]}, [strip]),
    ):
        found = export_tokenizer._cleaning_first(given, settings)
        assert found == {"type": "Sequence", "normalizers": [lower, *rest]}
