"""Students that learn patch targets, and heat maps of texts, from end to end."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.commands import error_line
from kit.fakes import SilentProgress, config_of, write_folder_corpus
from kit.trainings import Listening, metrics_of, settings_of, train_of
from PIL import Image
from safetensors.torch import load_file

from siglip2_cache import open_cache
from siglip2_cache.neighbors.patch_cosines import draw_over
from siglip2_cache.precompute.build import build
from siglip2_cache.precompute.teacher.siglip_teacher import SiglipTeacher
from siglip2_cache.siglip import (
    encode_images,
    load_model,
    pool_tokens,
    resolve_checkpoint,
    vision_tower,
)
from siglip2_cache.student.config_file import make_config
from siglip2_cache.student.training.trainer import Trainer, train

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def cache(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen pictures in three views, half of the crops mirrored, with patch targets of a real teacher."""
    folder = tmp_path_factory.mktemp("dense")
    corpus = write_folder_corpus(folder / "corpus", 16)
    config = config_of(
        corpus,
        folder / "cache",
        tiny_checkpoint,
        num_views=3,
        batch_size=8,
        patch_targets=2,
        patch_dims=40,
    )
    build(config, progress=SilentProgress())
    return folder / "cache"


def test_the_term_falls_is_resumed_and_leaves_the_exported_model_as_it_is(
    cache: Path, tiny_student: Path, one_thread: None, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"weights": {"patch": 5.0}, "lr": 3e-3, "projection_lr": 1e-2}
    for steps in (6, 24):  # the second goes on after the first
        train_of(cache, tiny_student, tmp_path / "dense", steps=steps, save_every=6, **settings)
    losses = [line["patch"] for line in metrics_of(tmp_path / "dense")]
    assert len(losses) == 24
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    assert metrics_of(tmp_path / "dense")[-1]["patch_gradient_norm"] == 0
    train_of(cache, tiny_student, tmp_path / "plain", steps=2)
    dense, plain = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("dense", "plain")
    )
    assert dense.keys() == plain.keys()
    files = [{path.name for path in (tmp_path / n / "model").iterdir()} for n in ("dense", "plain")]
    assert files[0] == files[1]
    saved = load_file(tmp_path / "dense" / "checkpoints" / "step-0000024" / "model.safetensors")
    assert {name for name in saved if name.startswith("patch_head")} == {
        *(
            "patch_head.map.0.weight",
            "patch_head.map.0.bias",
        ),  # the student is narrower than a cell
        *("patch_head.map.2.weight", "patch_head.map.2.bias"),
    }


def test_views_are_replayed_so_that_cells_are_in_the_same_places(
    cache: Path, tiny_checkpoint: Path, one_thread: None, tmp_path: Path
) -> None:
    """A student that is the teacher has its cells in every view, mirrored ones too."""
    checkpoint = resolve_checkpoint(str(tiny_checkpoint))
    tower = vision_tower(load_model(checkpoint, device="cpu", compute_dtype="float32"))
    targets = open_cache(cache).patch_targets()
    boxes = (
        open_cache(cache).table("views").filter(flip=True).collect().select("row", "view").rows()
    )
    rows = open_cache(cache).image_targets().available_rows()
    num_mirrored = 0

    class Watching(Trainer):
        def batches(self, loader: Any, done: int) -> Iterator[Any]:
            nonlocal num_mirrored
            for batch in super().batches(loader, done):
                with torch.no_grad():
                    encoded = encode_images(tower, checkpoint, batch.pixels_N, None)
                cells = [(2, 2)] * len(batch.pixels_N)
                pooled = pool_tokens(encoded.tokens_BND, encoded.grids, cells, 4).numpy()
                values = batch.patches.values_NCP.float().numpy()
                step = np.abs(values).max(axis=-1, keepdims=True) / 127
                assert (np.abs(pooled @ targets.basis.T - values) < 0.6 * step + 5e-3).all()
                corpus = self._resolved.train.rows_N[batch.positions_N]
                num_mirrored += sum(
                    pair in boxes
                    for pair in zip(corpus.tolist(), batch.views_N.tolist(), strict=True)
                )
                yield batch

    settings = settings_of(
        cache, tiny_checkpoint, tmp_path / "run", steps=4, weights={"patch": 1.0}, val_share=0.0
    )
    train(make_config(None, settings), progress=Listening(), trainer_class=Watching)
    assert len(rows) == 16
    assert num_mirrored > 3


def test_without_patch_targets_the_term_is_refused(
    tiny_checkpoint: Path, tiny_student: Path, tmp_path: Path, command: Command
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 4)
    config = config_of(corpus, tmp_path / "cache", tiny_checkpoint)
    build(config, progress=SilentProgress())
    options = ("--out", tmp_path / "run", "--weight", "patch=1", "--device", "cpu")
    given = ("train", tmp_path / "cache", "--student", tiny_student, *options)
    assert error_line(*command(*given)) == (
        f"weights.patch needs patch targets, and teacher tiny of {tmp_path / 'cache'} has none; build a "
        "cache with --patch-targets, or leave the term out"
    )


def test_neighbors_says_and_shows_where_a_text_is(
    cache: Path, tiny_checkpoint: Path, tmp_path: Path, command: Command
) -> None:
    given = ("neighbors", cache, "--text", "a new text", "--patches", "-k", 3, "--device", "cpu")
    status, out, err = command(*given, "--json")
    assert status == 0, err
    [group] = json.loads(out)
    teacher = SiglipTeacher(resolve_checkpoint(str(tiny_checkpoint)), device="cpu")
    text_D = teacher.embed_texts(["a new text"])()[0]
    targets = open_cache(cache).patch_targets()
    for near in group["neighbors"]:
        cells = targets.read([near["row"]]).values_VCP[0].astype("f4") @ targets.basis
        states = torch.from_numpy(cells)[:, None]
        with torch.no_grad():
            alone = vision_tower(teacher._model).head(states).numpy()
        alone /= np.linalg.norm(alone, axis=1, keepdims=True)
        np.testing.assert_allclose(np.ravel(near["patch_cosines"]), alone @ text_D, atol=2e-4)
        assert np.shape(near["patch_cosines"]) == (2, 2)
    page = tmp_path / "page.html"
    status, out, err = command(*given, "--html", page)
    assert (status, "heat maps: cosine of the text" in page.read_text()) == (0, True), err
    plain = json.loads(command("neighbors", cache, "--key", "img003", "--json")[1])
    assert "patch_cosines" not in plain[0]["neighbors"][0]
    message = (
        "--patches shows where a text is in images: it goes with --text, and with --among images"
    )
    for wrong in (("--key", "img003"), ("--text", "a", "--among", "texts"), ()):
        assert error_line(*command("neighbors", cache, "--patches", *wrong)) == message


def test_a_heat_map_is_bright_where_the_cosine_is_large() -> None:
    picture = io.BytesIO()
    Image.new("RGB", (60, 40), (90, 90, 90)).save(picture, "JPEG")
    cosines = np.array([[0.0, 0.1, 0.4]], np.float32)
    drawn = draw_over(picture.getvalue(), cosines, (0.0, 0.4), "image/jpeg")
    shown = np.asarray(Image.open(io.BytesIO(drawn)).convert("L"), np.float32)
    assert shown.shape == (40, 60)
    assert shown[:, 50:].mean() > shown[:, 25:35].mean() + 20 > shown[:, :10].mean() + 25
    flat = draw_over(picture.getvalue(), np.full((2, 2), 0.3, np.float32), (0.3, 0.3), "image/jpeg")
    assert Image.open(io.BytesIO(flat)).size == (60, 40)
