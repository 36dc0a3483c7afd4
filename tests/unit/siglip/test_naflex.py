"""NaFlex checkpoints: their settings, and a forward pass that pads and waits as little as it can."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.published import SMALL_PROCESSOR, num_tokens
from torch.utils._python_dispatch import TorchDispatchMode

from siglip2_cache.errors import CheckpointError, SettingError
from siglip2_cache.siglip import (
    Checkpoint,
    NaflexRecipe,
    TextTokenizer,
    checkpoint_identity,
    embed_image_patches,
    embed_image_pixels,
    load_model,
    resolve_checkpoint,
    with_max_num_patches,
)
from siglip2_cache.siglip.positions import KeptPositions

GRIDS = [(16, 16), (14, 18), (18, 14), (1, 256), (7, 7), (1, 1), (16, 16), (40, 6), (3, 2)]


@pytest.fixture
def folder(naflex_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the NaFlex checkpoint that a test may change."""
    return Path(shutil.copytree(naflex_checkpoint, tmp_path / "copy"))


@pytest.fixture(scope="module")
def checkpoint(naflex_checkpoint: Path) -> Checkpoint:
    return resolve_checkpoint(str(naflex_checkpoint))


def edit_json(path: Path, section: str | None, **changes: Any) -> None:
    value = json.loads(path.read_text())
    place = value[section] if section else value
    for name, change in changes.items():
        place.pop(name, None)
        if change is not None:
            place[name] = change
    path.write_text(json.dumps(value))


# Settings


def test_the_config_says_that_a_checkpoint_is_naflex(folder: Path) -> None:
    named_otherwise = folder.rename(folder.parent / "siglip2-base-patch16-224")
    found = resolve_checkpoint(str(named_otherwise))
    assert found.model_type == "siglip2"
    assert found.image == NaflexRecipe(patch_size=16, max_num_patches=256, resample=2)
    assert found.image.view_shape == (256, 768)
    assert (found.embed_dim, found.max_text_tokens) == (64, 64)


def test_settings_that_are_left_out_are_filled(folder: Path) -> None:
    names = ("patch_size", "max_num_patches", "resample", "image_processor_type", "image_mean")
    edit_json(folder / "preprocessor_config.json", None, **dict.fromkeys(names))
    edit_json(folder / "config.json", "vision_config", patch_size=None, num_patches=None)
    found = resolve_checkpoint(str(folder))
    assert found.image == NaflexRecipe(patch_size=16, max_num_patches=256, resample=2)
    assert found.image_mean == (0.5, 0.5, 0.5)


def test_the_limit_is_that_of_the_processor(folder: Path) -> None:
    edit_json(folder / "preprocessor_config.json", None, max_num_patches=144)
    found = resolve_checkpoint(str(folder))
    assert found.image == NaflexRecipe(patch_size=16, max_num_patches=144, resample=2)


@pytest.mark.parametrize(
    ("file", "section", "changes", "message"),
    [
        ("config.json", "vision_config", {"patch_size": [16, 16]}, r"patch_size \[16, 16\]"),
        ("config.json", "vision_config", {"patch_size": 14}, r"patches of 16 pixels.* of 14 \("),
        (
            "config.json",
            "vision_config",
            {"num_patches": 200},
            r"num_patches 200, which is not a sq",
        ),
        ("config.json", "vision_config", {"num_channels": 4}, r"num_channels 4; images are RGB"),
        ("config.json", "vision_config", {"vision_use_head": False}, r"vision_use_head false"),
        ("config.json", "text_config", {"projection_size": 32}, r"width 64 and .* width 32"),
        ("preprocessor_config.json", None, {"max_num_patches": 0}, r"max_num_patches 0"),
        ("preprocessor_config.json", None, {"max_num_patches": "x"}, r"max_num_patches 'x'"),
        ("preprocessor_config.json", None, {"do_resize": False}, r"do_resize false.*grid of patch"),
        (
            "preprocessor_config.json",
            None,
            {"image_processor_type": "SiglipImageProcessor"},
            r"image_processor_type 'SiglipImageProcessor'",
        ),
    ],
)
def test_settings_we_would_not_reproduce_are_refused(
    folder: Path, file: str, section: str | None, changes: dict[str, Any], message: str
) -> None:
    edit_json(folder / file, section, **changes)
    with pytest.raises(CheckpointError, match=message):
        resolve_checkpoint(str(folder))


