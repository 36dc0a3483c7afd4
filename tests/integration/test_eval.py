"""``siglip2-cache eval``: a model beside the teacher whose embeddings a cache holds."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.commands import error_line
from kit.fakes import FakeTeacher, config_of, draw_image, write_table_corpus
from safetensors.numpy import save_file
from safetensors.torch import load_file as load_torch_file
from safetensors.torch import save_file as save_torch_file

from siglip2_cache import open_cache
from siglip2_cache.errors import TrainError
from siglip2_cache.precompute.build import build
from siglip2_cache.siglip import load_model, load_trainable, resolve_checkpoint
from siglip2_cache.student.evaluation.compare import EvalConfig, embed_model
from siglip2_cache.student.evaluation.embeddings import student_embeddings, teacher_embeddings
from siglip2_cache.student.evaluation.pictures import picture_refs, read_texts
from siglip2_cache.student.export.metadata import identity_sha256

Command = Callable[..., tuple[int, str, str]]
COLOURS = ("red", "green", "blue")
SHAPES = [(24, 16), (64, 24), (16, 80), (40, 40)]
NUM_IMAGES = 30


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 pictures of several shapes, in three classes and two languages; the last copies the first."""
    root = tmp_path_factory.mktemp("corpus")
    lines = [
        {
            "image": f"{i:02d}.png",
            "captions": [
                {"caption": f"Picture number {i} of many", "lang": "en"},
                {"caption": f"Bild Nummer {i // 2}", "lang": "de"},
            ],
            "label": COLOURS[i % 3],
        }
        for i in range(NUM_IMAGES)
    ]
    for i in range(NUM_IMAGES):
        seed = 0 if i == NUM_IMAGES - 1 else i
        draw_image(seed, SHAPES[seed % 4]).save(root / f"{i:02d}.png")
    (root / "templates.txt").write_text("This is a photo of {}.\na {} thing\n")
    return write_table_corpus(root, lines)