def test_another_limit_is_another_identity(checkpoint: Checkpoint) -> None:
    other = with_max_num_patches(checkpoint, 100)
    assert other.image == NaflexRecipe(patch_size=16, max_num_patches=100, resample=2)
    ours, theirs = (
        checkpoint_identity(each, compute_dtype="float32") for each in (checkpoint, other)
    )
    assert {name for name in ours if ours[name] != theirs[name]} == {"image_max_num_patches"}
    assert (ours["image_max_num_patches"], theirs["image_max_num_patches"]) == (256, 100)
    assert (ours["image_resize"], ours["image_patch_size"]) == ("patch grid", 16)
    assert ours["vision_config.num_patches"] == 256
    assert not any("image_size" in name for name in ours)
    assert json.loads(json.dumps(ours)) == ours


@pytest.mark.parametrize("limit", [0, -1, 65_537])
def test_a_limit_that_is_none_is_refused(checkpoint: Checkpoint, limit: int) -> None:
    with pytest.raises(SettingError, match=f"max num patches must be 1 to 65,536, got {limit}"):
        with_max_num_patches(checkpoint, limit)


def test_a_checkpoint_of_fixed_resolution_has_no_limit(tiny_checkpoint: Path) -> None:
    fixed = resolve_checkpoint(str(tiny_checkpoint))
    with pytest.raises(SettingError, match=r"128 goes with a NaFlex .* is of fixed resolution"):
        with_max_num_patches(fixed, 128)


def test_texts_become_what_the_plain_processor_makes_of_them(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import AutoProcessor

    folder = make_checkpoint(
        "tiny-patch16-naflex",
        tmp_path,
        processor=SMALL_PROCESSOR,
        vocab_size=num_tokens(SMALL_PROCESSOR),
    )
    texts = [
        "A Cat",
        "ΟΔΥΣΣΕΥΣ",
        "",
        "İstanbul ẞ ÄÖÜ",
        "two  spaces\tand\na line",
        "猫 😀",
        "wo " * 99,
    ]
    theirs = AutoProcessor.from_pretrained(folder)(text=texts, return_tensors="np")["input_ids"]
    np.testing.assert_array_equal(TextTokenizer(resolve_checkpoint(str(folder)))(texts), theirs)


# Position embeddings


def plain_model(folder: Path, **settings: Any) -> Any:
    from transformers import Siglip2Model

    return Siglip2Model.from_pretrained(folder, **settings).eval().requires_grad_(False)


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("computed", ["float32", "bfloat16"])
def test_position_embeddings_equal_those_of_transformers_bit_for_bit(
    make_checkpoint: Callable[..., Path], tmp_path: Path, stored: str, computed: str
) -> None:
    folder = make_checkpoint("tiny-patch16-naflex", tmp_path, dtype=stored)
    model = load_model(resolve_checkpoint(str(folder)), device="cpu", compute_dtype=computed)
    dtype = next(model.parameters()).dtype
    patches_BNP = torch.randn(len(GRIDS), 256, 768, generator=torch.Generator().manual_seed(0))
    ours = model.vision_model.embeddings
    theirs = plain_model(folder, dtype=dtype).vision_model.embeddings
    with torch.inference_mode():
        for _ in range(2):  # made, and kept
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=computed != "float32"):
                found = ours(patches_BNP, torch.tensor(GRIDS))
                expected = theirs(patches_BNP, torch.tensor(GRIDS))
            assert found.dtype == expected.dtype
            assert torch.equal(found, expected)


def counted_positions(largest_num_rows: int) -> tuple[KeptPositions, list[tuple[int, int]]]:
    from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings

    seen: list[tuple[int, int]] = []

    def resize(positions: torch.Tensor, shapes: torch.Tensor, max_length: int) -> torch.Tensor:
        seen.extend(map(tuple, shapes.tolist()))
        return Siglip2VisionEmbeddings.resize_positional_embeddings(positions, shapes, max_length)

    return KeptPositions(resize, largest_num_rows=largest_num_rows), seen


def test_each_grid_is_resized_once() -> None:
    kept, seen = counted_positions(10_000)
    positions = torch.randn(16, 16, 8)
    for _ in range(3):
        kept(positions, torch.tensor(GRIDS), 256)
    assert sorted(seen) == sorted(set(GRIDS))


def test_the_grids_used_longest_ago_are_dropped() -> None:
    kept, seen = counted_positions(30)
    positions = torch.randn(16, 16, 8)
    for grid in [(2, 5), (3, 5), (2, 5), (5, 3), (2, 5), (3, 5)]:  # 10 and 15 rows: two fit
        kept(positions, torch.tensor([grid]), 15)
    assert seen == [(2, 5), (3, 5), (5, 3), (3, 5)]
    assert kept(positions, torch.tensor([(10, 10)]), 100).shape == (1, 100, 8)  # above the bound


# The forward pass


WAITS = {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::nonzero"}
RESIZES = {"aten::_upsample_bilinear2d_aa", "aten::_upsample_bilinear2d_aa.vec"}


class Costly(TorchDispatchMode):
    """Notes every operation that would wait for a device, bringing a value to Python, or resizes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.name() in WAITS | RESIZES:
            self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


def draw_patches(grids: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise for every patch, also the padding, and the mask."""
    counts = torch.tensor([rows * columns for rows, columns in grids])
    N = int(counts.max())
    draw = torch.Generator().manual_seed(1)
    patches = torch.randint(0, 256, (len(grids), N, 768), dtype=torch.uint8, generator=draw)
    return patches, torch.arange(N) < counts[:, None]


def plain_rows(folder: Path, patches: torch.Tensor, grids: list[tuple[int, int]]) -> torch.Tensor:
    """Plain transformers in float32, one image at a time, padded to 256 patches as by its processor."""
    model = plain_model(folder)
    rows: list[torch.Tensor] = []
    with torch.no_grad():
        for patches_NP, grid in zip(patches, grids, strict=True):
            N = grid[0] * grid[1]
            padded = torch.zeros(1, 256, 768)
            padded[0, :N] = (patches_NP[:N] / 255 - 0.5) / 0.5
            mask = (torch.arange(256) < N).int()[None]
            found = model.get_image_features(padded, mask, torch.tensor([grid]))
            rows.append(torch.nn.functional.normalize(found.pooler_output.double(), dim=-1))
    return torch.cat(rows)


@pytest.mark.parametrize(
    ("grids", "is_masked"),
    [
        pytest.param(GRIDS, True, id="of many sizes"),
        pytest.param([(14, 18), (18, 14), (9, 28)], False, id="of as many patches"),
        pytest.param([(2, 3)], False, id="one small one"),
    ],
)
def test_a_batch_equals_a_plain_forward_one_by_one_and_neither_waits_nor_resizes(
    checkpoint: Checkpoint, grids: list[tuple[int, int]], is_masked: bool
) -> None:
    model = load_model(checkpoint, device="cpu", compute_dtype="float32")
    patches, mask = draw_patches(grids)

    def embed() -> torch.Tensor:
        return embed_image_patches(
            model, checkpoint, patches, grids, mask if is_masked else None, compute_dtype="float32"
        )

    expected = plain_rows(checkpoint.folder, patches, grids)
    embed()  # the position embeddings are kept from now on
    with Costly() as costly:
        found = embed()
    assert costly.seen == []
    assert found.dtype == torch.float32
    assert (1 - (found.double() * expected).sum(-1)).max() < 1e-6


@pytest.mark.parametrize("grad_mode", [torch.no_grad, torch.inference_mode])
def test_plain_transformers_is_seen_to_wait_and_resize(
    checkpoint: Checkpoint, grad_mode: Callable[[], Any]
) -> None:
    patches, mask = draw_patches(GRIDS)
    model = plain_model(checkpoint.folder)
    with grad_mode(), Costly() as costly:
        model.get_image_features(patches.float(), mask, torch.tensor(GRIDS))
    assert WAITS & set(costly.seen)
    assert RESIZES & set(costly.seen)


def test_what_is_not_fit_for_the_forward_pass_is_refused(
    checkpoint: Checkpoint, tiny_checkpoint: Path
) -> None:
    model = load_model(checkpoint, device="cpu", compute_dtype="float32")
    fixed = resolve_checkpoint(str(tiny_checkpoint))
    patches, mask = draw_patches([(2, 2), (1, 3)])
    grids = [(2, 2), (1, 3)]

    def embed(patches: torch.Tensor, mask: torch.Tensor | None, of: Checkpoint) -> None:
        embed_image_patches(model, of, patches, grids, mask, compute_dtype="float32")

    with pytest.raises(ValueError, match=r"grids of other than 4 patches need a mask"):
        embed(patches, None, checkpoint)
    with pytest.raises(ValueError, match=r"must be uint8 of shape \(2, N, 768\)"):
        embed(patches.float(), mask, checkpoint)
    with pytest.raises(ValueError, match=r"must be uint8 of shape \(2, N, 768\)"):
        embed(patches[:1], mask[:1], checkpoint)
    with pytest.raises(ValueError, match="takes whole images, not patches"):
        embed(patches, mask, fixed)
    with pytest.raises(ValueError, match="takes patches, not whole images"):
        embed_image_pixels(model, checkpoint, patches, compute_dtype="float32")