@pytest.fixture(scope="module")
def cache(corpus: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of it by the tiny checkpoint, with prompts; read it, do not change it."""
    root = tmp_path_factory.mktemp("caches") / "cache"
    build(config_of(corpus, root, tiny_checkpoint, templates=corpus.parent / "templates.txt"))
    return root


def fake_cache(
    corpus: Path, root: Path, *, checkpoint: Path, width: int = 64, **settings: Any
) -> Path:
    """A cache of the corpus by a teacher that is quick."""
    teacher = FakeTeacher(embed_dim=width)
    build(config_of(corpus, root, checkpoint, **settings), make_teacher=lambda *_: teacher)
    return root


def evaluated(command: Command, *arguments: object) -> dict[str, Any]:
    status, out, err = command("eval", *arguments, "--json", "--decode-workers", 0)
    assert (status, err) == (0, "")
    return json.loads(out)


def refused(command: Command, *arguments: object) -> str:
    return error_line(*command("eval", *arguments))


def numbers_of(value: Any, path: str = "") -> dict[str, Any]:
    """Every number of nested values by its path."""
    if isinstance(value, list):  # an interval
        value = dict(zip(("low", "high"), value, strict=True))
    if not isinstance(value, dict):
        return {path: value}
    return {
        k: v
        for name, inner in value.items()
        for k, v in numbers_of(inner, f"{path}/{name}").items()
    }


def test_the_teachers_own_checkpoint_equals_the_teacher_in_every_number(
    command: Command, cache: Path, tiny_checkpoint: Path
) -> None:
    found = evaluated(command, tiny_checkpoint, cache, "--split", "all")
    assert found["gallery"]["images"] == NUM_IMAGES
    assert found["gallery"]["captions"] == NUM_IMAGES + NUM_IMAGES // 2
    teacher, model = (numbers_of(found["columns"][name]) for name in ("teacher", "model"))
    assert len(teacher) > 40
    assert teacher.keys() == model.keys()
    rounded = ("soft_loss_excess", "calibration")  # the cache holds halves
    for name, value in teacher.items():
        if "teacher_index" in name:
            continue  # queries in float32 among images in halves: a near tie may turn
        if isinstance(value, float):
            limit = 1e-3 if any(word in name for word in rounded) else 1e-6
            assert model[name] == pytest.approx(value, abs=limit), name
        else:
            assert model[name] == value, name
    for name in ("image_cosine", "text_cosine", "image_correlation", "neighbour_overlap"):
        assert teacher[f"/{name}"] == pytest.approx(1, abs=1e-6)
    assert teacher["/soft_loss_excess"] == 0


def test_a_model_in_bfloat16_has_its_own_scale_and_bias(
    cache: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """As `export model --dtype bfloat16` writes it: all in bfloat16 but these two."""
    model = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    weights = load_torch_file(model / "model.safetensors")
    logit = {"logit_scale": torch.tensor([4.7321]), "logit_bias": torch.tensor([-16.83])}
    halves = {name: tensor.bfloat16() for name, tensor in weights.items()}
    save_torch_file(halves | logit, model / "model.safetensors", {"format": "pt"})
    config = EvalConfig(
        model=str(model), cache=cache, split="all", decode_workers=0, dtype="bfloat16"
    )
    found = embed_model(config).model
    assert found.logit_scale == pytest.approx(4.7321, abs=1e-6)
    assert found.logit_bias == pytest.approx(-16.83, abs=1e-5)


def test_a_table_shows_both_columns_and_what_was_evaluated(
    command: Command, cache: Path, tiny_checkpoint: Path
) -> None:
    status, out, err = command("eval", tiny_checkpoint, cache, "--val-share", 0.5, "--samples", 7)
    assert (status, err) == (0, "")
    head, table = out.split("\n\n")
    assert f"model      tiny: {tiny_checkpoint}" in head
    assert "images     7 of " in head
    assert "of split val (share 0.5)" in head
    assert "which images the model was trained on is not recorded with it" in head
    assert "of them also in train; 6 prompts" in head
    assert table.splitlines()[0].split() == ["teacher", "model"]
    assert "image-image cosines, correlation" in table
    assert "needs prompts" not in table


def test_workers_and_batches_make_no_difference(
    command: Command, cache: Path, tiny_checkpoint: Path
) -> None:
    arguments = ("eval", tiny_checkpoint, cache, "--split", "all", "--json")
    one, other = (
        json.loads(command(*arguments, "--decode-workers", workers, "--batch-size", size)[1])
        for workers, size in ((0, 30), (2, 7))
    )
    found, expected = (numbers_of(each["columns"]["model"]) for each in (one, other))
    assert {k: pytest.approx(v, abs=1e-5) for k, v in expected.items() if k != "/name"} == {
        k: v for k, v in found.items() if k != "/name"
    }


def test_what_a_training_left_beside_the_model_says_the_split_and_the_map(
    command: Command, cache: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    model = tmp_path / "run" / "model"
    shutil.copytree(tiny_checkpoint, model)
    notes = model / "siglip2_cache.json"
    notes.write_text(json.dumps({"split": {"val_share": 0.5, "val_keys": "0*"}}))
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(64, 64)))[0].astype(np.float32)
    save_file({"map_ED": turn}, model.parent / "projection.safetensors")
    found = evaluated(command, model, cache)
    assert found["gallery"]["val_keys"] == "0*"
    assert found["gallery"]["images"] == 11  # 00 to 09, and 29, which copies 00
    assert abs(found["columns"]["model"]["image_cosine"]) < 0.9  # the map turns it away
    assert found["columns"]["model"]["image_correlation"] == pytest.approx(1, abs=1e-6)
    # What is asked for goes before.
    asked = evaluated(command, model, cache, "--val-share", 0.5)
    assert asked["gallery"]["val_share"] == 0.5
    assert asked["gallery"]["val_keys"] is None

    save_file({"map_ED": turn[:32]}, model.parent / "projection.safetensors")
    shapes = "holds a map of shape (32, 64), expected (64, 64) from this model to this teacher"
    assert shapes in refused(command, model, cache)
    (model.parent / "projection.safetensors").write_bytes(b"nonsense")
    assert "holds no tensor map_ED" in refused(command, model, cache)
    notes.write_text("[]")
    assert "is damaged" in refused(command, model, cache)


def test_a_model_in_a_space_of_its_own_is_not_taken_for_the_teachers_by_its_width(
    command: Command, cache: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """As a run/model that was copied without the projection.safetensors above it."""
    model = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, model)
    found = evaluated(command, model, cache, "--split", "all")
    assert found["columns"]["model"]["image_cosine"] == pytest.approx(1, abs=1e-6)
    (model / "siglip2_cache.json").write_text(json.dumps({"space": None}))
    found = evaluated(command, model, cache, "--split", "all")
    assert found["columns"]["model"]["image_cosine"] is None
    assert found["columns"]["model"]["image_correlation"] == pytest.approx(1, abs=1e-6)
    _, out, _ = command("eval", model, cache, "--split", "all")
    assert "its space is its own, and there is no projection.safetensors beside it" in out


def test_how_many_were_held_out_of_its_own_training_is_told_whatever_share_is_asked_for(
    command: Command, cache: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, model)
    notes = model / "siglip2_cache.json"
    notes.write_text(json.dumps({"split": {"val_share": 0.25}}))
    own, wider = (evaluated(command, model, cache, *more) for more in ((), ("--val-share", 0.75)))
    unseen = own["gallery"]["images"]
    assert own["gallery"]["held_out_of_its_training"] == unseen
    assert wider["gallery"]["held_out_of_its_training"] == unseen < wider["gallery"]["images"]
    _, out, _ = command("eval", model, cache, "--val-share", 0.75)
    left = wider["gallery"]["images"] - unseen
    assert (
        f"{unseen} were held out of its training (share 0.25); the other {left} may have been "
        "trained on" in out
    )
    assert "held out:" not in out


def test_a_pattern_of_its_training_that_fits_no_key_here_leaves_all_and_shares_to_take(
    command: Command, cache: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, model)
    (model / "siglip2_cache.json").write_text(json.dumps({"split": {"val_keys": "valid/*"}}))
    found = evaluated(command, model, cache, "--split", "all")
    assert found["gallery"]["images"] == NUM_IMAGES
    assert found["gallery"]["val_keys"] is found["gallery"]["val_share"] is None
    assert found["gallery"]["held_out_of_its_training"] == 0
    message = refused(command, model, cache)
    assert message.endswith(
        "or --val-share, or --split all: the pattern comes from the model's training"
    )


def test_captions_that_the_model_cannot_tell_apart_cost_no_rank(
    command: Command, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    found: dict[str, dict[str, Any]] = {}
    for name, second in (("cased", "A red Circle"), ("same", "a red circle")):
        root = tmp_path / name
        root.mkdir()
        lines = [
            {"image": f"{i}.png", "captions": ["a red circle" if i % 2 else second]}
            for i in range(10)
        ]
        for i in range(10):
            draw_image(i).save(root / f"{i}.png")
        build(config_of(write_table_corpus(root, lines), root / "cache", tiny_checkpoint))
        found[name] = evaluated(command, tiny_checkpoint, root / "cache", "--split", "all")
    model = found["cased"]["columns"]["model"]
    assert model["retrieval"]["all"]["image_to_text"]["1"] == 1
    assert found["cased"]["gallery"]["captions"] == 1
    for column in ("teacher", "model"):
        assert numbers_of(found["cased"]["columns"][column]) == {
            name: pytest.approx(value, abs=1e-6) if isinstance(value, float) else value
            for name, value in numbers_of(found["same"]["columns"][column]).items()
        }


def test_without_prompts_the_table_names_the_command_that_adds_them(
    command: Command, corpus: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    root = fake_cache(corpus, tmp_path / "cache", checkpoint=tiny_checkpoint)
    found = evaluated(command, tiny_checkpoint, root, "--split", "all")
    assert found["columns"]["model"]["zero_shot"] is None
    assert found["columns"]["model"]["neighbour_overlap"] < 1  # another teacher
    _, out, _ = command("eval", tiny_checkpoint, root, "--split", "all")
    assert "--templates FILE, one template a line, such as 'This is a photo of {}.'" in out
    # The command does add them.
    fake_cache(corpus, root, checkpoint=tiny_checkpoint, templates=corpus.parent / "templates.txt")
    found = evaluated(command, tiny_checkpoint, root, "--split", "all")
    assert found["columns"]["model"]["zero_shot"]["all"]["images"] == NUM_IMAGES


def test_images_that_are_gone_or_changed_are_told_and_never_hit(
    command: Command, corpus: Path, cache: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(corpus.parent, moved)
    (moved / "03.png").unlink()
    draw_image(77, SHAPES[0]).save(moved / "04.png")
    root = f"{corpus.parent}={moved}"
    status, out, err = command(
        "eval", tiny_checkpoint, cache, "--split", "all", "--corpus-root", root
    )
    assert (status, err) == (0, "")
    assert "missing    2 images, counted as misses (first: '03', " in out
    [line] = [line for line in out.splitlines() if line.startswith("missing images")]
    assert line.split() == ["missing", "images", "0", "2"]
    found = evaluated(command, tiny_checkpoint, cache, "--split", "all", "--corpus-root", root)
    assert found["columns"]["model"]["missing_images"] == 2
    assert found["columns"]["model"]["image_cosine"] == pytest.approx(1, abs=1e-5)  # of the others
    everywhere = f"{corpus.parent}={tmp_path / 'nowhere'}"
    message = refused(
        command, tiny_checkpoint, cache, "--split", "all", "--corpus-root", everywhere
    )
    assert message.startswith("none of 30 images can be used (row 0: ")
    assert message.endswith("); if the corpus has moved, add --corpus-root OLD=NEW")


def test_settings_that_are_none_are_refused_in_one_line(
    command: Command, cache: Path, tiny_checkpoint: Path
) -> None:
    for arguments, message in (
        (("--split", "test"), "split must be one of val, train, all, got 'test'"),
        (("--samples", 0), "samples must be at least 1, got 0"),
        (("--batch-size", 0), "batch size must be at least 1, got 0"),
        (("--decode-workers", -1), "decode workers must be at least 0, got -1"),
        (("--val-share", 0.5, "--val-keys", "*"), "exclude each other"),
        (("--split", "all", "--val-share", 0.5), "split all takes every image"),
        (("--val-share", 2), "val_share must be 0 to below 1, got 2.0"),
        (("--val-keys", "nothing"), "val_keys 'nothing' matches no key"),
        (("--teacher", "who"), "no teacher 'who'"),
        (("--dtype", "half"), "dtype 'half' is not one of auto"),
        (("--val-share", 0), "split val is empty: it has none of the 30 images"),
    ):
        assert message in refused(command, tiny_checkpoint, cache, *arguments)
    assert "is neither a folder nor a hub id" in refused(command, cache / "no-model", cache)


def test_a_naflex_student_gives_what_its_own_teacher_gave(
    corpus: Path, naflex_checkpoint: Path, tmp_path: Path
) -> None:
    """Pictures of several shapes share a pass; padding makes no difference."""
    build(config_of(corpus, tmp_path / "cache", naflex_checkpoint))
    cache = open_cache(tmp_path / "cache")
    rows, texts = np.arange(NUM_IMAGES)[::-1].copy(), np.array([7, 0, 3])
    checkpoint = resolve_checkpoint(str(naflex_checkpoint))
    teacher = teacher_embeddings(cache, None, rows, texts)
    for model in (
        load_model(checkpoint, device="cpu", compute_dtype="float32"),
        load_trainable(checkpoint, towers="both", is_new=False),
    ):
        was_training = model.training
        student = student_embeddings(
            model, checkpoint, picture_refs(cache, rows), read_texts(cache, texts),
            device="cpu", compute_dtype="float32", batch_size=8, num_workers=0,
        )  # fmt: skip
        np.testing.assert_allclose(student.images_ND, teacher.images_ND, atol=2e-4)
        np.testing.assert_allclose(student.texts_MD, teacher.texts_MD, atol=2e-4)
        assert student.logit == teacher.logit
        assert model.training == was_training
        assert all(parameter.grad is None for parameter in model.parameters())

    load_trainable(checkpoint, towers="image", is_new=False).save_pretrained(tmp_path / "tower")
    settings = (naflex_checkpoint / "preprocessor_config.json").read_text()
    (tmp_path / "tower" / "preprocessor_config.json").write_text(settings)
    alone = resolve_checkpoint(str(tmp_path / "tower"), needed=("image",))
    tower = load_model(alone, device="cpu", compute_dtype="float32")
    student = student_embeddings(
        tower, alone, picture_refs(cache, rows), read_texts(cache, texts),
        device="cpu", compute_dtype="float32", batch_size=8, num_workers=0,
    )  # fmt: skip
    np.testing.assert_allclose(student.images_ND, teacher.images_ND, atol=2e-4)


def test_an_image_tower_takes_its_texts_and_logits_from_outside(
    cache: Path, tiny_checkpoint: Path
) -> None:
    opened = open_cache(cache)
    checkpoint = resolve_checkpoint(str(tiny_checkpoint))
    tower = load_trainable(checkpoint, towers="image", is_new=False)
    rows, texts = np.array([4, 2]), np.array([0, 1, 2])
    teacher = teacher_embeddings(opened, None, rows, texts)
    settings = {"device": "cpu", "compute_dtype": "float32", "batch_size": 8, "num_workers": 0}
    given = (picture_refs(opened, rows), read_texts(opened, texts))
    bare = student_embeddings(tower, checkpoint, *given, **settings)
    np.testing.assert_allclose(bare.images_ND, teacher.images_ND, atol=2e-4)
    assert bare.texts_MD.shape == (3, 64)
    assert np.isnan(bare.texts_MD).all()
    assert bare.logit is None
    whole = student_embeddings(
        tower,
        checkpoint,
        *given,
        texts_MD=teacher.texts_MD,
        logit=(1.0, -2.0),
        **settings,
    )
    assert whole.texts_MD is teacher.texts_MD
    assert whole.logit == (pytest.approx(np.e), -2.0)


def test_a_folder_of_an_image_tower_alone_meets_the_teachers_texts(
    command: Command, cache: Path, corpus: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint = resolve_checkpoint(str(tiny_checkpoint))
    folder = tmp_path / "tower"
    load_trainable(checkpoint, towers="image", is_new=False).save_pretrained(folder)
    shutil.copyfile(
        tiny_checkpoint / "preprocessor_config.json", folder / "preprocessor_config.json"
    )
    (folder / "siglip2_cache.json").write_text('{"logit_scale": 4.75, "logit_bias": -16.8}')
    whole, alone = (
        numbers_of(evaluated(command, model, cache, "--split", "all")["columns"]["model"])
        for model in (tiny_checkpoint, folder)
    )
    assert alone["/name"] == "tower"
    # Of the index of the teacher's images, near ties may turn: one tower's texts are in halves.
    assert {k: v for k, v in alone.items() if k != "/name" and "teacher_index" not in k} == {
        k: pytest.approx(v, abs=1e-3)
        for k, v in whole.items()
        if k != "/name" and "teacher_index" not in k
    }
    _, out, _ = command("eval", folder, cache, "--split", "all")
    assert "an image tower alone; its texts: the teacher's; its space is assumed" in out

    # Trained against another teacher of the same width, it has none of this one's texts.
    notes = {"logit_scale": 4.75, "logit_bias": -16.8, "teacher_identity": "0" * 64}
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "siglip2_cache.json").write_text(json.dumps(notes))
    found = evaluated(command, other, cache, "--split", "all")["columns"]["model"]
    assert found["retrieval"] is found["image_cosine"] is found["text_cosine"] is None
    _, out, _ = command("eval", other, cache, "--split", "all")
    assert "its texts: none; it was trained with another teacher" in out
    record = open_cache(cache).teacher()
    (other / "siglip2_cache.json").write_text(
        json.dumps(notes | {"teacher_identity": identity_sha256(record)})
    )
    found = numbers_of(evaluated(command, other, cache, "--split", "all")["columns"]["model"])
    assert {k: v for k, v in found.items() if k != "/name"} == {
        k: v for k, v in alone.items() if k != "/name"
    }

    # Of another width, and without a map, it has no texts.
    wide = fake_cache(corpus, tmp_path / "wide", checkpoint=tiny_checkpoint, width=96)
    found = evaluated(command, folder, wide, "--split", "all")["columns"]["model"]
    assert found["retrieval"] is found["image_cosine"] is found["soft_loss_excess"] is None
    assert found["image_correlation"] is not None
    map_ED = np.linalg.qr(np.random.default_rng(0).normal(size=(96, 64)))[0].astype(np.float32)
    save_file({"map_ED": map_ED}, folder / "projection.safetensors")
    found = evaluated(command, folder, wide, "--split", "all")["columns"]["model"]
    assert found["missing_texts"] == 0
    assert found["soft_loss_excess"] > 0
    # A teacher must have both towers.
    message = error_line(*command("build", corpus, tmp_path / "none", "--teacher", folder))
    assert "is an image tower alone (model_type 'siglip_vision_model'" in message


def test_images_whose_bytes_have_changed_have_no_embedding(
    cache: Path, tiny_checkpoint: Path
) -> None:
    checkpoint = resolve_checkpoint(str(tiny_checkpoint))
    model = load_model(checkpoint, device="cpu", compute_dtype="float32")
    settings = {"device": "cpu", "compute_dtype": "float32", "batch_size": 2, "num_workers": 0}
    refs = picture_refs(open_cache(cache), np.array([0, NUM_IMAGES - 1, 5]))
    zeros = np.zeros((3, 32), np.uint8)
    with pytest.raises(TrainError, match="row 0: its bytes are not those the teacher saw"):
        student_embeddings(model, checkpoint, refs, [], sha256_N=zeros, **settings)
